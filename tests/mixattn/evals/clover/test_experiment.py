"""Runs that can be stopped, and the tables made of them."""

import asyncio
import json
from dataclasses import replace

import pytest

from mixattn.evals.clover import own, scripted, tables
from mixattn.evals.clover.experiment import Results, read_rows, run_all
from mixattn.evals.llm import CallFailed

TRIPLES = (own.right_triples() + own.wrong_triples())[:30]


def run(tools, results, model=None, triples=TRIPLES):
    tools = replace(tools, model=model or scripted.oracle())
    asyncio.run(run_all(triples, tools, results))
    return {(row["name"], row["kind"]): row["edges"] for row in results.rows}


def test_a_run_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(by_heart, tmp_path):
    whole = run(by_heart, Results(tmp_path / "whole", {"seed": 0}))
    run(by_heart, Results(tmp_path / "cut", {"seed": 0}), triples=TRIPLES[:11])
    path = tmp_path / "cut" / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-40])  # as a kill in the middle of a line leaves it
    results = Results(tmp_path / "cut", {"seed": 0})
    assert len(results.rows) == 10
    assert run(by_heart, results) == whole
    assert len(read_rows(path)) == 30


def test_a_folder_holds_one_run(tmp_path):
    Results(tmp_path, {"model": "oracle", "k": 1})
    with pytest.raises(ValueError, match="k=1, not 3"):
        Results(tmp_path, {"model": "oracle", "k": 3})


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="line 1 is not a result"):
        read_rows(tmp_path / "results.jsonl")


def test_what_was_finished_before_the_model_went_away_is_kept(by_heart, tmp_path):
    class Goes:
        calls = 0

        async def complete(self, prompt, **options):
            self.calls += 1
            if self.calls > 40:
                raise CallFailed("gone", transient=False)
            return await scripted.oracle().complete(prompt, **options)

    results = Results(tmp_path, {})
    with pytest.raises(ExceptionGroup):
        run(by_heart, results, Goes())
    assert 0 < len(read_rows(tmp_path / "results.jsonl")) < 30


def test_tables_count_by_kind_and_leave_edges_out(by_heart, tmp_path):
    results = Results(tmp_path, {})
    triples = own.right_triples() + own.wrong_triples()
    run(by_heart, results, scripted.charitable(), triples)
    kinds = {line["kind"]: line for line in tables.by_kind(results.rows)}
    assert (kinds["right"]["triples"], kinds["right"]["accepted"]) == (20, 20)
    assert sum(line["accepted"] for line in kinds.values()) == 20
    parts = {line["edges"]: line for line in tables.ablation(results.rows)}
    assert parts["all six"]["wrong"] == 0
    assert parts["only anno-sound"]["wrong"] == 60
    assert parts["without doc2anno"]["C3"] > 0
    assert "charitable" not in tables.plain([{"a": 1, "b": "x"}])
    json.dumps(results.rows)
