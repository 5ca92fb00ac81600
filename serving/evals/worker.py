"""Runs our engine as a process that answers JSON lines; the arena starts it for `engine = "DIR"`.

    python -m serving.evals worker --model=models/smollm2

Reads {"id", "messages", "max_tokens", "temperature"} and {"cancel": id} from standard input, and writes
{"id", "text"}, then {"id", "end"} or {"id", "error"}, to standard output. Ends when its input ends.
"""

import json
import queue
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from absl import flags, logging

from mixattn.evals.command_line import needed, run
from serving.request import Delta, Request, Sampling

if TYPE_CHECKING:
    from serving.engine.engine import Engine

FLAGS = flags.FLAGS
IDLE_S = 0.5  # how often an idle process looks whether its input ended


def start(argv: list[str]) -> None:
    flags.DEFINE_string("model", None, "Hugging Face directory or GGUF file.")
    flags.DEFINE_integer("slots", 8, "Answers that are written at once.", 1)
    flags.DEFINE_integer("max_model_len", 2048, "Longest conversation, in tokens.", 32)
    run(__name__, _main, argv)


def _main() -> None:
    logging.set_verbosity(logging.ERROR)
    path = Path(needed("model", "models/smollm2"))
    if not path.is_file() and not (path / "config.json").exists():
        raise ValueError(f"--model={path} holds no model; `make model` fetches one into models/smollm2")
    from serving.evals import loading

    loaded = loading.load(path, slots=FLAGS.slots, max_request_tok=FLAGS.max_model_len)
    EngineWorker(loaded.engine, loaded.render, sys.stdin, sys.stdout).run()


class EngineWorker:
    """Answers calls until the input ends. One thread reads; the engine steps in the caller's.

    Args:
      render: messages -> prompt ids.
    """

    def __init__(self, engine: "Engine", render: Any, calls: TextIO, answers: TextIO):
        self._engine, self._render, self._calls, self._answers = engine, render, calls, answers
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._numbers: dict[str, int] = {}  # of requests, by their id in the engine

    def run(self) -> None:
        """Serves until the end of the input; what is under way then is dropped: nobody reads it."""
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            try:
                line = self._waiting.get(timeout=None if not self._engine.live else 0.0)
            except queue.Empty:
                for delta in self._engine.step():
                    self._tell(delta)
                continue
            if line is None:
                return
            self._take(line)

    def _read(self) -> None:
        for line in self._calls:
            self._waiting.put(line)
        self._waiting.put(None)

    def _take(self, line: str) -> None:
        call = json.loads(line)
        if "cancel" in call:
            for id in [id for id, number in self._numbers.items() if number == call["cancel"]]:
                self._engine.cancel(id)
            return
        try:
            ids = self._render(call["messages"])
            room_tok = self._engine.config.max_request_tok - len(ids)
            if room_tok < 1:
                raise ValueError(f"the conversation has {len(ids)} tokens, and there is room for no answer")
            sampling = Sampling(
                max_tokens=min(int(call["max_tokens"]), room_tok), temperature=float(call["temperature"])
            )
            id = self._engine.submit(Request(client="arena", prompt_ids=ids, sampling=sampling))
        except ValueError as why:
            self._write(id=call["id"], error=str(why))
        else:
            self._numbers[id] = call["id"]

    def _tell(self, delta: Delta) -> None:
        number = self._numbers.get(delta.id)
        if number is None:
            return
        if delta.text:
            self._write(id=number, text=delta.text)
        if delta.output is not None:
            del self._numbers[delta.id]
            self._write(id=number, end=delta.output.finish_reason)

    def _write(self, **event: Any) -> None:
        self._answers.write(json.dumps(event) + "\n")
        self._answers.flush()
