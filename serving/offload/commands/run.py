"""Answers a file of requests with a mixture model larger than the memory it may use.

python -m serving.offload run --checkpoint=DIR --device_memory_gb=0.5 --requests=FILE --workdir=W --dry_run
python -m serving.offload run --checkpoint=DIR --device_memory_gb=0.5 --requests=FILE --workdir=W
python -m serving.offload run ... --mode=cache --cache_policy=frequency     experts that are used often stay
python -m serving.offload run ... --mode=cache --prefetch                   the next layer's are guessed
python -m serving.offload run ... --quantize=int8                           experts in 8 bits: more fit
python -m serving.offload run ... --gantt=pass.svg                          the last pass as it was measured

The plan is chosen from the one number, printed, and compared with what was measured after the run. Requests
are JSON lines (see serving.main --help). W/answers.jsonl gets one line as each request finishes; the same
command continues after Ctrl-C or kill -9, and ends with the same file as a run that nobody disturbed. Rates
of this machine are measured at the first start and kept in W/rates.json. On a machine without an accelerator
the memory counts everything that this process takes beyond an empty one.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from mixattn.tools.progress import ProgressLines
from serving import fair, model_engine
from serving.config import QUANTIZE, EngineConfig
from serving.offline import fingerprints, requests_file
from serving.offline.answers import FAILED, Answers
from serving.offline.requests_file import AskedLine
from serving.offload import journal
from serving.offload.commands import command_line
from serving.offload.commands.run_report import describe, show_measured, show_plan
from serving.offload.machine_plan import GIB, MODES, MachinePlan, MachinePlanner, MachineWorkload
from serving.offload.schedule import SCHEDULES
from serving.request import Request

if TYPE_CHECKING:
    from serving.offload.runtime.build import Offloaded
    from serving.offload.runtime.checkpoint import MixtureCheckpoint
    from serving.offload.runtime.sources import ExpertSource

FLAGS = flags.FLAGS
CACHE_POLICIES = ("lru", "frequency")
ANSWERS, RATES = "answers.jsonl", "rates.json"


def start(argv: list[str]) -> None:
    flags.DEFINE_string("checkpoint", None, "Hugging Face directory of a mixture model.")
    flags.DEFINE_float("device_memory_gb", None, "GiB that the run may take.")
    flags.DEFINE_float(
        "host_memory_gb", None, "GiB of host memory; with it experts are held there, not read."
    )
    flags.DEFINE_string("requests", None, "File of requests, JSON lines.")
    flags.DEFINE_string("workdir", None, "Folder of answers and rates.")
    flags.DEFINE_string("mode", None, f"Force {' or '.join(MODES)}; the plan chooses by default.")
    flags.DEFINE_string("schedule", None, f"Force one of {', '.join(SCHEDULES)}.")
    flags.DEFINE_string("cache_policy", "lru", f"One of {', '.join(CACHE_POLICIES)}.")
    flags.DEFINE_bool("prefetch", False, "In mode cache, read what the next layer's router would choose now.")
    flags.DEFINE_enum("quantize", "", QUANTIZE, "int8: experts in 8 bits, rounded as they are read.")
    flags.DEFINE_string("policy", "fcfs", "Scheduling policy of requests (see serving.fair).")
    flags.DEFINE_integer("max_batch", None, "Rows of a pass at most; as many as requests by default.")
    flags.DEFINE_float("throttle_mib", None, "Read experts no faster than this, MiB/s: a modelled link.")
    flags.DEFINE_string(
        "gantt", None, "Draw the last pass into this PNG or SVG, and a Chrome trace beside it."
    )
    flags.DEFINE_bool("dry_run", False, "Print the plan and stop.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of tables.")
    logging.set_verbosity(logging.ERROR)
    command_line.run(__name__, _main, argv)


def _main() -> None:
    _check_flags()
    from serving.offload.runtime import placement, sources
    from serving.offload.runtime.checkpoint import locate

    checkpoint = locate(FLAGS.checkpoint, FLAGS.quantize)
    lines, decode = _lines(checkpoint)
    requests = [line.request for line in lines if line.request is not None]
    workdir = Path(FLAGS.workdir)
    # Refused before anything is written.
    settings = {"quantize": FLAGS.quantize} if FLAGS.quantize else {}
    mark = fingerprints.of_model(checkpoint.path, **settings)
    journal.refuse_others(workdir / ANSWERS, requests, mark)
    _check_host_memory(checkpoint)
    throttle = FLAGS.throttle_mib * 2**20 if FLAGS.throttle_mib else None
    source = sources.open_source(
        checkpoint,
        in_host_memory=FLAGS.host_memory_gb is not None,
        throttle_Bps=throttle,
        devices=placement.accelerator(),
    )
    try:
        planner = _planner(checkpoint, source, requests, workdir)
        plan = planner.best(FLAGS.mode, FLAGS.schedule)
        report = describe(planner, plan, source.way, FLAGS.mode, FLAGS.schedule)
        if FLAGS.dry_run:
            _print(report)
            return
        if not FLAGS.json:
            show_plan(report)
        workdir.mkdir(parents=True, exist_ok=True)
        carried = {line.id: line.carried for line in lines}
        kept = journal.answers(workdir / ANSWERS, requests, mark, carried)
        report |= _run(checkpoint, source, plan, lines, requests, kept, decode)
    finally:
        source.close()
    journal.put_in_order(workdir / ANSWERS, [line.id for line in lines])
    if FLAGS.json:
        print(json.dumps(report))
    else:
        show_measured(report)
    if report["refused"]:
        print(f"error: {report['refused']} of {len(lines)} requests have no answer", file=sys.stderr)
        sys.exit(1)


def _check_flags() -> None:
    for name in ("checkpoint", "device_memory_gb", "requests", "workdir"):
        if FLAGS[name].value is None:
            raise ValueError(f"--{name} is missing; --help shows an example")
    if not FLAGS.device_memory_gb > 0:
        raise ValueError(f"--device_memory_gb is {FLAGS.device_memory_gb}; it must be above 0")
    for name, value, known in (
        ("mode", FLAGS.mode, MODES),
        ("schedule", FLAGS.schedule, tuple(SCHEDULES)),
        ("cache_policy", FLAGS.cache_policy, CACHE_POLICIES),
        ("policy", FLAGS.policy, fair.POLICIES),
    ):
        if value is not None and value not in known:
            raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    if FLAGS.max_batch is not None and FLAGS.max_batch < 1:
        raise ValueError(f"--max_batch is {FLAGS.max_batch}; a pass has at least 1 row")
    if FLAGS.gantt and Path(FLAGS.gantt).suffix not in (".png", ".svg"):
        raise ValueError(f"--gantt={FLAGS.gantt} must end in .png or .svg")
    if not Path(FLAGS.requests).exists():
        raise ValueError(f"{FLAGS.requests} does not exist")


def _lines(checkpoint: "MixtureCheckpoint") -> tuple[list[AskedLine], Any]:
    """The file's lines, those that can never be served with the reason; and ids -> text."""
    from mixattn import hf

    path = checkpoint.path
    tokenizer = hf.load_tokenizer(path) if hf.has_tokenizer(path) else None
    encode = None if tokenizer is None else lambda text: hf.encode(tokenizer, text)
    lines = requests_file.read_lines(Path(FLAGS.requests), encode)
    longest = model_engine.longest_tok(checkpoint.config)

    def checked(line: AskedLine) -> AskedLine:
        if line.request is None:
            return line
        need = len(line.request.prompt_ids) + line.request.sampling.max_tokens
        if need > longest:
            why = f"request {line.id!r} needs {need} tokens; the model's context has {longest}"
            return dataclasses.replace(line, request=None, error=why)
        return line

    lines = [checked(line) for line in lines]
    if not any(line.request for line in lines):
        why = f"; line {lines[0].number}: {lines[0].error}" if lines else ""
        raise ValueError(f"{FLAGS.requests} has {len(lines)} lines and no request to answer{why}")
    return lines, None if tokenizer is None else tokenizer.decode


