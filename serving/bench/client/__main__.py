"""Load on a server that speaks OpenAI's protocol: latencies, throughput, goodput, each client by itself.

    python -m serving.bench.client --base_url=http://127.0.0.1:8000 --num_prompts=100 --max_concurrency=16
    python -m serving.bench.client --request_rate=8 --burstiness=0.5 --goodput="ttft:500 tpot:50"
    python -m serving.bench.client --dataset_name=generated-shared-prefix --gsp_num_groups=8 --num_prompts=200
    python -m serving.bench.client --duration_s=20 --client="flood concurrency=128" --client="light rate=2"
    python -m serving.bench.client --backend=openai-chat --model=NAME --api_key_env=OPENAI_API_KEY --json

Flags are those of vLLM's `bench serve` and SGLang's `bench_serving` where they mean the same, and may be
written with dashes. --request_rate is an open loop with Gamma arrivals, --max_concurrency a closed loop.
A --client is one more client of a mix, `NAME FIELD=VALUE ...`, and begins from the other flags. Its name is
sent as `user`, its key is the environment variable that `key=` names, `users=100` sends 100 names in turn.

Prompts are token ids where the server tells its vocabulary (/tokenizer_info, or --vocab_size), else text of
so many words, and `usage` says how many tokens they were. A request that fails is not sent again.
The last lines say what this client took itself. Exit status 1 if no request was answered.
"""

import asyncio
import contextlib
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mixattn.tools import cli, files
from mixattn.tools.descriptors import raise_limit
from serving.bench.client import report
from serving.bench.client.connection import ServerAddress
from serving.bench.client.load import LoadGenerator, RouteToCall, ask, prompts_of, times_of
from serving.bench.client.mix import DATASETS, ClientPlan, parse
from serving.bench.client.prompts import PromptToSend, length_range, of_file

PATHS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}

_text, _whole, _real, _switch = (
    flags.DEFINE_string,
    flags.DEFINE_integer,
    flags.DEFINE_float,
    flags.DEFINE_bool,
)
_BACKEND = flags.DEFINE_enum("backend", "openai", list(PATHS), "Completions or chat.")
_BASE_URL = _text("base_url", "http://127.0.0.1:8000", "The server.")
_ENDPOINT = _text("endpoint", None, "Path of the route; the backend's by default.")
_MODEL = _text("model", None, "Name of the model; the first of /v1/models by default.")
_API_KEY_ENV = _text("api_key_env", "OPENAI_API_KEY", "Environment variable that holds the API key, if any.")
_DATASET = flags.DEFINE_enum("dataset_name", "random", list(DATASETS), "Kind of prompts.")
_DATASET_PATH = _text("dataset_path", None, 'File of lines {"prompt": ..., "output_tokens": ...} for custom.')
_NUM_PROMPTS = _whole("num_prompts", 1000, "Requests.", lower_bound=1)
_RATE = _real("request_rate", math.inf, "Requests/s of an open loop; inf = all at once.")
_BURSTINESS = _real("burstiness", 1.0, "Shape of the Gamma arrivals: 1 = Poisson, less = bursts.")
_RAMP = flags.DEFINE_enum("ramp_up_strategy", None, ["linear", "exponential"], "How the rate changes.")
_RAMP_START = _real("ramp_up_start_rps", 1.0, "Requests/s at the start of a ramp.")
_RAMP_END = _real("ramp_up_end_rps", 10.0, "Requests/s at the end of a ramp.")
_CONCURRENCY = _whole("max_concurrency", 0, "Most requests in flight; 0 = any number.", lower_bound=0)
_INPUT_LEN = _whole("random_input_len", 1024, "Prompt tokens.", lower_bound=1)
_OUTPUT_LEN = _whole("random_output_len", 128, "Output tokens.", lower_bound=1)
_RANGE = _real("random_range_ratio", 0.0, "Lengths are uniform in L*(1-r)..L*(1+r), as vLLM means it.")
_GROUPS = _whole("gsp_num_groups", 64, "Groups that share a prefix.", lower_bound=1)
_PREFIX_LEN = _whole("gsp_system_prompt_len", 2048, "Tokens of a group's prefix.", lower_bound=0)
_QUESTION_LEN = _whole("gsp_question_len", 128, "Tokens after the prefix.", lower_bound=1)
_GSP_OUTPUT_LEN = _whole("gsp_output_len", 256, "Output tokens.", lower_bound=1)
_CLIENTS = flags.DEFINE_multi_string(
    "client", [], "A client of a mix: NAME FIELD=VALUE ...; may be repeated."
)
_DURATION = _real("duration_s", 0.0, "Begin no request after so many seconds; 0 = send all.", lower_bound=0)
_VOCAB = _whole("vocab_size", None, "Send random ids below this; 0 = send text.", lower_bound=0)
_SEED = _whole("seed", 0, "Seed of prompts and arrivals.")
_IGNORE_EOS = _switch("ignore_eos", False, "Ask for the full output length.")
_TEMPERATURE = _real("temperature", 0.0, "Temperature.", lower_bound=0)
_EXTRA = _text("extra_request_body", "{}", "JSON object of further fields of every request.")
_TIMEOUT = _real("timeout_s", 600.0, "Seconds for one answer.", lower_bound=0.001)
_WARMUP = _whole(
    "warmup_requests", 1, "Requests before the measurement; the first must succeed.", lower_bound=0
)
_FLUSH = _switch("flush_cache", False, "POST /flush_cache after the warm-up.")
_GOODPUT = flags.DEFINE_multi_string("goodput", [], 'Bounds in ms, e.g. "ttft:500 tpot:50 e2el:2000".')
_METRICS = flags.DEFINE_list("percentile_metrics", list(report.METRICS), "Latencies to report.")
_PERCENTILES = flags.DEFINE_list("metric_percentiles", ["90", "95", "99"], "Percentiles to report.")
_OUTPUT_FILE = _text("output_file", None, "File for the result as JSON.")
_DETAILS = _switch("save_detailed", False, "With every request's times in the JSON.")
_JSON = _switch("json", False, "Print the result as one JSON object instead of tables.")


