"""The sides: what each is loaded with, and in which environment its process runs."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.bench.real.cases import Case

SCRIPTS = Path("tests/parity")
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
FLOAT32 |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


@dataclass(frozen=True)
class RealSide:
    """A program with one way to run it.

    Attributes:
      environment: folder below --real_peers; "" = this Python.
      script: below tests/parity.
      about: what its process is told to load, beside files and threads.
      most: requests that it takes at once.
      slow_start: starts for a minute; measured in a group of its own.
    """

    name: str
    environment: str
    script: str
    about: Mapping[str, Any] = field(default_factory=dict)
    most: int = 64
    slow_start: bool = False

    def python(self, peers: Path) -> Path:
        return peers / self.environment / "bin" / "python" if self.environment else Path(sys.executable)

    def installed(self, peers: Path) -> bool:
        return self.python(peers).exists()

    def command(self, peers: Path, cores: int) -> list[str]:
        pinned = ["taskset", "--cpu-list", ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))]
        return [*pinned, str(self.python(peers)), str(SCRIPTS / self.script)]

    def asked(self, case: Case, cores: int, files: Mapping[str, str]) -> dict[str, Any]:
        """The load query."""
        sizes = {"requests": case.requests, "longest": case.longest_tok, "chunk": min(256, case.prompt_tok)}
        named = {key: files[value] for key, value in self.about.items() if key in ("gguf", "folder", "model")}
        return sizes | dict(self.about) | named | {"threads": cores, "programs": files["programs"]}


SIDES = {
    side.name: side
    for side in (
        RealSide("ours, float32", "", "real_ours.py", {"model": "folder", "quantize": ""}),
        RealSide("ours, int8", "", "real_ours.py", {"model": "folder", "quantize": "int8"}),
        RealSide("OpenVINO GenAI, defaults", "openvino", "real_openvino.py", {"gguf": "gguf"}),
        RealSide(
            "OpenVINO GenAI, LLMPipeline",
            "openvino",
            "real_openvino.py",
            {"gguf": "gguf", "pipeline": "llm"},
            most=1,
        ),
        RealSide(
            "OpenVINO GenAI, float32", "openvino", "real_openvino.py", {"gguf": "gguf", "properties": FLOAT32}
        ),
        RealSide("llama.cpp, float32", "llama", "real_llama.py", {"folder": "llama", "kv": "f32"}),
        RealSide("llama.cpp, as shipped", "llama", "real_llama.py", {"gguf": "gguf", "kv": "f16"}),
        RealSide(
            "transformers, float32",
            "transformers",
            "real_transformers.py",
            {"folder": "llama", "dtype": "float32"},
        ),
        RealSide(
            "vLLM, float32", "vllm", "real_vllm.py", {"folder": "llama", "dtype": "float32"}, slow_start=True
        ),
        RealSide(
            "vLLM, bfloat16",
            "vllm",
            "real_vllm.py",
            {"folder": "llama", "dtype": "bfloat16"},
            slow_start=True,
        ),
    )
}
