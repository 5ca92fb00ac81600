"""Every format: what its numbers become, what is counted as left out, and errors that name line and field."""

import gzip
import json
import random

import pytest

from serving.fair import metrics
from serving.sim.experiment import FairnessExperiment, SimulatedEngine, run
from serving.sim.simulator import prompt_blocks
from serving.sim.traces import READERS, TraceOptions, examples, read_trace
from serving.sim.traces.azure import seconds

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:50.6805900,4000,7
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
MOONCAKE = [
    {"timestamp": 27000, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]},
    {"timestamp": 30000, "input_length": 1024, "output_length": 26, "hash_ids": [46, 47]},
    {"timestamp": 30500, "input_length": 600, "output_length": 5, "hash_ids": [46]},
]
TALK = [
    {"from": "system", "value": "s" * 40},
    {"from": "human", "value": "q" * 41},
    {"from": "gpt", "value": "a" * 80},
    {"from": "human", "value": "q" * 20},
    {"from": "gpt", "value": "a" * 8},
    {"from": "human", "value": "never answered"},
]


def write(tmp_path, name, content):
    path = tmp_path / name
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(content)
    return path


def sizes(trace):
    return [(r.prompt_tok, r.output_tok, round(r.arrival_s, 3)) for r in trace.requests]


def test_azure_rows_are_requests_at_their_times(tmp_path):
    trace = read_trace(write(tmp_path, "a.csv", AZURE), "azure", TraceOptions(memory_tok=2000))
    assert sizes(trace) == [(374, 44, 0.0), (396, 109, 4.315)]
    assert trace.account() == "3 rows, 2 requests; 1 dropped (larger than the memory)"
    assert trace.random


@pytest.mark.parametrize(
    ("stamp", "later_s"),
    [("2023-11-16 18:15:47", 1), ("2023-11-17T18:15:46Z", 86400), ("2023-11-16 19:15:46.5+01:00", 0.5)],
)
def test_times_of_day_count_from_one_clock(stamp, later_s):
    assert seconds(stamp) - seconds("2023-11-16 18:15:46") == pytest.approx(later_s)


def test_burstgpt_failures_are_counted_and_the_model_is_the_client(tmp_path):
    trace = read_trace(write(tmp_path, "b.csv", BURST), "burstgpt")
    assert sizes(trace) == [(472, 18, 5.0), (417, 276, 118.0)]
    assert [r.client for r in trace.requests] == ["ChatGPT", "GPT-4"]
    assert trace.dropped == {"no output": 1}
    assert not trace.random
    with_session = BURST.replace("Timestamp,", "Timestamp,Session ID,").replace("\n", ",x\n")
    with_session = "\n".join(
        line.replace(",", f",s{i},", 1) if i else line for i, line in enumerate(BURST.splitlines())
    ).replace("Timestamp,", "Timestamp,Session ID,", 1)
    clients = [r.client for r in read_trace(write(tmp_path, "c.csv", with_session), "burstgpt").requests]
    assert clients == ["s1", "s3"]
    by_type = TraceOptions(clients="column:log type")
    clients = [r.client for r in read_trace(write(tmp_path, "b.csv", BURST), "burstgpt", by_type).requests]
    assert clients == ["Conversation log", "API log"]


def test_mooncake_blocks_are_shared_prefixes_and_the_last_is_partial(tmp_path):
    trace = read_trace(write(tmp_path, "m.jsonl", MOONCAKE), "mooncake")
    first, second, third = trace.requests
    assert sizes(trace) == [(1100, 52, 27.0), (1024, 26, 30.0), (600, 5, 30.5)]
    assert [n for _, n in prompt_blocks(first)] == [512, 512, 76]
    assert first.tokens.common(0, second.tokens) == 1024
    assert second.tokens.common(0, third.tokens) == 512, "88 tokens beyond its ids are its own"
    server = SimulatedEngine(page_tok=16, memory_tok=8000)
    experiment = FairnessExperiment(requests=lambda seed: trace.requests, server=server)
    found = run(experiment, experiment.runs[0])
    assert found.report.hit_rate == pytest.approx((1008 + 512) / 2724, abs=0.01)


