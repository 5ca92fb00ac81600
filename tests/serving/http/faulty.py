"""The server with an engine that fails on purpose: `python -m tests.serving.http.faulty`.

A prompt that holds token 7 makes its program raise; token 8 makes it take 1.5 s; token 9 makes `step` itself
raise, outside of what the engine handles; token 11 gives a compiled program a shape that it was not made for.
"""

import runpy
import time

import jax
import numpy as np

from serving.engine.engine import Engine
from serving.engine.model_runner import ModelRunner

_launch, _step = ModelRunner.launch, Engine.step


def launch(self, state, plan):
    tokens = {id for chunk in plan.chunks for id in self._streams[chunk.req.info.id].request.prompt_ids}
    if 7 in tokens:
        raise RuntimeError("a program failed on purpose")
    if 8 in tokens:
        time.sleep(1.5)
    if 11 in tokens:
        made_for = jax.ShapeDtypeStruct((4,), np.float32)
        jax.jit(lambda x_4: x_4 + 1).lower(made_for).compile()(np.zeros(5, np.float32))
    return _launch(self, state, plan)


def step(self):
    if any(9 in stream.request.prompt_ids for stream in self.streams.values()):
        raise RuntimeError("a step failed on purpose")
    return _step(self)


ModelRunner.launch, Engine.step = launch, step  # type: ignore[method-assign]

if __name__ == "__main__":
    runpy.run_module("serving.http", run_name="__main__", alter_sys=True)
