"""The command line of the server: flags to options. Imports no jax."""

import dataclasses
import ipaddress
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from serving import fair, model_engine
from serving.config import KV_DTYPE_HELP, KV_DTYPES, QUANTIZE, EngineConfig
from serving.http.keys import KeyRing
from serving.http.listening import listen
from serving.http.options import StartOptions, served_name
from serving.http.settings import HttpLimits

_OVERRIDES: dict[str, str] = {}  # --engine.FIELD=VALUE, taken off before absl sees them


def define_flags(limits: type[HttpLimits], help: dict[str, str]) -> None:
    """Declares the flags; each limit is one."""
    text, whole, real, switch = (
        flags.DEFINE_string,
        flags.DEFINE_integer,
        flags.DEFINE_float,
        flags.DEFINE_bool,
    )
    text("checkpoint", None, "Hugging Face directory or GGUF file to serve.")
    text("model", None, "Another name of --checkpoint, as in serving.main.")
    text("served_model_name", None, "The model's name in requests; its folder's by default.")
    text("host", "127.0.0.1", "Address to listen on; one that others can reach needs --api_keys.")
    whole("port", None, "Port to listen on; 0 = any free one.", lower_bound=0, upper_bound=65535)
    text("kv_memory", None, "Bytes for K/V, e.g. 512MiB; half of the free memory by default.")
    whole("max_model_len", None, "Longest request in tokens; the model's context by default.", lower_bound=2)
    whole("slots", None, "Outputs that run at once; from --kv_memory, at most 16, by default.", lower_bound=1)
    text("policy", None, "Scheduling policy: vtc by default, hvtc with --api_keys.")
    text("dtype", None, "Dtype of the weights in memory, e.g. bfloat16; the model's by default.")
    flags.DEFINE_enum(
        "quantize", "", QUANTIZE, "int8: weights in 8 bits, rounded as they are read; as they are by default."
    )
    flags.DEFINE_enum("kv_dtype", "", KV_DTYPES, KV_DTYPE_HELP)
    text("chat_template", None, "File with a chat template to use instead of the checkpoint's.")
    text("api_keys", None, "File of keys, one `name sha256 [weight] [limits]` a line.")
    text("event_log", None, "File for the engine's scheduling events, one JSON object a line.")
    switch("metrics_compat", False, "Export metrics under the names of vLLM and SGLang too.")
    for field in dataclasses.fields(limits):
        define = whole if isinstance(field.default, int) else real
        define(f"limit_{field.name}", field.default, f"Limit: {help[field.name]}.", lower_bound=0)


def split_overrides(argv: Sequence[str]) -> list[str]:
    """Takes `--engine.FIELD=VALUE` off the arguments; returns the others."""
    rest = []
    for word in argv:
        name, is_set, value = word.partition("=")
        if name.startswith("--engine.") and is_set:
            _OVERRIDES[name.removeprefix("--engine.")] = value
        else:
            rest.append(word)
    return rest


def override_words() -> list[str]:
    """The words that `split_overrides` took off."""
    return [f"--engine.{name}={value}" for name, value in _OVERRIDES.items()]


def key_weights() -> dict[str, float]:
    """Weights of the keys of --api_keys. Raises ValueError if the file cannot be read."""
    given = flags.FLAGS.api_keys
    return dict(KeyRing(Path(given)).weights) if given else {}


def overridden(config: EngineConfig) -> EngineConfig:
    """The config with the values of --engine.FIELD=VALUE; `limits.FIELD` names one of its limits.

    Raises:
      ValueError: no such field, or a value of another type.
    """
    for path, text in _OVERRIDES.items():
        node: Any = config
        *parents, name = path.split(".")
        for parent in parents:
            node = getattr(node, parent, None)
        if not dataclasses.is_dataclass(node) or not hasattr(node, name):
            raise ValueError(f"--engine.{path} is not a field of the engine's config")
        setattr(node, name, _value(path, text, getattr(node, name)))
    config.check()
    return config