@pytest.mark.parametrize("shape", ["list", "lines", "lmsys"])
def test_conversations_become_sessions_whose_prompts_grow(tmp_path, shape):
    if shape == "lmsys":
        turns = [
            {"role": t["from"].replace("human", "user").replace("gpt", "assistant"), "content": t["value"]}
            for t in TALK
        ]
        rows = [{"conversation_id": "x", "model": "m", "conversation": turns}] * 3
    else:
        rows = [{"id": "x", "conversations": TALK}] * 3
    path = write(tmp_path, "s.json", json.dumps(rows) if shape == "list" else rows)
    trace = read_trace(path, "sharegpt", TraceOptions(rate=2.0, think_s=5.0))
    assert len(trace.requests) == 6
    first = next(r for r in trace.requests if r.after is None)
    second = next(r for r in trace.requests if r.after == first.id)
    assert (first.prompt_tok, first.output_tok) == (10 + 11, 20), "characters / 4, rounded up"
    assert (second.prompt_tok, second.output_tok) == (21 + 20 + 5, 2), "the talk so far, and the question"
    assert first.tokens.common(0, second.tokens) == 41, "the answer is cached for the next turn"
    assert len({r.client for r in trace.requests if r.id in (first.id, second.id)}) == 1
    assert read_trace(path, "sharegpt", TraceOptions(), seed=1).requests != trace.requests


def own(**fields):
    return {"id": "x", "client": "a", "arrival_s": 0, "prompt_len": 30, "output_len": 5} | fields


def test_our_format_has_sessions_cancels_deadlines_priorities_salts_and_programs(tmp_path):
    rows = [
        own(id="s1", session="s"),
        {k: v for k, v in own(id="s2", session="s", think_s=2.5).items() if k != "arrival_s"},
        own(id="c", cancel_s=0.01, salt="x"),
        own(id="d", deadline_s=0.02, output_len=60, priority=3),
        {
            k: v
            for k, v in own(id="p", after="d", think_s=1, program="town", client="b").items()
            if k != "arrival_s"
        },
    ]
    trace = read_trace(write(tmp_path, "o.jsonl", rows))
    by_id = {r.id: r for r in trace.requests}
    assert (by_id["s2"].after, by_id["s2"].arrival_s, by_id["s2"].prompt_tok) == ("s1", 2.5, 65)
    assert (by_id["c"].cancel_s, by_id["c"].cache_salt) == (0.01, "x")
    assert (by_id["d"].deadline_s, by_id["d"].priority) == (0.02, 3)
    assert (by_id["p"].program, by_id["p"].after) == ("town", "d")
    log = []
    experiment = FairnessExperiment(requests=lambda seed: trace.requests)
    found = run(experiment, experiment.runs[0], log=log.append)
    assert (found.result.finished, found.result.cancelled, found.result.expired) == (3, 1, 1)
    times = {(e["event"], e.get("id")): e["t"] for e in log}
    assert times["arrive", "s2"] == pytest.approx(times["finish", "s1"] + 2.5)
    assert times["arrive", "p"] == pytest.approx(times["cancel", "d"] + 1), (
        "what it follows ended by its deadline"
    )
    assert not trace.random


def test_what_follows_a_dropped_request_is_dropped_or_moves_up(tmp_path):
    rows = [
        own(id="big", prompt_len=900),
        {k: v for k, v in own(id="child", after="big").items() if k != "arrival_s"},
        own(id="s1", session="s", prompt_len=20, output_len=900, arrival_s=7),
        own(id="fits", arrival_s=1),
    ]
    trace = read_trace(write(tmp_path, "o.jsonl", rows), "own", TraceOptions(memory_tok=500))
    assert [r.id for r in trace.requests] == ["fits"]
    assert trace.dropped == {"larger than the memory": 2, "follows a dropped request": 1}


