"""Servers build the engine of a model larger than memory when the configuration says so."""

import dataclasses
import json

import pytest

from serving import EngineConfig, Request, Sampling, fair
from serving.config import OffloadSettings
from serving.loading import load_engine
from serving.offload.runtime.engine import OffloadEngine
from tests.serving.offload.runtime import tiny

CONFIG = EngineConfig(max_slots=4, max_request_tok=64, offload=OffloadSettings(device_memory_gb=0.3))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.saved("plain", tmp_path_factory.mktemp("models"))


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


def test_too_little_memory_is_refused_with_the_least_that_works(path):
    little = dataclasses.replace(CONFIG, offload=OffloadSettings(device_memory_gb=0.01))
    with pytest.raises(ValueError, match="the least that works is"):
        load_engine(path, little)
