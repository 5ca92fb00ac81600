"""A pre-trained model in wirings of growing savings: what each loses, and what closed-form recovery returns.

    python -m train.experiments.pretrained --config=configs/smollm2_mixattention.py --workdir=DIR

Per wiring: KV bytes, held-out nats before and after, recall of a planted number inside and beyond the window,
speed and concurrency in the engine. Writes results/NAME.csv and NAME.svg after every finished wiring. A stage
of a wiring that is finished is kept as a JSON file in the workdir and not repeated.
"""

import functools
import time
from pathlib import Path
from typing import Any

from mixattn import ModelConfig, Transformer, kv_bytes
from pallas_kernels import results
from train.experiments import local_text, loss, needles, recovery_plot, served
from train.experiments.pretrained_setup import Material, PretrainedExperiment, rewired, wired
from train.experiments.recover import LayerFit, Strength, recover
from train.experiments.sweep import command, sweep, write_table

KV_DTYPE = "bfloat16"
NOT_MEASURED = "not measured"
NO_SEED = "none drawn: fits have no noise; text in the order of hashes; needles from seed 0"


def quality(config: PretrainedExperiment, material: Material, model: Transformer) -> dict[str, float]:
    """Held-out nats per token, and needle recall inside the window and at three windows' distance."""
    return {
        "nats": loss.nats(model, material.held_out),
        "recall_inside": needles.recalled(model, material.needles(config.window // 2)),
        "recall_beyond": needles.recalled(model, material.needles(3 * config.window)),
    }


def run_before(config: PretrainedExperiment, material: Material, wiring: str, seed: int) -> dict[str, Any]:
    """The rewired model as it is."""
    del seed
    return quality(config, material, rewired(config, material.original, wiring))


def run_recovery(config: PretrainedExperiment, material: Material, wiring: str, seed: int) -> dict[str, Any]:
    """The rewired model after the fits; the standard wiring has nothing to recover."""
    del seed
    if wiring == "standard":
        return {}
    student, start = rewired(config, material.model(), wiring), time.perf_counter()
    strength = Strength(config.attention_strength, config.down_strength)
    fits = recover(
        student,
        material.original,
        material.streams,
        query_rows=config.query_rows,
        strength=strength,
        report=functools.partial(_say, wiring),
    )
    seconds = time.perf_counter() - start
    worst = max(fit.output for fit in fits)
    found = {"tokens": config.fit_rows * config.row_tok, "seconds": seconds, "worst_layer_error": worst}
    return found | quality(config, material, student)


def run_engine(config: PretrainedExperiment, material: Material, wiring: str, seed: int) -> dict[str, Any]:
    """Engine speed with the rewired model."""
    del seed
    if not config.engine_rows:
        return {"engine_tok_s": NOT_MEASURED}
    model = rewired(config, material.original, wiring)
    return served.speed(model, material.held_out[: config.engine_rows], config.engine_tok)


def compare(config: PretrainedExperiment, workdir: Path, folder: Path, workers: int = 1) -> None:
    """Runs what is not finished: quality wiring by wiring, then the engine; writes results after each."""
    material, done = Material(config, workdir), {}
    stages = {"before": run_before, "after": run_recovery, "engine": run_engine}
    for stage, wiring in _order(config.wirings):
        run = functools.partial(stages[stage], config, material)
        done[stage] = sweep(
            config,
            [(wiring, 0)],
            run,
            workdir / stage,
            workers=workers,
            free=("wirings", "name", "budget_mib"),
        )
        _write(config, material.original.config, done, folder)


def _order(wirings: tuple[str, ...]) -> list[tuple[str, str]]:
    quality_first = [(stage, wiring) for wiring in wirings for stage in ("before", "after")]
    return quality_first + [("engine", wiring) for wiring in wirings]


def table_row(
    config: PretrainedExperiment, model: ModelConfig, wiring: str, stages: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """One wiring's row: memory from its config, quality and speed from its stages."""
    budget, before = config.budget_mib * 2**20, stages["before"]
    # The reference has nothing to recover; a wiring whose fits are not finished has nothing to show.
    after = before if wiring == "standard" else stages.get("after", {})
    return {
        "wiring": wiring,
        "kv_bytes_tok_4k": kv_bytes(model, 4096, KV_DTYPE) // 4096,
        "kv_bytes_tok_32k": kv_bytes(model, 32768, KV_DTYPE) // 32768,
        "nats_before": before["nats"],
        "nats_after": after.get("nats", NOT_MEASURED),
        "tokens": after.get("tokens", 0),
        "seconds": after.get("seconds", 0.0),
        **{f"{name}_before": before[name] for name in ("recall_inside", "recall_beyond")},
        **{f"{name}_after": after.get(name, NOT_MEASURED) for name in ("recall_inside", "recall_beyond")},
        "engine_tok_s": stages.get("engine", {}).get("engine_tok_s", NOT_MEASURED),
        "concurrent_4k": served.concurrent(model, budget, 4096),
        "concurrent_32k": served.concurrent(model, budget, 32768),
    }


def _write(
    config: PretrainedExperiment, original: ModelConfig, done: dict[str, list[dict[str, Any]]], folder: Path
) -> None:
    """The table and the picture of every wiring that has been measured as rewired."""
    by_wiring: dict[str, dict[str, dict[str, Any]]] = {}
    for stage, found in done.items():
        for row in found:
            by_wiring.setdefault(row["variant"], {})[stage] = row
    rows = []
    for wiring in config.wirings:
        stages = by_wiring.get(wiring, {})
        if "before" in stages:
            shared = {key: stages["before"][key] for key in results.SURROUNDINGS}
            rows.append(table_row(config, wired(config, original, wiring), wiring, stages) | shared)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / f"{config.name}.csv", rows, config=config, text=local_text.SOURCE, seed=NO_SEED)
    recovery_plot.draw(folder / f"{config.name}.svg", rows, config.window)


def _say(wiring: str, fit: LayerFit) -> None:
    print(f"{wiring}: layer {fit.layer}, error {fit.middle:.4f}, {fit.output:.4f}", flush=True)


if __name__ == "__main__":
    command("PretrainedExperiment", compare, "runs/pretrained")