def test_oversize_requests_can_be_clipped_instead(tmp_path):
    rows = [own(id="a", prompt_len=900), own(id="b", output_len=2000), own(id="c")]
    trace = read_trace(write(tmp_path, "o.jsonl", rows), "own", TraceOptions(memory_tok=500, oversize="clip"))
    assert [(r.prompt_tok, r.output_tok) for r in trace.requests] == [(495, 5), (1, 499), (30, 5)]
    assert trace.account() == "3 rows, 3 requests; 2 clipped to the memory"


def test_rate_scales_time_and_clients_come_by_hash(tmp_path):
    path = write(tmp_path, "a.csv", AZURE)
    trace = read_trace(path, "azure", TraceOptions(rate=10.0, clients="hash:3"))
    assert trace.requests[-1].arrival_s == pytest.approx(0.2), "three arrivals at ten per second"
    many = [own(id=f"r{i}") for i in range(3000)]
    path = write(tmp_path, "o.jsonl", many)
    for clients, first in (("hash:4", 0.25), ("zipf:4", 0.48)):
        found = read_trace(path, "own", TraceOptions(clients=clients)).requests
        share = sum(r.client == "c0" for r in found) / 3000
        assert share == pytest.approx(first, abs=0.04)
        assert read_trace(path, "own", TraceOptions(clients=clients)).requests[7].client == found[7].client


def test_packed_files_and_marks_of_byte_order_are_read(tmp_path):
    path = tmp_path / "a.csv.gz"
    with gzip.open(path, "wt", encoding="utf-8-sig") as file:
        file.write(AZURE)
    assert len(read_trace(path, "azure").requests) == 3
    assert len(read_trace(path, "azure", TraceOptions(limit=2)).requests) == 2


BAD = [
    (
        "azure",
        "TIMESTAMP,ContextTokens\nx,1\n",
        "line 1: no column GeneratedTokens; found TIMESTAMP, ContextTokens",
    ),
    ("azure", AZURE.replace("374", "many"), "line 2: ContextTokens is 'many', not a number"),
    ("azure", AZURE.replace("374", "-374"), "line 2: ContextTokens is -374; it must be at least 0"),
    ("azure", AZURE.replace("374", "3.5"), "line 2: ContextTokens is 3.5, not a whole number"),
    ("azure", AZURE.replace("374", "nan"), "line 2: ContextTokens is 'nan', not a number"),
    ("azure", AZURE.replace("396,109", "396"), "line 3: 2 fields, but the header has 3"),
    (
        "azure",
        AZURE.replace("2023-11-16 18:16", "2023-13-16 18:16"),
        "line 4: TIMESTAMP is .* no time of any day",
    ),
    (
        "azure",
        AZURE.replace("2023-11-16 18:15:46.6805900", "yesterday"),
        "line 2: TIMESTAMP is 'yesterday', not like",
    ),
    ("azure", "", "line 1: no column TIMESTAMP"),
    ("azure", AZURE.splitlines()[0], "holds no request"),
    ("burstgpt", BURST.replace("45,GPT-4,1087", "45,GPT-4,"), "line 3: Request tokens is '', not a number"),
    ("burstgpt", BURST.replace("ChatGPT", ""), "line 2: Model is empty, but names the client"),
    ("mooncake", "{", "line 1: "),
    ("mooncake", "[1]\n", "line 1: not a JSON object"),
    (
        "mooncake",
        [MOONCAKE[0] | {"hash_ids": [1, 2, 3, 4]}],
        "hash_ids has 4 ids, but input_length 1100 takes 3 blocks",
    ),
    ("mooncake", [MOONCAKE[0] | {"hash_ids": "46"}], "hash_ids is '46', not a list of whole numbers"),
    ("mooncake", [MOONCAKE[0], {"timestamp": 1}], "line 2: no field input_length, output_length, hash_ids"),
    ("mooncake", [MOONCAKE[0] | {"timestamp": None}], "line 1: timestamp is None, not a number"),
    ("sharegpt", "[1, 2]", "item 1: not a JSON object"),
    ("sharegpt", "[{}]", "item 1: no field conversations or conversation"),
    ("sharegpt", '[{"conversations": 3}]', "item 1: conversations is '3', not a list of turns"),
    (
        "sharegpt",
        '[{"conversations": [{"from": "human"}]}]',
        r"conversations\[0\] has 'None' for value or content",
    ),
    ("sharegpt", '[{"conversations": [{"value": "x"}]}]', r"conversations\[0\] names nobody in from or role"),
    ("sharegpt", '[{"conversations": []', "not JSON"),
    ("sharegpt", "[" * 5000, "not JSON"),
    ("sharegpt", "[]", "holds no request"),
    ("own", [own(), own()], "line 2: the id 'x' appears twice"),
    ("own", [own(after="y")], "arrival_s is given, but the request follows another"),
    (
        "own",
        [{k: v for k, v in own(after="y").items() if k != "arrival_s"}],
        "after is 'y', which no line before it",
    ),
    (
        "own",
        [own(session="s"), own(id="y", session="s")],
        "line 2: arrival_s is given, but the request follows",
    ),
    ("own", [own(session="s", after="x")], "after and session exclude each other"),
    ("own", [own(priority=2**21)], "priority is 2097152; at most"),
    ("own", [own(priority="high")], "priority is 'high', not a number"),
    ("own", [own(deadline_s=-1)], "deadline_s is -1; it must be at least 0"),
    ("own", [own(salt=3)], "salt is 3, not text"),
    ("own", [own(prefix=[["k"]])], "a prefix is a list of"),
    ("own", [own(), own(id="y", weight=2)], "client 'a' has weight 2.0 here and 1.0 before"),
]


