"""A sweep keeps finished runs, spreads the rest over cores, and never mixes two configs."""

import json
import os
from dataclasses import dataclass

import pytest

from tests.train.tiny import report_process
from train.experiments.sweep import sweep

TASKS = [("b", 0), ("a", 0), ("b", 1)]


@dataclass
class Config:
    width: int = 1
    names: tuple[str, ...] = ("b", "a")


def test_finished_runs_are_in_task_order_and_not_repeated(tmp_path):
    done = []

    def do(name, seed):
        done.append((name, seed))
        return {"value": len(done)}

    sweep(Config(), TASKS[:2], do, tmp_path)
    rows = sweep(Config(), TASKS, do, tmp_path)
    assert done == TASKS
    assert [(row["variant"], row["seed"], row["value"]) for row in rows] == [
        ("b", 0, 1),
        ("b", 1, 3),
        ("a", 0, 2),
    ]


def test_a_run_that_fails_ends_the_sweep_and_loses_none_before_it(tmp_path):
    def do(name, seed):
        if name == "a":
            raise ValueError("loss is nan")
        return {}

    with pytest.raises(ValueError, match="loss is nan"):
        sweep(Config(), TASKS, do, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["b-0.json", "config.json"]


def test_a_workdir_belongs_to_one_config_except_for_free_fields(tmp_path):
    sweep(Config(), [], lambda name, seed: {}, tmp_path, free=("names",))
    sweep(Config(names=("c",)), [], lambda name, seed: {}, tmp_path, free=("names",))
    assert json.loads((tmp_path / "config.json").read_text()) == {"width": 1}
    with pytest.raises(ValueError, match="runs of another config"):
        sweep(Config(width=2), [], lambda name, seed: {}, tmp_path, free=("names",))


def test_every_worker_has_a_core_and_a_thread_of_its_own(tmp_path, monkeypatch):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two workers need a core each; this process may use one")
    monkeypatch.setenv("NPROC", "4")
    rows = sweep(Config(), TASKS, report_process, tmp_path, workers=2)
    assert [row["variant"] for row in rows] == ["b", "b", "a"]
    assert all(row["device"].endswith(", 1 core") and len(row["cores_seen"]) == 1 for row in rows)
    assert os.getpid() not in {row["process"] for row in rows}
    assert len({row["process"] for row in rows}) == len({tuple(row["cores_seen"]) for row in rows})


def test_a_config_of_another_command_is_refused_in_one_sentence(run_module, tmp_path):
    done = run_module(
        "train.experiments.wiring_quality", "--config=configs/llama.py", f"--workdir={tmp_path / 'runs'}"
    )
    assert done.returncode == 2
    assert done.stderr == "error: --config holds TrainingExperiment, this command reads WiringExperiment\n"
    assert not (tmp_path / "runs").exists()


def test_more_workers_than_cores_are_refused(tmp_path):
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(
        ValueError, match=f"{cores + 1} workers need a core each; this process may use {cores}"
    ):
        sweep(Config(), TASKS, report_process, tmp_path, workers=cores + 1)
