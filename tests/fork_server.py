"""A process that has imported the large libraries and waits; each command that a test runs is a fork of it.

Imports take one to two seconds of a command, and the suite runs hundreds. No module of this project is
imported here: each command imports its own afresh, as `python -m` does. `tests.forked` talks to it.

A request is one message: JSON of module, arguments, folder and environment, and four descriptors: standard
input, output and error of the command, and a socket that is told its process id and how it ended.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback

LIBRARIES = (
    *("jax", "jax.numpy", "flax.nnx", "optax", "orbax.checkpoint", "grain"),
    *("tokenizers", "safetensors.numpy", "ml_collections.config_flags", "rich.console", "rich.progress"),
    *("scipy.stats", "scipy.optimize", "matplotlib.figure", "jinja2", "starlette.applications", "uvicorn"),
)
MAX_BYTES = 1 << 20


def serve(control: socket.socket) -> None:
    """Forks until the test process closes its end."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # watchers need no one to wait for them
    control.send(b"ready")
    while True:
        data, fds, _, _ = socket.recv_fds(control, MAX_BYTES, 4)
        if not data:
            return
        if os.fork() == 0:
            control.close()
            _watch(json.loads(data), fds)
        for fd in fds:
            os.close(fd)


def _watch(request: dict, fds: list[int]) -> None:
    """Forks the command, and tells how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    told = socket.socket(fileno=fds[3])
    pid = os.fork()
    if pid == 0:
        told.close()
        _run(request, fds[:3])
    for fd in fds[:3]:
        os.close(fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # nobody may be left to be told
        told.send(str(pid).encode())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        told.send(str(status).encode())
    os._exit(0)


def _run(request: dict, fds: list[int]) -> None:
    """What `python -m module args` does, in this process."""
    for at, fd in enumerate(fds):
        os.dup2(fd, at)
        os.close(fd)
    if request["session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv = [request["module"], *request["args"]]
    sys.orig_argv = [sys.executable, "-m", *sys.argv]  # a command may start itself again
    code: int | None = None
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as why:
        code = why.code if isinstance(why.code, int) else 0 if why.code is None else 1
        if code == 1 and not isinstance(why.code, int):
            print(why.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
    except BaseException:
        traceback.print_exc()
        code = 1
    _end(code)


def _end(code: int | None) -> None:
    """What the interpreter does at its end; None: the command died of Ctrl-C."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        if code is None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