def check_overrides() -> None:
    """Raises ValueError for a field that no engine has, before a model is read."""
    overridden(EngineConfig())


def _value(path: str, text: str, now: Any) -> Any:
    if isinstance(now, str):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        raise ValueError(f"--engine.{path}={text} is not a value like {now!r}") from None
    value = tuple(value) if isinstance(value, list) and isinstance(now, tuple | list) else value
    if type(value) is not type(now) and not isinstance(now, range | list):
        raise ValueError(f"--engine.{path}={text} is not a value like {now!r}")
    return value


def serve(assemble: Callable[[StartOptions, HttpLimits, Any], Any] | None = None, *, engines: int = 1) -> int:
    """Runs the server; returns the exit status.

    Args:
      assemble: makes what the server consists of behind its front door; None: one engine.
      engines: that share the memory where --kv_memory does not say how much each takes.

    Raises:
      ValueError: a flag or the checkpoint is wrong.
    """
    given = flags.FLAGS
    limits = HttpLimits(**{f.name: given[f"limit_{f.name}"].value for f in dataclasses.fields(HttpLimits)})
    keys = KeyRing(Path(given.api_keys)) if given.api_keys else None
    if keys is None and not _is_loopback(given.host):
        raise ValueError(
            f"--host={given.host} can be reached by others; give --api_keys=FILE, or serve on 127.0.0.1"
        )
    check_overrides()
    options = _options(keys, engines)
    # Until the server's own handlers are there, nothing runs that would have to be drained.
    # Nothing is served yet. An exception would be lost in an event loop that does not listen to signals yet.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with listen(given.host, given.port) as socket:
        from serving.http import process  # jax is loaded only after flags and port have been checked

        process.check(options, overridden)
        door = process.Door(
            socket=socket,
            host=given.host,
            keys=keys,
            limits=limits,
            compat=given.metrics_compat,
            event_log=Path(given.event_log) if given.event_log else None,
        )
        return process.run(options, door, overridden, assemble or process.SingleEngine)


def _options(keys: KeyRing | None, engines: int) -> StartOptions:
    given = flags.FLAGS
    named = given.checkpoint or given.model
    if not named:
        raise ValueError("--checkpoint is missing; name a model, e.g. --checkpoint=runs/demo/model")
    if given.port is None:
        raise ValueError("--port is missing; name one, e.g. --port=8000")
    path = Path(named)
    if given.policy and given.policy not in fair.POLICIES:
        raise ValueError(f"unknown policy {given.policy!r}; known: {', '.join(fair.POLICIES)}")
    if not path.is_file() and not (path / "config.json").exists():
        raise ValueError(f"--checkpoint={path} holds no model")
    template = Path(given.chat_template) if given.chat_template else None
    if template is not None and not template.is_file():
        raise ValueError(f"--chat_template={template} does not exist")
    policy = given.policy or ("hvtc" if keys else "vtc")
    weights = keys.weights if keys else {}
    options = StartOptions(
        checkpoint=path,
        name=given.served_model_name or served_name(path),
        kv_bytes=_kv_bytes(engines),
        kv_dtype=given.kv_dtype,
        max_model_tok=given.max_model_len or 0,
        slots=given.slots or 0,
        policy=policy,
        policy_options={"weights": weights} if weights and "weights" in fair.options(policy) else {},
        dtype=given.dtype,
        quantize=given.quantize,
        chat_template=template,
    )
    return options


def _kv_bytes(engines: int) -> int:
    if flags.FLAGS.kv_memory:
        return model_engine.parse_bytes(flags.FLAGS.kv_memory)
    free = model_engine.free_bytes()
    budget = int(free * model_engine.FREE_SHARE) // engines
    each = "" if engines == 1 else " in each worker"
    _say(f"K/V may take up to {budget / 2**30:.1f} GiB{each} (--kv_memory names another size)")
    return budget


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