def main() -> None:
    percentiles, extra = _checked()
    plans = _plans()
    result = asyncio.run(_measure(plans, percentiles, extra))
    if _OUTPUT_FILE.value:
        files.write_text(Path(_OUTPUT_FILE.value), json.dumps(result, indent=1) + "\n")
    if _JSON.value:
        print(json.dumps(result))
    else:
        _draw(result)
    if not result["all"]["completed"]:
        sys.exit(1)


def _checked() -> tuple[list[float], dict[str, Any]]:
    """Percentiles and further body fields.

    Raises:
      ValueError: a flag's value is not what it should be.
    """
    try:
        extra = json.loads(_EXTRA.value)
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise ValueError(f"--extra_request_body={_EXTRA.value} is not a JSON object")
    if unknown := sorted(set(_METRICS.value) - set(report.METRICS)):
        raise ValueError(f"--percentile_metrics names {unknown[0]}; known: {', '.join(report.METRICS)}")
    try:
        percentiles = [float(p) for p in _PERCENTILES.value]
    except ValueError:
        raise ValueError(f"--metric_percentiles={','.join(_PERCENTILES.value)} are not numbers") from None
    if not all(0 < p < 100 for p in percentiles):
        raise ValueError("--metric_percentiles must lie between 0 and 100")
    if (_DATASET.value == "custom") != bool(_DATASET_PATH.value):
        raise ValueError("--dataset_name=custom and --dataset_path=FILE belong together")
    report.parse_goodput(_GOODPUT.value)
    return percentiles, extra


def _plans() -> list[ClientPlan]:
    shared = _DATASET.value == "generated-shared-prefix"
    default = ClientPlan(
        requests=_NUM_PROMPTS.value,
        rate=_RATE.value,
        burstiness=_BURSTINESS.value,
        concurrency=_CONCURRENCY.value,
        input_len=_QUESTION_LEN.value if shared else _INPUT_LEN.value,
        output_len=_GSP_OUTPUT_LEN.value if shared else _OUTPUT_LEN.value,
        range_ratio=_RANGE.value,
        groups=_GROUPS.value if shared else 0,
        prefix_len=_PREFIX_LEN.value if shared else 0,
        duration_s=_DURATION.value,
    )
    plans = [parse(text, default) for text in _CLIENTS.value]
    if not plans:
        default.check()
    names = [plan.name for plan in plans]
    if len(set(names)) < len(names):
        raise ValueError(f"--client names {', '.join(names)}; each needs a name of its own")
    return plans or [default]


