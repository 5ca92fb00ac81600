"""Compiles programs in a process of its own: a compiler takes hundreds of MiB and does not give them back.

The programs reach this process through the cache of compiled programs. A start that finds all of them there
starts no other process.
"""

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from absl import logging

from serving.config import EngineConfig, Limits, OffloadSettings
from serving.engine.program_cache import ProgramCache
from serving.offload.runtime.checkpoint import MixtureCheckpoint

_CHILD = (
    "import sys; from serving.offload.runtime import compile_apart; compile_apart.child(sys.stdin.read())"
)


class CompilesApart(ProgramCache):
    """A cache that fills itself once, by another process, when a program is not there.

    Args:
      rows: of a decode micro-batch.
      guesses: as for `OffloadStack`.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: MixtureCheckpoint,
        rows: int,
        config: EngineConfig,
        *,
        guesses: bool = False,
    ):
        super().__init__(folder)
        of = {"path": str(checkpoint.path), "quantize": checkpoint.quantize}
        asked = {
            "folder": str(folder),
            "of": of,
            "rows": rows,
            "guesses": guesses,
            "config": dataclasses.asdict(config),
        }
        self._asked, self._once, self._lock = json.dumps(asked), False, threading.Lock()

    def load_or_compile(self, description: str, compile: Any) -> Any:
        with self._lock:
            if not self._once and not self.path(description).exists():
                self._once = True
                done = subprocess.run(
                    [sys.executable, "-c", _CHILD],
                    input=self._asked,
                    text=True,
                    capture_output=True,
                    check=False,
                )
                if done.returncode:  # compiled here then, with more memory
                    logging.warning("compiling apart failed: %s", done.stderr.strip()[-400:])
        return super().load_or_compile(description, compile)


def child(asked: str) -> None:
    """What the other process does: builds the programs of the same engine, and leaves them in the cache."""
    from mixattn.generation import prepared
    from serving.engine.kv_layout import KVLayout
    from serving.engine.programs import Programs, chunk_sizes, feature_sets
    from serving.offload.runtime.checkpoint import load_rest, locate
    from serving.offload.runtime.resident import ResidentRunner
    from serving.offload.runtime.stack import OffloadStack

    told = json.loads(asked)
    fields = told["config"] | {
        "limits": Limits(**told["config"]["limits"]),
        "offload": OffloadSettings(**told["config"]["offload"]),
    }
    config = EngineConfig(**fields)
    checkpoint = locate(**told["of"])
    model = prepared(load_rest(checkpoint), config.max_request_tok)
    runner = ResidentRunner({}, 0)
    stack = OffloadStack(model, checkpoint, rows=told["rows"], runner=runner, guesses=told["guesses"])
    Programs(
        model,
        KVLayout.of(model.config, config).cache(model.config, config),
        slots=config.max_slots,
        buckets=[(r, c) for r in config.prefill_rows for c in chunk_sizes(config)],
        max_steps=1,
        decode_rows=config.decode_rows,
        feature_sets=feature_sets(config, model.config.vocab_size),
        stack=stack,
    ).compile(cache=ProgramCache(Path(told["folder"])))
