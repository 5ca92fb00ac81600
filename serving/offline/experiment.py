"""The config of an offline run: clients, policies and an engine, as plain values checked without jax."""

from dataclasses import dataclass, field
from typing import Any

from serving.config import EngineConfig
from serving.offline.clients import Workload


@dataclass(kw_only=True)
class Serve:
    """An offline run: the same clients under several policies.

    Attributes:
      policies: name -> options of `serving.fair.make`.
      completions: number of outputs kept as text for the report.
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    workload: Workload = field(default_factory=Workload)
    policies: dict[str, dict[str, Any]] = field(default_factory=lambda: {"fcfs": {}})
    completions: int = 6

    def check(self) -> None:
        if not self.policies:
            raise ValueError("serve.policies is empty; name at least one, e.g. {'fcfs': {}}")
        longest = max((c.prompt_tok[1] + c.output_tok[1] for c in self.workload.clients), default=0)
        if longest > (limit := self.engine.max_request_tok):
            raise ValueError(f"clients need up to {longest} tokens per request; max_request_tok is {limit}")