def _key(variable: str) -> str:
    if variable and variable != "OPENAI_API_KEY" and variable not in os.environ:
        raise ValueError(f"the environment has no variable {variable} with an API key")
    return os.environ.get(variable, "") if variable else ""


MAX_OPEN, OTHER_FILES = 1 << 16, 64  # connections, and what else is open


async def _measure(
    plans: Sequence[ClientPlan], percentiles: list[float], extra: dict[str, Any]
) -> dict[str, Any]:
    route, vocab = await _route(plans, extra)
    rng = np.random.default_rng(_SEED.value)
    prompts, times = [], []
    ramp = (_RAMP.value, _RAMP_START.value, _RAMP_END.value) if _RAMP.value else None
    for plan in plans:
        prompts.append(_prompts(plan, vocab, rng))
        times.append(times_of(plan, len(prompts[-1]), rng, ramp))
        _say(_described(plan, vocab))
    raise_limit(min(sum(map(len, prompts)), MAX_OPEN) + OTHER_FILES)
    await _warm_up(route, plans[0], prompts[0])
    with _progress(sum(len(p) for p in prompts)) as told:
        load = LoadGenerator(route, told)
        await load.run(plans, prompts, times)
    return _result(load, plans, percentiles)


def _prompts(plan: ClientPlan, vocab: int, rng: np.random.Generator) -> list[PromptToSend]:
    if _DATASET.value == "custom":
        return of_file(Path(_DATASET_PATH.value), plan.requests, plan.output_len)
    return prompts_of(plan, vocab, rng)


async def _route(plans: Sequence[ClientPlan], extra: dict[str, Any]) -> tuple[RouteToCall, int]:
    """How to call the server, and the size of its vocabulary (0 = unknown: text is sent)."""
    server = ServerAddress.parse(_BASE_URL.value)
    keys = {"": _key(_API_KEY_ENV.value)} | {plan.name: _key(plan.key) for plan in plans if plan.key}
    key = keys.get(plans[0].name) or keys[""]
    chat = _BACKEND.value == "openai-chat"
    try:
        model = _MODEL.value or await _first_model(server, key)
        vocab = 0 if chat else _VOCAB.value
        if vocab is None:
            vocab = await _vocabulary(server, key)
    except (OSError, TimeoutError) as why:
        raise ValueError(f"--base_url={_BASE_URL.value} does not answer: {why}") from why
    route = RouteToCall(
        server=server,
        path=_ENDPOINT.value or PATHS[_BACKEND.value],
        chat=chat,
        model=model,
        ignore_eos=_IGNORE_EOS.value,
        temperature=_TEMPERATURE.value,
        extra=extra,
        keys=keys,
        timeout_s=_TIMEOUT.value,
    )
    return route, vocab


