"""The server with an engine that fails on purpose: `python -m tests.serving.http.faulty`.

A prompt that holds token 7 makes its program raise; token 8 makes it take 3 s; token 9 makes `step` itself
raise, outside of what the engine handles; token 10 makes logits NaN at the host's border.
"""

import runpy
import time

from serving.engine.engine import Engine
from serving.engine.model_runner import ModelRunner

_launch, _step = ModelRunner.launch, Engine.step


def launch(self, state, plan):
    tokens = {id for chunk in plan.chunks for id in self._streams[chunk.req.info.id].request.prompt_ids}
    if 7 in tokens:
        raise RuntimeError("a program failed on purpose")
    if 8 in tokens:
        time.sleep(3)
    return _launch(self, state, plan)


def step(self):
    if any(9 in stream.request.prompt_ids for stream in self.streams.values()):
        raise RuntimeError("a step failed on purpose")
    return _step(self)


ModelRunner.launch, Engine.step = launch, step  # type: ignore[method-assign]

if __name__ == "__main__":
    runpy.run_module("serving.http", run_name="__main__", alter_sys=True)
