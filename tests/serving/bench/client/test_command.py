"""The command against a real server: its counts are the server's; and what it says to mistakes."""

import asyncio
import json

import pytest

from serving.bench.client.__main__ import underscored
from tests.serving.http.tiny_server import ServerProcess

CLIENT = "serving.bench.client"


@pytest.fixture(scope="module")
def server():
    running = ServerProcess("--limit_queued_requests=8")
    try:
        yield running.ready()
        assert running.stop() == 0
    finally:
        running.close()


def test_counts_are_the_servers_and_lengths_those_asked_for(server, run_module):
    before = server.metric("generation_tokens_total"), server.metric("prompt_tokens_total")
    done = run_module(
        *(CLIENT, f"--base-url=http://127.0.0.1:{server.port}/v1", "--num-prompts=12", "--max-concurrency=4"),
        *("--random-input-len=20", "--random-output-len=6", "--ignore-eos", "--warmup-requests=0", "--json"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["all"]
    assert (told["completed"], told["failed"], told["max_concurrent_requests"]) == (12, 0, 4)
    assert (told["total_input_tokens"], told["total_output_tokens"]) == (240, 72)
    assert server.metric("generation_tokens_total") - before[0] == 72
    assert server.metric("prompt_tokens_total") - before[1] == 240


def test_clients_of_a_mix_are_told_apart_here_and_there(server, run_module, tmp_path):
    out = tmp_path / "result.json"
    done = run_module(
        *(CLIENT, f"--base_url=http://127.0.0.1:{server.port}", "--random_input_len=8", "--duration_s=2"),
        *("--random_output_len=4", "--client=flood concurrency=6 requests=50", "--client=light rate=4"),
        *(f"--output_file={out}", "--goodput=ttft:60000"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert set(told["clients"]) == {"flood", "light"}
    assert told["all"]["completed"] == sum(c["completed"] for c in told["clients"].values())
    assert 3 <= told["clients"]["light"]["completed"] <= 12, "two seconds at four a second"
    assert told["all"]["request_goodput"] == pytest.approx(told["all"]["request_throughput"])
    for line in ("flood:", "light:", "goodput", "this client:"):
        assert line in done.stdout
    assert server.metric("service_tokens_total", client="light") > 0


def test_chats_are_sent_as_text_in_bursts(server, run_module):
    done = run_module(
        *(CLIENT, f"--base_url=http://127.0.0.1:{server.port}", "--backend=openai-chat", "--num_prompts=6"),
        *("--request_rate=50", "--burstiness=0.5", "--random_input_len=5", "--random_output_len=4", "--json"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["all"]["completed"] == 6
    assert told["this_client"]["cpu_us_per_event"] > 0
    assert "p99" in told["this_client"]["sent_late_ms"]


def test_refusals_are_counted_and_named(server, run_module):
    done = run_module(
        *(CLIENT, f"--base_url=http://127.0.0.1:{server.port}", "--num_prompts=60", "--random_input_len=8"),
        *("--random_output_len=40", "--ignore_eos", "--json"),
    )
    told = json.loads(done.stdout)["all"]
    assert told["failed"] > 0
    assert told["completed"] + told["failed"] == 60
    assert any(error.startswith("HTTP 503") for error in told["errors"])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--base_url=localhost"], "is not like http://127.0.0.1:8000"),
        (["--base_url=http://127.0.0.1:9"], "does not answer"),
        (["--client=a speed=3"], "names 'speed'"),
        (["--client=a", "--client=a"], "each needs a name of its own"),
        (["--goodput=fast"], "write bounds in ms"),
        (["--extra_request_body=[]"], "is not a JSON object"),
        (["--metric_percentiles=101"], "between 0 and 100"),
        (["--dataset_name=custom"], "belong together"),
        (["--api_key_env=NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
        (["--num_prompts=0"], "num_prompts"),
    ],
)
def test_a_mistake_is_one_sentence(run_module, flags, says):
    done = run_module(CLIENT, *flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_breaks_off_is_an_error_per_request(run_module):
    async def serve():
        async def answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\ndata: ")
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as made:
            port = made.sockets[0].getsockname()[1]
            flags = f"--base_url=http://127.0.0.1:{port}", "--model=m", "--vocab_size=0", "--num_prompts=3"
            return await asyncio.to_thread(run_module, CLIENT, *flags, "--warmup_requests=0")

    done = asyncio.run(serve())
    assert done.returncode == 1
    assert "3 x ConnectionError: the server closed the connection" in done.stdout


def test_dashes_in_names_of_flags_are_ours_and_values_stay():
    given = ["x", "--num-prompts=3", '--extra-request-body={"a-b": 1}', "--base-url", "http://a-b"]
    assert underscored(given) == [
        *("x", "--num_prompts=3", '--extra_request_body={"a-b": 1}', "--base_url", "http://a-b")
    ]
