"""The command line of the server: flags to options, then the process's life."""

import asyncio
import contextlib
import dataclasses
import ipaddress
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from serving import fair, model_engine
from serving.config import EngineConfig
from serving.http.app import build
from serving.http.fairness import LiveFairness
from serving.http.keys import KeyRing
from serving.http.metrics import ServerMetrics
from serving.http.operations import Operations
from serving.http.page import Dashboard
from serving.http.server import DrainingServer, listen
from serving.http.service import Service
from serving.http.settings import HttpLimits
from serving.http.startup import Starter, StartOptions, served_name

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


def serve() -> int:
    """Runs the server; returns the exit status.

    Raises:
      ValueError: a flag or the checkpoint is wrong.
    """
    given = flags.FLAGS
    limits = HttpLimits(**{f.name: given[f"limit_{f.name}"].value for f in dataclasses.fields(HttpLimits)})
    keys = KeyRing(Path(given.api_keys)) if given.api_keys else None
    options = _options(keys)
    if keys is None and not _is_loopback(given.host):
        raise ValueError(
            f"--host={given.host} can be reached by others; give --api_keys=FILE, or serve on 127.0.0.1"
        )
    metrics = ServerMetrics(options.name, compat=given.metrics_compat)
    service = Service(limits, metrics, keys)
    hosts = None
    if keys is None:
        hosts = frozenset({"127.0.0.1", "localhost", "[::1]", "::1", given.host})
    fairness = LiveFairness()
    service.loop.listeners.append(fairness.take)
    operations = Operations(service, {"checkpoint": str(options.checkpoint)})
    app = build(service, [*operations.routes(), *Dashboard(service, fairness).routes()], hosts)
    socket = listen(given.host, given.port)
    server = DrainingServer(app, service)
    status = 0
    with contextlib.ExitStack() as stack:
        if given.event_log:
            stack.enter_context(_event_log(service, Path(given.event_log)))
        starter = Starter(service, options, limits, overridden, _say)
        factory = server.config.get_loop_factory()
        with asyncio.Runner(loop_factory=factory) as runner:
            status = runner.run(_life(server, starter, service, socket, given.host))
    if server.force_exit:  # at once: the engine's thread may be in the middle of a long step
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


async def _life(server: DrainingServer, starter: Starter, service: Service, socket: Any, host: str) -> int:
    events = asyncio.get_running_loop()
    serving = events.create_task(server.serve(sockets=[socket]))
    if service.keys is not None:
        events.add_signal_handler(signal.SIGHUP, _reload, service)
    starting = events.create_task(starter.run())
    await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done() and (why := starting.exception()) is not None:
        server.stop(2)
        await serving
        raise why
    if starting.done():
        address = f"[{host}]" if ":" in host else host
        name = service.model.name if service.model else ""
        print(f"ready http://{address}:{socket.getsockname()[1]} model {name}", flush=True)
    await serving
    service.loop.stop(wait=not server.force_exit)
    if service.model is not None:
        service.model.prompts.template.close()
    return server.status


def _options(keys: KeyRing | None) -> StartOptions:
    given = flags.FLAGS
    named = given.checkpoint or given.model
    if not named:
        raise ValueError("--checkpoint is missing; name a model, e.g. --checkpoint=runs/demo/model")
    if given.port is None:
        raise ValueError("--port is missing; name one, e.g. --port=8000")
    path = Path(named)
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
        kv_bytes=_kv_bytes(),
        max_model_tok=given.max_model_len or 0,
        slots=given.slots or 0,
        policy=policy,
        policy_options={"weights": weights} if weights and "weights" in fair.options(policy) else {},
        dtype=given.dtype,
        chat_template=template,
    )
    from mixattn import hf

    overridden(_config_of(hf.read_config(path), options))  # a mistake is told before the socket opens
    return options


def _config_of(model: Any, options: StartOptions) -> EngineConfig:
    from serving.http.startup import engine_config

    return engine_config(model, options, [])


def _kv_bytes() -> int:
    if flags.FLAGS.kv_memory:
        return model_engine.parse_bytes(flags.FLAGS.kv_memory)
    free = model_engine.free_bytes()
    budget = int(free * model_engine.FREE_SHARE)
    _say(f"K/V may take up to {budget / 2**30:.1f} GiB (--kv_memory names another size)")
    return budget


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reload(service: Service) -> None:
    assert service.keys is not None
    try:
        service.keys.reload()
        _say(f"read {len(service.keys.keys)} keys again; a changed weight counts from the next start")
    except ValueError as why:
        logging.error("the old keys stay: %s", why)


@contextlib.contextmanager
def _event_log(service: Service, path: Path) -> Any:
    """Writes each event as it happens; a step's lines reach the file together."""
    with path.open("w", buffering=1 << 16) as out:

        def listener(event: dict[str, Any]) -> None:
            out.write(json.dumps(event) + "\n")

        service.loop.listeners.append(listener)
        yield


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
