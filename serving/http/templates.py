"""Chat messages to text, by the checkpoint's template, in a bounded helper process."""

import asyncio
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serving.http.errors import ApiError
from serving.http.settings import HttpLimits

START_S = 30.0  # for the helper process to start
# For checkpoints without a template: a transcript that any language model continues.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


class ChatTemplate:
    """A template and the process that renders it; a process that takes too long is killed and replaced.

    Args:
      source: the template; None = `PLAIN_TEMPLATE`.
      variables: special tokens and whatever else it may use.
    """

    def __init__(self, source: str | None, variables: Mapping[str, Any], limits: HttpLimits) -> None:
        self.plain = source is None
        self.source = source or PLAIN_TEMPLATE
        self._variables, self._limits = dict(variables), limits
        self._thread = ThreadPoolExecutor(1, "template")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def knows_tools(self) -> bool:
        return "tools" in self.source

    async def render(
        self,
        messages: list[dict[str, Any]],
        variables: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt's text.

        Args:
          variables: more of what the template may use, of any name.

        Raises:
          ApiError: 400: the template refuses the messages, or takes too long or too much for them.
        """
        asked = {
            "template": self.source,
            "max_chars": self._limits.template_chars,
            "variables": {
                **self._variables,
                **(variables or {}),
                "messages": messages,
                "add_generation_prompt": add_generation_prompt,
            },
        }
        line = json.dumps(asked).encode() + b"\n"
        answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, line)
        if "text" not in answer:
            why = f"the chat template refuses these messages: {answer['refused']}"
            raise ApiError(400, why, param="messages", code="invalid_messages")
        text: str = answer["text"]
        return text

    def _ask(self, line: bytes) -> dict[str, Any]:
        """In this template's own thread."""
        try:
            self._start()
            deadline_s = time.monotonic() + self._limits.template_s
            return self._exchange(line, deadline_s)
        except TimeoutError:
            reason = f"it took more than {self._limits.template_s:g} s"
        except (OSError, ValueError):
            reason = "its process ended"
        self.close()
        return {"refused": reason}

    def _exchange(self, line: bytes, deadline_s: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        to, back = process.stdin.fileno(), process.stdout.fileno()
        answer, sent = bytearray(), 0
        events = select.poll()  # not `select`, which knows only the first 1024 descriptors
        events.register(back, select.POLLIN)
        events.register(to, select.POLLOUT)
        while not answer.endswith(b"\n"):
            ready = dict(events.poll(1e3 * max(0.0, deadline_s - time.monotonic())))
            if not ready:
                raise TimeoutError
            if to in ready:
                sent += os.write(to, line[sent : sent + 65536])
                if sent == len(line):
                    events.unregister(to)
            if back in ready:
                piece = os.read(back, 1 << 20)
                if not piece:
                    raise ValueError("the process ended")
                answer += piece
        parsed: dict[str, Any] = json.loads(answer)
        return parsed

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        # Not by the event loop: uvloop forks, which JAX's threads do not survive.
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("template_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,  # a Ctrl-C is the server's to handle
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        # The first answer includes the interpreter's start, which is not the template's time.
        hello = {"template": "", "max_chars": 1, "variables": {}}
        self._exchange(json.dumps(hello).encode() + b"\n", time.monotonic() + START_S)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def template_of(settings: Mapping[str, Any]) -> str | None:
    """The template of a tokenizer_config.json: a text, or the one named "default" of several."""
    given = settings.get("chat_template")
    if isinstance(given, list):
        given = {t.get("name"): t.get("template") for t in given if isinstance(t, dict)}
    if isinstance(given, dict):
        given = given.get("default")
    return given if isinstance(given, str) else None
