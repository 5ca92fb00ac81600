"""Commands of this project as processes that need not import the large libraries again.

    done = forked.run("serving.main", "--config=...", timeout_s=60)
    with forked.Process("serving.http", "--port=0", stdout=subprocess.PIPE) as server: ...

A command gets an interpreter of its own (`python -m`) where its environment asks for what is read at import:
variables of jax, XLA, Python or the linker that differ from those of the tests.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
AT_IMPORT = ("JAX", "XLA", "PYTHON", "LD_", "OMP_", "OPENBLAS", "MALLOC_", "MPL", "TF_")


class Process(subprocess.Popen):
    """`python -m module args...`, forked from a process that waits.

    Args:
      env: the whole environment; None = that of the tests. cwd: by default the checkout.
      options: as `subprocess.Popen`'s: stdin, stdout, stderr, text, start_new_session.
    """

    def __init__(
        self,
        module: str,
        *args: str,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = ROOT,
        **options: Any,
    ) -> None:
        self._module, self._arguments = module, list(args)
        env = dict(os.environ if env is None else env)
        self._fork_server = _server() if _same_at_import(env) else None
        self._told: socket.socket | None = None
        command = [sys.executable, "-m", module, *args]
        super().__init__(command, env=env, cwd=str(cwd), **options)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):  # type: ignore[no-untyped-def]
        if self._fork_server is None:
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
            return
        _, _, _, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *more = rest
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {"module": self._module, "args": self._arguments, "cwd": cwd, "env": env}
        request["session"] = bool(more[5]) if len(more) > 5 else False
        fds = [fd if fd != -1 else at for at, fd in enumerate((p2cread, c2pwrite, errwrite))]
        socket.send_fds(self._fork_server, [json.dumps(request).encode()], [*fds, theirs.fileno()])
        theirs.close()
        self._told = mine
        self.pid = int(mine.recv(64))
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def _internal_poll(self, *args: Any, **options: Any) -> int | None:
        if self._told is None:
            return super()._internal_poll(*args, **options)
        return self._ended(0.0)

    def _wait(self, timeout: float | None) -> int:
        if self._told is None:
            return super()._wait(timeout)
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def _ended(self, timeout_s: float | None) -> int | None:
        assert self._told is not None
        if self.returncode is None:
            self._told.settimeout(timeout_s)
            try:
                told = self._told.recv(64)
            except (TimeoutError, BlockingIOError):
                return None
            self.returncode = int(told) if told else -9  # its watcher is gone too
            self._told.close()
        return self.returncode


def run(
    module: str, *args: str, timeout_s: float = 300, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; its outputs are texts.

    Args:
      env: added to the environment of the tests.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with Process(module, *args, env={**os.environ, **(env or {})}, text=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


_started: tuple[int, socket.socket, dict[str, str]] | None = None  # the process that started it; its end; env


def _server() -> socket.socket | None:
    """The control socket of this process' fork server, started at the first call."""
    global _started
    if not hasattr(socket, "send_fds") or not hasattr(os, "fork"):
        return None
    if _started is None or _started[0] != os.getpid():
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "fork_server.py"), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the tests
        )
        theirs.close()
        if mine.recv(16) != b"ready":
            raise RuntimeError("the fork server of the tests did not start")
        _started = os.getpid(), mine, dict(os.environ)
        atexit.register(_close, process, mine)
    return _started[1]


def _close(process: subprocess.Popen, control: socket.socket) -> None:
    if _started is not None and _started[0] == os.getpid():
        control.close()
        process.wait()


def _same_at_import(env: Mapping[str, str]) -> bool:
    """Whether what is read at import is as in the fork server, which has the tests' environment."""
    known = os.environ if _started is None else _started[2]
    return _important(env) == _important(known)


def _important(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(AT_IMPORT)}
