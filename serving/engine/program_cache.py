"""Compiled programs kept on disk, found again without tracing: what makes a second start fast.

A program's file is named by a digest of all it depends on: the model's configuration, shapes and options, the
sources of the packages that are traced, versions, the device, and flags of the compiler. The file begins with
a line of JSON that repeats the digest and has one of the content; a file that is torn, altered, or cannot be
loaded here is removed and the program compiled again.

The content is a pickle, as JAX serializes executables; so only a folder of this user that others cannot write
to is read.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import pickle
import stat
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.experimental import serialize_executable

from mixattn.tools import files
from pallas_kernels.aot import set_persistent_cache

MAX_BYTES = 2 << 30  # of all files; the least recently used go first
SUFFIX = ".program"
TRACED = ("mixattn", "pallas_kernels", "serving")  # packages whose sources determine the programs
# Of these, folders that no program comes from: to edit them leaves the next start as fast as the last.
NOT_TRACED = (
    *(f"serving/{room}/" for room in ("bench", "chat", "cluster", "evals", "fair", "http", "metropolis")),
    *("serving/offline/", "serving/sim/", "mixattn/evals/"),
)
ENVIRONMENT = ("XLA_FLAGS", "NPROC", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")


def default_folder() -> Path:
    """Where commands keep compiled programs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixattn" / "programs"


class ProgramCache:
    """A folder of compiled programs.

    Args:
      folder: created for this user alone if missing.

    Raises:
      ValueError: others can write to the folder, or it belongs to another user.
    """

    def __init__(self, folder: Path):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.filemode(found.st_mode)
            raise ValueError(
                f"{folder} ({mode}, owner {found.st_uid}) must be writable by user {os.getuid()} alone"
            )
        self.folder = folder
        self.hits = 0

    def path(self, description: str) -> Path:
        """Where the program that `description` determines lies, or would."""
        key = hashlib.sha256(f"{_surroundings()}\n{description}".encode()).hexdigest()
        return self.folder / (key + SUFFIX)

    def load_or_compile(self, description: str, compile: Callable[[], Any]) -> Any:
        """The program that `description` determines; compiled and stored if it is not there."""
        path = self.path(description)
        key = path.stem
        found = self._load(path, key)
        if found is not None:
            self.hits += 1
            return found
        with _without_jax_cache():
            compiled = compile()
        self._store(path, key, compiled)
        return compiled

    def _load(self, path: Path, key: str) -> Any:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            line, _, body = content.partition(b"\n")
            if json.loads(line) != _header(key, body):
                raise ValueError("its header does not fit its content")
            loaded = serialize_executable.deserialize_and_load(*pickle.loads(body))  # noqa: S301  see above
            os.utime(path)
            return loaded
        except (
            Exception
        ) as why:  # of many kinds: a torn file, another machine's code, another version's pickle
            logging.warning("compiling again: %s could not be loaded: %s", path, str(why).splitlines()[:1])
            path.unlink(missing_ok=True)
            return None

    def _store(self, path: Path, key: str, compiled: Any) -> None:
        try:
            body = pickle.dumps(serialize_executable.serialize(compiled))
            with files.whole(path) as temporary:
                temporary.write_bytes(json.dumps(_header(key, body)).encode() + b"\n" + body)
        except Exception as why:  # a start without a cache is slower, not wrong
            logging.warning("a compiled program could not be stored in %s: %r", self.folder, why)
            return
        self._prune()

    def _prune(self) -> None:
        found = sorted(self.folder.glob("*" + SUFFIX), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for path in found:
            total += path.stat().st_size
            if total > MAX_BYTES:
                path.unlink(missing_ok=True)


class _JaxCacheSwitch:
    """Turns JAX's own cache off while any thread compiles for ours.

    On a CPU a program that JAX has loaded from its cache serializes without its compiled functions, and would
    fail when it is called after the next start.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._enabled = True

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._enabled = jax.config.jax_enable_compilation_cache
                set_persistent_cache(False)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    set_persistent_cache(self._enabled)


_without_jax_cache = _JaxCacheSwitch()


def _header(key: str, body: bytes) -> dict[str, Any]:
    return {"key": key, "sha256": hashlib.sha256(body).hexdigest()}


@functools.cache
def _surroundings() -> str:
    """What every program of this process depends on."""
    device = jax.devices()[0]
    facts = {
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
        "device": [device.platform, device.device_kind, jax.device_count()],
        "runtime": device.client.platform_version,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "sources": _digest_of_sources(),
    }
    return json.dumps(facts, sort_keys=True)


def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    for package in TRACED:
        spec = importlib.util.find_spec(package)
        for root in (spec and spec.submodule_search_locations) or ():
            for folder, folders, names in os.walk(root):  # plain strings: paths would take ten times as long
                folders.sort()
                inside = os.path.relpath(folder, root)
                for name in sorted(names):
                    path = os.path.normpath(os.path.join(package, inside, name))
                    if name.endswith(".py") and not path.startswith(NOT_TRACED):
                        with open(os.path.join(folder, name), "rb") as source:
                            digest.update(path.encode() + b"\0" + source.read())
    return digest.hexdigest()
