"""Serves a model offline: the requests of a file, or several clients under several policies, with figures in
WORKDIR/serve.

    python -m serving.main --model=models/smollm2 --requests=a.jsonl --out=b.jsonl
    python -m serving.main --model=FILE.gguf --requests=a.jsonl --out=b.jsonl --kv_memory=1GiB --policy=vtc
    python -m serving.main --config=configs/demo.py --workdir=runs/demo
    python -m serving.main --workdir=runs/demo --requests=a.jsonl --out=b.jsonl

Reads WORKDIR/model and WORKDIR/heldout.jsonl, which `python -m train.main` writes. Writes
serve/POLICY.events.jsonl (the scheduling log) and serve/summary.json (the input of `serving.offline.report`).
With --requests it answers the lines of that file instead (fields: see `serving.offline.requests_file`) and
writes one line per answer; the same command resumes a run that was stopped, and does again what failed or was
asked differently. A line that cannot be asked gets an error for an answer and the exit code is 1; --strict
refuses the file instead. --model names a Hugging Face directory or a GGUF file instead of WORKDIR/model.
Without --config the engine's sizes follow from the model, the requests and --kv_memory, and sampling defaults
are those of the model's generation_config.json.

Programs are compiled at the start, listed with their compile times, and kept in ~/.cache/mixattn/programs,
except in a comparison of policies (there JAX_COMPILATION_CACHE_DIR=DIR in the environment keeps them).
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from mixattn.tools import cli, files
from mixattn.tools.progress import ProgressLines
from serving import model_engine, request_checks
from serving.config import KV_DTYPE_HELP, KV_DTYPES, QUANTIZE, EngineConfig
from serving.offline import chat_lines, fingerprints, requests_file
from serving.offline.answers import FAILED, Answers
from serving.offline.clients import Arrivals
from serving.offline.console import RequestLine, show_summary
from serving.offline.experiment import Serve
from serving.offline.requests_file import AskedLine
from serving.request import Request

if TYPE_CHECKING:  # jax is loaded only after flags and files have been checked
    from tokenizers import Tokenizer

    from mixattn.spec import ModelConfig
    from serving.engine.engine import Engine
    from serving.offline.compare import PolicyReport

_JSON = flags.DEFINE_bool("json", False, "Print the table as JSON instead.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished training run.")
_MODEL = flags.DEFINE_string("model", None, "Hugging Face directory or GGUF file to serve.")
_KV_MEMORY = flags.DEFINE_string(
    "kv_memory", None, "Without --config: bytes for K/V, e.g. 1GiB; half of the free memory by default."
)
_MAX_MODEL_LEN = flags.DEFINE_integer(
    "max_model_len",
    None,
    "Without --config: longest request in tokens; the model's context by default.",
    lower_bound=2,
)
_DTYPE = flags.DEFINE_string(
    "dtype", None, "Dtype of the weights in memory, e.g. bfloat16; the model's by default."
)
_QUANTIZE = flags.DEFINE_enum(
    "quantize", "", QUANTIZE, "int8: weights in 8 bits, rounded as they are read; as they are by default."
)
_KV_DTYPE = flags.DEFINE_enum("kv_dtype", None, KV_DTYPES, f"Without --config: {KV_DTYPE_HELP}")
_POLICY = flags.DEFINE_string("policy", None, "Without --config: scheduling policy, fcfs by default.")
_REQUESTS = flags.DEFINE_string("requests", None, "Answer the requests of this file of JSON lines.")
_OUT = flags.DEFINE_string("out", None, "File for the answers to --requests; an existing one is resumed.")
_STRICT = flags.DEFINE_bool("strict", False, "Refuse all of --requests if a line is bad.")


def main() -> None:
    if flags.FLAGS["config"].value is None and (_MODEL.value or (_WORKDIR.value and _REQUESTS.value)):
        answer(None)
        return
    for flag in (_KV_MEMORY, _KV_DTYPE, _MAX_MODEL_LEN, _POLICY):
        if flag.value is not None:
            raise ValueError(
                f"--{flag.name} is for runs without --config; override the config's field instead"
            )
    serve = getattr(cli.config(), "serve", None)
    if serve is None:
        raise ValueError("--config has no field `serve`; name one that serves, e.g. configs/demo.py")
    if bool(_REQUESTS.value) != bool(_OUT.value):
        raise ValueError(f"--requests={_REQUESTS.value} and --out={_OUT.value} go together")
    if _REQUESTS.value:
        answer(serve.engine)
        return
    if not _WORKDIR.value:
        raise ValueError("--workdir is missing; name the folder of a training run, e.g. --workdir=runs/demo")
    if _QUANTIZE.value:
        raise ValueError(
            f"--quantize={_QUANTIZE.value} goes with --requests; a comparison has it in its config's engine"
        )
    workdir = Path(_WORKDIR.value)
    documents = read_documents(workdir / "heldout.jsonl")
    summary = compare_policies(serve, workdir, documents)
    files.write_json(workdir / "serve" / "summary.json", summary)
    if _JSON.value:
        print(json.dumps({k: v["table"] for k, v in summary["policies"].items()}))
    else:
        show_summary(summary)


def answer(config: EngineConfig | None) -> None:
    """Answers the requests of --requests that --out does not hold yet; None = an engine made for them.

    Everything that can be refused is refused before the model is loaded. A line that cannot be asked gets an
    error for an answer, and the exit code is 1.
    """
    model_path = Path(_MODEL.value) if _MODEL.value else Path(_WORKDIR.value or ".") / "model"
    if not (_REQUESTS.value and _OUT.value):
        raise ValueError(f"--requests={_REQUESTS.value} and --out={_OUT.value} go together")
    if not model_path.is_file() and not (model_path / "config.json").exists():
        raise ValueError(
            f"{model_path} holds no model; name a training run by --workdir or a model by --model"
        )
    if not Path(_REQUESTS.value).exists():
        raise ValueError(f"{_REQUESTS.value} does not exist")
    budget = _kv_bytes() if config is None else 0  # a wrong size is refused before the model is read
    from mixattn import hf

    tokenizer = hf.load_tokenizer(model_path) if hf.has_tokenizer(model_path) else None
    model_config, eos = hf.read_config(model_path), model_engine.eos_ids(model_path)
    lines = _within_limits(_read_lines(model_path, tokenizer), model_config, config, eos, tokenizer)
    if _STRICT.value:
        requests_file.refuse_bad(Path(_REQUESTS.value), lines)
    requests = [line.request for line in lines if line.request is not None]
    if config is None:
        config = model_engine.engine_config(
            model_config,
            requests,
            kv_bytes=budget,
            max_model_tok=_MAX_MODEL_LEN.value or 0,
            kv_dtype=_KV_DTYPE.value or "",
            policy=_POLICY.value or "fcfs",
        )
    # The checkpoint's end-of-text ids stop a request, unless the config names other ids.
    config = dataclasses.replace(config, eos_ids=config.eos_ids or eos)
    stored: dict[str, Any] = {"quantize": _QUANTIZE.value or config.quantize, "kv_dtype": config.kv_dtype}
    if config.keep.slab_tok:
        stored["keep"] = sorted(dataclasses.asdict(config.keep).items())
    rounded = {name: value for name, value in stored.items() if value}
    mark = fingerprints.of_model(model_path, dtype=_DTYPE.value, eos_ids=config.eos_ids, **rounded)
    carried = {line.id: line.carried for line in lines}
    answers = Answers(Path(_OUT.value), requests, model=mark, carried=carried)
    missing = answers.missing
    failed = {line.number: line.error for line in lines if line.error}
    try:
        for line in lines:
            if line.error:
                answers.write_error(line.id, line.number, line.error)
        numbers = {line.id: line.number for line in lines}
        stats = _answer(config, model_path, tokenizer, missing, answers, numbers, failed) if missing else {}
    finally:
        answers.close()
    figures = {
        "answered": len(missing)
        - sum(number in failed for number in map(numbers.get, (r.id for r in missing))),
        "kept": len(requests) - len(missing),
        **({"changed": answers.changed} if answers.changed else {}),
        **({"errors": len(failed)} if failed else {}),
        **stats,
    }
    print(json.dumps(figures) if _JSON.value else ", ".join(f"{k} {v}" for k, v in figures.items()))
    if failed:
        shown = "; ".join(f"line {number}: {why}" for number, why in sorted(failed.items())[:5])
        more = f" (and {len(failed) - 5} more)" if len(failed) > 5 else ""
        print(f"error: {len(failed)} of {len(lines)} requests have no answer: {shown}{more}", file=sys.stderr)
        sys.exit(1)


def _read_lines(model_path: Path, tokenizer: "Tokenizer | None") -> list[AskedLine]:
    from mixattn import hf

    if tokenizer is None:
        return requests_file.read_lines(Path(_REQUESTS.value or ""), None)
    encode = lambda text: hf.encode(tokenizer, text)  # noqa: E731
    chat = chat_lines.renderer(model_path, tokenizer)
    defaults = model_engine.sampling_defaults(hf.generation_settings(model_path))
    return requests_file.read_lines(Path(_REQUESTS.value or ""), encode, chat, defaults)


def _within_limits(
    lines: Sequence[AskedLine],
    model: "ModelConfig",
    config: EngineConfig | None,
    eos: tuple[int, ...],
    tokenizer: "Tokenizer | None",
) -> list[AskedLine]:
    """The lines; a request that the model or the engine can never serve is an error of its line."""
    longest = model_engine.longest_tok(model, _MAX_MODEL_LEN.value or 0)

    def checked(line: AskedLine) -> AskedLine:
        if (request := line.request) is None:
            return line
        need = len(request.prompt_ids) + request.sampling.max_tokens
        # Without a config the engine is made with what the requests need.
        suited = config or EngineConfig(
            max_request_tok=max(need, 2),
            eos_ids=eos,
            penalties=True,
            logprobs=max(0, request.sampling.top),
            prompt_logprobs=True,
        )
        try:
            if config is None and need > longest:
                raise ValueError(model_engine.too_long(request.id, need, longest))
            request_checks.check(request, model, suited, decodes=tokenizer is not None)
        except ValueError as why:
            return dataclasses.replace(line, request=None, error=str(why))
        return line

    return [checked(line) for line in lines]


def _kv_bytes() -> int:
    """The K/V budget; says in one line what it is where nobody named it."""
    if _KV_MEMORY.value:
        return model_engine.parse_bytes(_KV_MEMORY.value)
    free = model_engine.free_bytes()
    budget = int(free * model_engine.FREE_SHARE)
    gib = f"{budget / 2**30:.1f} GiB of the {free / 2**30:.1f} GiB that are free"
    print(f"K/V may take up to {gib} (--kv_memory names another size)", file=sys.stderr)
    return budget


def _answer(
    config: EngineConfig,
    path: Path,
    tokenizer: "Tokenizer | None",
    requests: Sequence[Request],
    answers: Answers,
    numbers: Mapping[str, int],
    failed: dict[int, str],
) -> dict[str, Any]:
    """Writes the outputs of `requests` to `answers`; returns figures of the engine.

    Args:
      numbers: id -> the number of its line.
      failed: line -> why it has no answer; extended.
    """
    from serving.engine.program_cache import ProgramCache, default_folder
    from serving.loading import load_engine

    with ProgressLines() as lines:
        line = RequestLine(lines, "answer", sum(r.sampling.n for r in requests))
        decode = None if tokenizer is None else tokenizer.decode
        cache = ProgramCache(default_folder())
        engine = load_engine(
            path,
            config,
            dtype=_DTYPE.value,
            quantize=_QUANTIZE.value,
            report=line.compiled,
            decode=decode,
            program_cache=cache,
        )
        queue = iter(_fitting(engine, requests, answers, numbers, failed))
        while True:
            # Four times the slots: enough for the policy to choose from, and the queue stays short.
            for request in itertools.islice(queue, max(0, 4 * engine.config.max_slots - len(engine.streams))):
                engine.submit(request)
            if not engine.live:
                break
            for delta in engine.step():
                line.delta(delta)
                if delta.output is not None:
                    answers.write(delta.output)
                    if delta.output.finish_reason in FAILED:
                        failed[numbers[delta.id]] = _WHY[delta.output.finish_reason]
    stats = engine.stats()
    return {
        "output_tok": stats.output_tok,
        "hit_rate": round(stats.hit_rate, 3),
        "occupancy": round(stats.occupancy, 3),
        "preemptions": stats.preemptions,
        "host_s": round(stats.host_s, 3),
        "device_s": round(stats.device_s, 3),
    }


# Why an output that failed did.
_WHY = {
    "error": "the model's logits were not finite, or a step failed",
    "refused": "the scheduling policy refused it",
}


def _fitting(
    engine: "Engine",
    requests: Sequence[Request],
    answers: Answers,
    numbers: Mapping[str, int],
    failed: dict[int, str],
) -> Iterator[Request]:
    """The requests that the engine's memory holds, as they are asked for; the others are errors."""
    for request in requests:
        try:
            engine.check(request)
        except ValueError as why:
            failed[numbers[request.id]] = str(why)
            answers.write_error(request.id, numbers[request.id], str(why))
        else:
            yield request


