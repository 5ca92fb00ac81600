"""Who sends what: one client by the flags, or several by `--client`."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

DATASETS = ("random", "generated-shared-prefix", "custom")


@dataclass(frozen=True, kw_only=True)
class ClientPlan:
    """One client's load.

    Attributes:
      name: sent as `user` if there are several; empty = not sent.
      requests: how many; with `duration_s` at most so many at once are kept on their way, again and again.
      rate: requests/s of an open loop; inf = all at once, or a closed loop with `concurrency`.
      concurrency: most requests in flight; 0 = any number.
      input_len, output_len, range_ratio: of the random set, in tokens.
      groups, prefix_len: with groups, prompts are a shared prefix and `input_len` tokens of their own.
      start_s, duration_s: when it begins, and after how long it begins no more requests; 0 = never.
      key: environment variable that holds its API key.
      users: it names itself by that many `user`s in turn.
    """

    name: str = ""
    requests: int = 1000
    rate: float = math.inf
    burstiness: float = 1.0
    concurrency: int = 0
    input_len: int = 1024
    output_len: int = 128
    range_ratio: float = 0.0
    groups: int = 0
    prefix_len: int = 0
    start_s: float = 0.0
    duration_s: float = 0.0
    key: str = ""
    users: int = 1

    def check(self) -> None:
        """Raises ValueError with the two facts that disagree."""
        what = f"client {self.name!r}" if self.name else "the load"
        for field in ("requests", "input_len", "output_len", "users"):
            if getattr(self, field) < 1:
                raise ValueError(f"{what} has {field}={getattr(self, field)}; it must be at least 1")
        for field in ("concurrency", "groups", "prefix_len", "start_s", "duration_s"):
            if getattr(self, field) < 0:
                raise ValueError(f"{what} has {field}={getattr(self, field)}; it must not be negative")
        if not self.rate > 0 or not self.burstiness > 0:
            raise ValueError(
                f"{what} has rate={self.rate}, burstiness={self.burstiness}; both must be above 0"
            )
        if self.duration_s and not self.concurrency and math.isinf(self.rate):
            raise ValueError(
                f"{what} has duration_s={self.duration_s:g} and sends everything at once; "
                "give it a rate or a concurrency"
            )
        if not 0 <= self.range_ratio < 1:
            raise ValueError(f"{what} has range_ratio={self.range_ratio}; it must lie in 0..1, below 1")


def parse(text: str, default: ClientPlan) -> ClientPlan:
    """Reads `NAME FIELD=VALUE ...`, e.g. "flood concurrency=128 input_len=64".

    Raises:
      ValueError: no such field, or its value is of another type.
    """
    name, *words = text.split() or [""]
    if not name or "=" in name:
        raise ValueError(f'--client={text!r} must begin with a name, e.g. "light rate=2 output_len=16"')
    types: dict[str, Any] = {
        f.name: type(f.default) for f in dataclasses.fields(ClientPlan) if f.name != "name"
    }
    made: dict[str, Any] = {"name": name}
    for word in words:
        field, is_set, value = word.partition("=")
        if not is_set or field not in types:
            raise ValueError(f"--client={text!r} names {field!r}; fields are {', '.join(types)}")
        try:
            made[field] = types[field](value)
        except ValueError:
            raise ValueError(f"--client={text!r}: {field}={value} is not a number") from None
    plan = dataclasses.replace(default, **made)
    plan.check()
    return plan
