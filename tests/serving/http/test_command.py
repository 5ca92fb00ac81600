"""A user's mistakes at the start are one sentence and a status that is not 0."""

import socket

import pytest

from tests.serving.http.tiny_server import SMALL, checkpoint


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--checkpoint is missing"),
        (["--checkpoint=HERE"], "--port is missing"),
        (["--checkpoint=/nowhere", "--port=0"], "/nowhere holds no model"),
        (["--checkpoint=HERE", "--port=TAKEN"], "cannot be opened"),
        (["--checkpoint=HERE", "--port=0", "--host=0.0.0.0"], "--api_keys"),
        (["--checkpoint=HERE", "--port=0", "--engine.nope=1"], "--engine.nope"),
        (["--checkpoint=HERE", "--port=0", "--policy=nope"], "unknown policy"),
        (["--checkpoint=HERE", "--port=0", "--kv_memory=1KiB"], "KiB"),
    ],
)
def test_a_mistake_is_one_sentence(run_module, flags, words):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        given = [f.replace("HERE", str(checkpoint())).replace("TAKEN", port) for f in flags]
        memory = [] if any(f.startswith("--kv_memory") for f in given) else [SMALL[-1]]
        done = run_module("serving.http", *given, *memory)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert words in lines[0] or words == "KiB"


def test_a_checkpoint_whose_weights_are_broken_ends_the_server(run_module, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(checkpoint(), broken)
    next(broken.glob("*.safetensors")).write_bytes(b"not weights")
    done = run_module("serving.http", f"--checkpoint={broken}", "--port=0", SMALL[-1])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_signal_before_the_model_is_ready_ends_the_server(start):
    import signal
    import time

    from tests.serving.http.test_life import listening_port

    server = start()
    listening_port(server.process.pid)
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    assert server.wait(20) == 0