def compare_policies(serve: Serve, workdir: Path, documents: list[list[int]]) -> dict[str, Any]:
    """Serves the workload under every policy; returns the contents of summary.json."""
    from mixattn import hf
    from serving.offline import compare

    model, config = hf.load(workdir / "model")
    tokenizer = hf.load_tokenizer(workdir / "model")
    (workdir / "serve").mkdir(exist_ok=True)
    summary: dict[str, Any] = {"policies": {}, "memory": compare.kv_memory(config, [256, 1024, 4096])}
    programs = None  # compiled once, shared by all policies
    with ProgressLines() as lines:
        for policy in serve.policies:
            line = RequestLine(lines, f"serve {policy}", serve.workload.requests)
            run = compare.run(model, serve, policy, documents, line.delta, line.compiled, programs)
            programs = run.programs
            log = "".join(json.dumps(event) + "\n" for event in run.events)
            files.write_text(workdir / "serve" / f"{policy}.events.jsonl", log)
            kept = {"table": run.table, "curves": run.curves, "gap_curve": run.gap_curve}
            summary["policies"][policy] = kept
            summary.setdefault("completions", completions(run, serve, documents, tokenizer))
    return summary


def completions(
    run: "PolicyReport", serve: Serve, documents: list[list[int]], tokenizer: "Tokenizer"
) -> list[dict[str, str]]:
    """A few outputs as text, each with the last 48 tokens of its prompt."""
    arrivals = Arrivals(serve.workload, documents)
    prompts = {r.id: r.prompt_ids for r in arrivals.due(0, idle=True)}
    kept = [o for o in run.outputs if o.id in prompts][: serve.completions]
    return [
        {
            "client": o.client,
            "prompt": tokenizer.decode(list(prompts[o.id])[-48:]),
            "output": tokenizer.decode(o.output_ids),
        }
        for o in kept
    ]


def read_documents(path: Path) -> list[list[int]]:
    """Held-out documents, one JSON object with "ids" per line.

    Raises:
      ValueError: the file is missing, empty, or a line (named by number) is not such an object.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; run python -m train.main with this --workdir first")
    documents = []
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                ids = json.loads(line)["ids"]
                if not all(type(i) is int for i in ids):
                    raise TypeError("ids are not integers")
            except (ValueError, KeyError, TypeError) as why:
                raise ValueError(f"{path} line {number} is not a document: {why}") from why
            documents.append(ids)
    if not documents:
        raise ValueError(f"{path} holds no documents")
    return documents


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    cli.define_config()
    cli.run(main)