@pytest.mark.parametrize(("format", "content", "says"), BAD)
def test_a_bad_row_is_named_with_line_and_field(tmp_path, format, content, says):
    path = write(tmp_path, "bad", content)
    with pytest.raises(ValueError, match=says) as caught:
        read_trace(path, format)
    assert str(path) in str(caught.value)


def test_bytes_that_are_not_text_are_said_to_be(tmp_path):
    path = tmp_path / "bad"
    for format in READERS:
        path.write_bytes(b'{"id": "\xff\xfe"}\n' if format != "azure" else AZURE.encode()[:60] + b"\xff\n")
        with pytest.raises(ValueError, match="not readable"):
            read_trace(path, format)
    (tmp_path / "bad.gz").write_bytes(b"not packed")
    with pytest.raises(ValueError, match="not readable"):
        read_trace(tmp_path / "bad.gz", "own")


def test_an_unknown_format_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(
        ValueError, match="unknown format 'vllm'; known: own, azure, burstgpt, mooncake, sharegpt"
    ):
        read_trace(tmp_path / "x", "vllm")


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_file_is_refused_in_words_or_read_never_crashes(tmp_path, format, seed):
    """Bytes flipped, cut or repeated at random places of an example."""
    rng = random.Random(f"{format}{seed}")
    name = next(name for name in examples.FILES if examples.format_of(name) == format)
    data = bytearray("\n".join(examples.lines(name)).encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randint(1, 40)]
            case 2:
                data[at:at] = data[at : at + rng.randint(1, 40)]
    path = tmp_path / "damaged"
    path.write_bytes(data)
    refused = ""
    try:
        assert read_trace(path, format, TraceOptions(memory_tok=20_000)).requests
    except ValueError as why:
        refused = str(why)
    assert not refused or "damaged" in refused


@pytest.mark.parametrize("name", examples.FILES)
def test_the_example_of_every_format_is_served(tmp_path, name):
    path = tmp_path / name
    path.write_text("".join(f"{line}\n" for line in examples.lines(name)))
    trace = read_trace(path, examples.format_of(name), TraceOptions(memory_tok=10_000))
    server = SimulatedEngine(page_tok=16, admit_every=1)
    experiment = FairnessExperiment(
        requests=lambda seed: trace.requests, server=server, weights=dict(trace.weights)
    )
    log = []
    found = run(experiment, experiment.runs[0], log=log.append)
    ended = found.result.finished + found.result.cancelled + found.result.expired
    assert ended == len(trace.requests) > 90
    assert metrics.report(log, weights=trace.weights).gap == found.report.gap