def _check_host_memory(checkpoint: "MixtureCheckpoint") -> None:
    if FLAGS.host_memory_gb is None:
        return
    one = sum(array.size * array.dtype.itemsize for array in checkpoint.arrays)
    need = one * len(checkpoint.pages) / GIB
    if need > FLAGS.host_memory_gb:
        raise ValueError(f"--host_memory_gb is {FLAGS.host_memory_gb}, but the experts have {need:.3f} GiB")


def _planner(
    checkpoint: "MixtureCheckpoint", source: "ExpertSource", requests: Sequence[Request], workdir: Path
) -> MachinePlanner:
    from serving.offload.runtime import build, rates

    longest = max(len(r.prompt_ids) + r.sampling.max_tokens for r in requests)
    rows = sum(r.sampling.n for r in requests)
    workload = MachineWorkload(min(rows, FLAGS.max_batch or rows), longest)
    kept = None if FLAGS.dry_run and not workdir.exists() else workdir / RATES
    # A plan that cannot fit is refused before anything is measured or written.
    nothing = rates.MachineRates(1.0, 1.0, 1.0)
    build.planner(checkpoint, nothing, workload, FLAGS.device_memory_gb * GIB).best(
        FLAGS.mode, FLAGS.schedule
    )
    measured = rates.rates(checkpoint, source, kept)
    return build.planner(checkpoint, measured, workload, FLAGS.device_memory_gb * GIB, source)