async def _first_model(server: ServerAddress, key: str) -> str:
    answer = await ask(server, "/v1/models", key=key)
    try:
        return str(json.loads(answer.body)["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        said = answer.body[:200].decode("utf-8", "replace")
        raise ValueError(f"/v1/models answered {answer.status} {said}; name the model by --model") from None


async def _vocabulary(server: ServerAddress, key: str) -> int:
    answer = await ask(server, "/tokenizer_info", key=key)
    try:
        return int(json.loads(answer.body)["vocab_size"])
    except (ValueError, KeyError, TypeError):
        return 0


async def _warm_up(route: RouteToCall, plan: ClientPlan, prompts: Sequence[PromptToSend]) -> None:
    load = LoadGenerator(route)
    for i in range(_WARMUP.value):
        record = await load.once(plan, prompts[i % len(prompts)])
        if record.error and not i:
            raise ValueError(f"the first request failed: {record.error}")
    if _FLUSH.value:
        answer = await ask(route.server, "/flush_cache", {}, route.keys.get(plan.name) or route.keys[""])
        if answer.status != 200:
            raise ValueError(f"--flush_cache: the server answered {answer.status}")


def _result(load: LoadGenerator, plans: Sequence[ClientPlan], percentiles: list[float]) -> dict[str, Any]:
    bounds = report.parse_goodput(_GOODPUT.value)
    metrics = _METRICS.value
    result: dict[str, Any] = {
        "arguments": {f.name: f.value for f in flags.FLAGS.get_key_flags_for_module(sys.modules["__main__"])},
        "all": report.figures(load.records, percentiles, bounds, metrics),
        "clients": {
            plan.name: report.figures(
                [r for r in load.records if r.client == plan.name], percentiles, bounds, metrics
            )
            for plan in plans
            if plan.name
        },
        "this_client": report.own_cost(load.cost, load.records),
    }
    if _DETAILS.value:
        result["requests"] = [vars(record) for record in load.records]
    return result


# ---- what the terminal shows ----


def _described(plan: ClientPlan, vocab: int) -> str:
    low, high = length_range(plan.input_len, plan.range_ratio)
    least, most = length_range(plan.output_len, plan.range_ratio)
    kind = "tokens" if vocab else "words"
    prefix = f"{plan.groups} prefixes of {plan.prefix_len} and " if plan.groups else ""
    many = (
        f"closed loop of {plan.concurrency}"
        if math.isinf(plan.rate) and plan.concurrency
        else f"{plan.rate:g} requests/s"
    )
    lengths = (
        "from a file"
        if _DATASET.value == "custom"
        else f"{prefix}{low}..{high} {kind}, output {least}..{most}"
    )
    return f"{plan.name or 'load'}: {plan.requests} requests, {many}, prompts {lengths}"


@contextlib.contextmanager
def _progress(total: int) -> Any:
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("requests", total=total)
        yield lambda record: bar.advance(task)


def _draw(result: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    columns = {"all": result["all"], **result["clients"]}
    for title, of in columns.items():
        done = f"{of['completed']} answered, {of['failed']} failed, {of['duration_s']:.2f} s"
        rates = f"{of['request_throughput']:.2f} requests/s, {of['output_throughput']:.1f} output tokens/s"
        console.print(f"{title}: {done}; {rates}; at most {of['max_concurrent_requests']} in flight")
        if "request_goodput" in of:
            console.print(f"  goodput {of['request_goodput']:.2f} requests/s")
        for error, count in of["errors"].items():
            console.print(f"  {count} x {error}", markup=False)
    console.print(_table(columns))
    own = result["this_client"]
    share, each_us = own["core_share"], own["cpu_us_per_event"]
    cost = f"{own['cpu_s']:.2f} s of CPU, {share:.0%} of a core, {each_us:.1f} µs an event"
    late = own["sent_late_ms"].get("p99")
    console.print(
        f"this client: {cost}" + (f", sent late by {late:.2f} ms at p99" if late is not None else "")
    )
    if own["may_be_the_bottleneck"]:
        console.print("this client was nearly as busy as it can be: the figures may be its own")


def _table(columns: dict[str, Any]) -> Table:
    table = Table("", "latency, ms", *(head for head in _heads(columns)))
    for title, of in columns.items():
        for name, values in of["latency_ms"].items():
            if values:
                table.add_row(title, name, *(f"{values[head]:.2f}" for head in _heads(columns)))
    return table


def _heads(columns: dict[str, Any]) -> list[str]:
    for of in columns.values():
        for values in of["latency_ms"].values():
            if values:
                return list(values)
    return []


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def underscored(argv: Sequence[str]) -> list[str]:
    """Flags that have dashes in their names, as other clients write them, in our spelling."""
    made = []
    for word in argv:
        name, is_set, value = word.partition("=")
        made.append(
            name.replace("-", "_").replace("__", "--", 1) + is_set + value if name.startswith("--") else word
        )
    return made


if __name__ == "__main__":
    cli.run(main, underscored(sys.argv))
