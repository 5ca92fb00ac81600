"""API keys: a file of `name sha256 [weight] [limits]` lines. Keys themselves are stored nowhere.

# name, sha256 of the key (printf %s KEY | sha256sum), weight, limits
alice 2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90 2 inflight=8,priority
bob 81b637d8fcd2c6da6359e6963113a1170de795e4b725b84d1e0b4cfd9ec58ce9 tokens_per_minute=60000
"""

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from serving.http.settings import MAX_NAME

WORDS = ("priority", "admin")
NUMBERS = ("inflight", "tokens_per_minute")


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One line of the file.

    Attributes:
      digest: SHA-256 of the key.
      weight: its share beside other keys.
      inflight: outputs it may have queued or running; 0 = any number.
      tokens_per_minute: prompt and output tokens; 0 = any number.
      priority: may name a `priority`. admin: may flush the cache and abort others' requests.
    """

    name: str
    digest: bytes
    weight: Fraction = Fraction(1)
    inflight: int = 0
    tokens_per_minute: int = 0
    priority: bool = False
    admin: bool = False


class KeyRing:
    """The keys of a file, compared in constant time.

    Raises:
      ValueError: the file is missing or a line (named by number) is wrong; on `reload` the old keys stay.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: Sequence[ApiKey] = read(path)

    def reload(self) -> None:
        self.keys = read(self.path)

    def find(self, secret: str) -> ApiKey | None:
        """The key that `secret` is, or None. Every key is compared, so the time tells nothing."""
        digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    @property
    def weights(self) -> Mapping[str, float]:
        return {key.name: float(key.weight) for key in self.keys if key.weight != 1}


def read(path: Path) -> list[ApiKey]:
    """The keys of a file.

    Raises:
      ValueError: see `KeyRing`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as why:
        raise ValueError(f"--api_keys={path} cannot be read: {why}") from why
    keys = []
    for number, line in enumerate(lines, 1):
        if (words := line.split()) and not words[0].startswith("#"):
            try:
                keys.append(_key(words))
            except ValueError as why:
                raise ValueError(f"{path} line {number}: {why}") from None
    for what in ("name", "digest"):
        values = [getattr(key, what) for key in keys]
        if len(set(values)) < len(values):
            raise ValueError(f"{path} holds the same {what} twice")
    if not keys:
        raise ValueError(f"{path} holds no keys; write lines of: name sha256 [weight] [limits]")
    return keys


def _key(words: Sequence[str]) -> ApiKey:
    name, digest, *rest = (*words, "") if len(words) == 1 else words
    if not name.isprintable() or "/" in name or len(name) > MAX_NAME:
        raise ValueError(f"name {name[:40]!r} must be printable, at most {MAX_NAME} characters, without /")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise ValueError(f"key {name!r} needs the SHA-256 of the key, 64 hexadecimal digits")
    weight = Fraction(1)
    if rest and re.fullmatch(r"\d+(\.\d+)?", rest[0]):
        weight = Fraction(rest.pop(0))
    if not 0 < weight <= 10**6:
        raise ValueError(f"key {name!r} has weight {weight}; it must be above 0 and at most 1,000,000")
    numbers = dict.fromkeys(NUMBERS, 0)
    flags = dict.fromkeys(WORDS, False)
    for part in filter(None, ",".join(rest).split(",")):
        field, _, value = part.partition("=")
        if field in flags and not value:
            flags[field] = True
        elif field in numbers and value.isascii() and value.isdigit() and int(value) > 0:
            numbers[field] = int(value)
        else:
            known = ", ".join([*(f"{n}=NUMBER" for n in NUMBERS), *WORDS])
            raise ValueError(f"key {name!r} has the limit {part!r}; known: {known}")
    return ApiKey(
        name=name,
        digest=bytes.fromhex(digest),
        weight=weight,
        inflight=numbers["inflight"],
        tokens_per_minute=numbers["tokens_per_minute"],
        priority=flags["priority"],
        admin=flags["admin"],
    )
