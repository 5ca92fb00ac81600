"""Proof of work: before a battle the visitor's browser must find a number, which makes votes in bulk cost.

The challenge is signed, bound to the session and its hour, and good once. The answer is a number such that
SHA-256 of "challenge:number" begins with so many zero bits; 2^bits hashes on average.
"""

import hashlib
import time

from mixattn.evals.arena.platform import tokens
from mixattn.evals.arena.platform.battle import Refused
from mixattn.evals.arena.platform.store import ArenaStore

VALID_S = 3600.0
MAX_BITS = 24


def challenge(secret: bytes, session: str) -> str:
    """A fresh challenge for a session."""
    return tokens.seal(secret, f"{tokens.new_id()}~{session}~{time.time():.0f}")


def solved(challenge: str, number: str, bits: int) -> bool:
    """Whether the hash of the challenge and the number begins with `bits` zero bits."""
    digest = hashlib.sha256(f"{challenge}:{number}".encode()).digest()
    return int.from_bytes(digest, "big") >> (256 - bits) == 0


def check(store: ArenaStore, session: str, given: str, number: str, bits: int) -> None:
    """Accepts a solved challenge once.

    Raises:
      Refused: it is missing, another session's, too old, used, or not solved.
    """
    value = tokens.unseal(store.secret, given)
    parts = value.split("~") if value else []
    if len(parts) != 3 or parts[1] != session:
        raise Refused("this arena asks browsers for a short computation; load the page again", 403)
    if time.time() - float(parts[2]) > VALID_S:
        raise Refused("the page is too old; load it again", 403)
    if len(number) > 20 or not solved(given, number, bits):
        raise Refused("the computation that this arena asks browsers for is missing or wrong", 403)
    if not store.use_work(parts[0]):
        raise Refused("this page was used already; load it again", 403)
