"""Servers build the engine of a model larger than memory when the configuration says so."""

import dataclasses
import json

import pytest
from flax import nnx

from mixattn import hf
from mixattn.model import Transformer
from serving import Engine, EngineConfig, Request, Sampling, fair
from serving.config import OffloadSettings
from serving.loading import load_engine
from serving.offload.runtime.engine import OffloadEngine
from tests.serving.http.tiny_server import ServerProcess, tokenizer
from tests.serving.offload.runtime import tiny

CONFIG = EngineConfig(max_slots=4, max_request_tok=64, offload=OffloadSettings(device_memory_gb=0.3))


@pytest.fixture(scope="module")
def path(folder):
    return tiny.saved("plain", folder)


def asked(count):
    return [
        Request(id=f"r{i}", client="ab"[i % 2], prompt_ids=tiny.greedy(i, 5), sampling=Sampling(max_tokens=4))
        for i in range(count)
    ]


@pytest.mark.parametrize("policy", ["fcfs", "vtc", "dlpm"])
def test_the_seam_is_the_engines_own(path, policy):
    events = []
    config = dataclasses.replace(CONFIG, policy=policy)
    engine = load_engine(path, config, log=events.append)
    assert isinstance(engine, OffloadEngine)
    assert policy in fair.POLICIES
    for request in asked(3):
        engine.submit(request)
    assert engine.cancel("r2")
    outputs = []
    while engine.live:
        outputs += [delta.output for delta in engine.step() if delta.output is not None]
    assert {o.id: o.finish_reason for o in outputs} == {"r0": "length", "r1": "length", "r2": "cancel"}
    kinds = [event["event"] for event in events]
    assert kinds.count("arrive") == 3
    assert kinds.count("finish") == 2
    assert kinds.count("cancel") == 1
    assert all(json.dumps(event) for event in events)
    assert [o.output_ids for o in engine.run(asked(2))] == [
        o.output_ids for o in sorted(outputs, key=lambda o: o.id)[:2]
    ]


def test_without_offload_everything_is_in_memory_and_answers_are_the_same(path):
    whole = dataclasses.replace(CONFIG, offload=OffloadSettings(), prefill_rows=(1,), chunk_sizes=(64,))
    plain = load_engine(path, whole)
    assert not isinstance(plain, OffloadEngine)
    offloaded = load_engine(path, CONFIG)
    assert [o.output_ids for o in plain.run(asked(3))] == [o.output_ids for o in offloaded.run(asked(3))]


def test_a_file_of_requests_is_answered_by_the_offline_server(path, tmp_path, run_module):
    requests = tmp_path / "requests.jsonl"
    requests.write_text(json.dumps({"prompt_ids": [1, 2, 3], "max_tokens": 3}) + "\n")
    config = tmp_path / "config.py"
    config.write_text(
        "from dataclasses import dataclass, field\n"
        "from serving import EngineConfig\n"
        "from serving.config import OffloadSettings\n"
        "from serving.offline.experiment import Serve\n"
        "@dataclass\n"
        "class Offloaded:\n"
        "    serve: Serve = field(default_factory=lambda: Serve(engine=EngineConfig(\n"
        "        max_slots=2, max_request_tok=64, offload=OffloadSettings(device_memory_gb=0.3))))\n"
        "def get_config():\n    return Offloaded()\n"
    )
    out = tmp_path / "out.jsonl"
    done = run_module(
        "serving.main", f"--config={config}", f"--model={path}", f"--requests={requests}", f"--out={out}"
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(out.read_text())["output_ids"]) == 3


def with_words(folder):
    """A mixture model with a tokenizer, as a server needs it."""
    words = tokenizer()
    config = dataclasses.replace(tiny.tiny("plain"), vocab_size=words.get_vocab_size())
    path = folder / "with_words"
    hf.save(Transformer(config, rngs=nnx.Rngs(1)), path, words, extra={"eos_token_id": 0})
    return path, words


def test_the_http_server_answers_as_with_everything_in_memory(tmp_path):
    path, words = with_words(tmp_path)
    prompt = "the quick brown fox"
    server = ServerProcess("--engine.offload.device_memory_gb=0.3", "--max_model_len=64", path=path)
    try:
        answer = server.ready().complete(prompt=prompt, max_tokens=8, temperature=0, ignore_eos=True)
        again = [
            server.complete(prompt="def", max_tokens=5, temperature=0, ignore_eos=True) for _ in range(2)
        ]
        streamed = list(
            server.stream(
                "/v1/completions", {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
            )
        )
        assert server.stop() == 0, server.errors()
        assert "apart failed" not in server.errors()
    finally:
        server.close()
    whole = Engine(hf.load(path)[0], EngineConfig(max_slots=2, max_request_tok=64))
    ids = words.encode(prompt).ids
    sampling = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True)
    (want,) = whole.run([Request(client="a", prompt_ids=ids, sampling=sampling)])
    assert answer["choices"][0]["text"] == words.decode(want.output_ids)
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert "".join(
        event["choices"][0]["text"] for event in streamed[:-1] if event["choices"]
    ) == words.decode(want.output_ids)
    assert again[0]["choices"] == again[1]["choices"]


def test_too_little_memory_is_refused_with_the_least_that_works(path):
    little = dataclasses.replace(CONFIG, offload=OffloadSettings(device_memory_gb=0.01))
    with pytest.raises(ValueError, match="the least that works is"):
        load_engine(path, little)