def _run(
    checkpoint: "MixtureCheckpoint",
    source: "ExpertSource",
    plan: MachinePlan,
    lines: Sequence[AskedLine],
    requests: Sequence[Request],
    kept: Answers,
    decode: Any,
) -> dict[str, Any]:
    from serving.engine.program_cache import ProgramCache, default_folder
    from serving.offload.runtime import build

    missing, refused = kept.missing, 0
    totals: dict[str, Any] = {"passes": 0, "wall_s": 0.0, "read_s": 0.0, "compute_s": 0.0, "bytes": 0}
    made = None
    try:
        for line in lines:
            if line.error:
                kept.write_error(line.id, line.number, line.error)
                refused += 1
        if missing:
            longest = max(len(r.prompt_ids) + r.sampling.max_tokens for r in requests)
            base = EngineConfig(policy=FLAGS.policy, eos_ids=model_engine.eos_ids(checkpoint.path))
            base = dataclasses.replace(
                base,
                penalties=any(r.sampling.has_penalties for r in requests),
                logprobs=max((r.sampling.top for r in requests), default=-1),
                prompt_logprobs=any(r.sampling.prompt_logprobs is not None for r in requests),
            )
            config = build.engine_config(checkpoint, plan.rows, plan.parts, longest, base)
            made = build.build(
                checkpoint,
                source,
                plan,
                config,
                cache_policy=FLAGS.cache_policy,
                prefetch=FLAGS.prefetch,
                decode=decode,
                program_cache=ProgramCache(default_folder()),
            )
            refused += _serve(made, missing, kept, totals)
    finally:
        kept.close()
    figures = {"answered": len(missing), "kept": len(requests) - len(missing), "refused": refused, **totals}
    if made is not None:
        figures |= _of_cache(made)
        if FLAGS.gantt and made.runner.measured is not None:
            _draw(made)
    return {**figures, "load_average": os.getloadavg()[0]}


def _serve(made: "Offloaded", missing: Sequence[Request], kept: Answers, totals: dict[str, Any]) -> int:
    """Runs passes until every request has its answer; the number that were refused."""
    engine, refused, done, tokens = made.engine, 0, 0, 0
    for request in missing:
        engine.submit(request)
    wanted = sum(r.sampling.max_tokens * r.sampling.n for r in missing)
    began_s = time.monotonic()
    with ProgressLines(quiet=FLAGS.json) as lines:
        line = lines.add(wanted)
        while engine.live:
            before_s, before = time.perf_counter(), made.slots.moved_bytes
            deltas = engine.step()
            _count(made, totals, time.perf_counter() - before_s, made.slots.moved_bytes - before)
            for delta in deltas:
                tokens += len(delta.ids)
                if delta.output is not None:
                    kept.write(journal.timeless(delta.output))
                    done += 1
                    refused += delta.output.finish_reason in FAILED
            passed_s = time.monotonic() - began_s
            # Outputs may end early, so what is left is at most this.
            left_s = passed_s / max(1, tokens) * (wanted - tokens)
            note = f"{tokens / max(passed_s, 1e-9):.1f} tokens/s, at most {left_s:.0f} s left"
            line.update(tokens, f"{done}/{len(missing)} requests  {note}")
    return refused


def _count(made: "Offloaded", totals: dict[str, Any], wall_s: float, nbytes: int) -> None:
    run = made.runner.measured
    if run is None:
        return
    totals["passes"] += 1
    totals["wall_s"] += wall_s
    totals["bytes"] += nbytes
    for span in run.spans:
        lane = "read_s" if span.task.kind == "weights" else "compute_s"
        totals[lane] += span.end_s - span.start_s


def _of_cache(made: "Offloaded") -> dict[str, Any]:
    cache = getattr(made.runner, "cache", None)
    if cache is None:
        return {}
    counts = dataclasses.asdict(cache.counts) | {"hit_rate": round(cache.counts.hit_rate, 4)}
    return {"cache": counts, "cached_passes": made.runner.passes}  # type: ignore[union-attr]


def _draw(made: "Offloaded") -> None:
    from mixattn.tools import files
    from serving.offload import pictures  # imports matplotlib
    from serving.offload.lanes import thread_of

    assert made.runner.measured is not None
    out, passes = Path(FLAGS.gantt), {f"{made.plan.mode} {made.plan.schedule}": made.runner.measured.spans}
    title = "Measured: the last pass of the run, a row per thread"
    pictures.draw_gantt(passes, out, title=title, row_of=thread_of)
    files.write_json(out.with_suffix(".trace.json"), pictures.chrome_trace(passes, thread_of))
    print(f"wrote {out} and {out.with_suffix('.trace.json')}", file=sys.stderr)


def _print(report: dict[str, Any]) -> None:
    if FLAGS.json:
        print(json.dumps(report))
    else:
        show_plan(report)
