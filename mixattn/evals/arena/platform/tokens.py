"""Signed values: session cookies and vote tokens."""

import hashlib
import hmac
import secrets


def new_id() -> str:
    """A random identifier that nobody guesses (128 bits)."""
    return secrets.token_urlsafe(16)


def sign(secret: bytes, purpose: str, *parts: str) -> str:
    """A signature of `parts` for one purpose; parts cannot be moved between each other."""
    message = "\x00".join([purpose, *parts]).encode()
    return hmac.new(secret, message, hashlib.sha256).hexdigest()[:40]


def matches(secret: bytes, given: str, purpose: str, *parts: str) -> bool:
    return hmac.compare_digest(sign(secret, purpose, *parts).encode(), given.encode())


def seal(secret: bytes, value: str) -> str:
    """`value` with its signature, for a cookie."""
    return f"{value}.{sign(secret, 'cookie', value)}"


def unseal(secret: bytes, sealed: str) -> str | None:
    """The value of `seal`, or None if it was not made by us."""
    value, _, signature = sealed.rpartition(".")
    return value if value and matches(secret, signature, "cookie", value) else None
