"""Who is asking: the client that is charged, and the namespace of its cached prefixes.

Without keys a client is `user`, else X-Client-Id, else the peer's address. With keys it is the key's name,
and `user` only divides that key's own share (a path for the policy `hvtc`), so that many names buy nothing.
"""

from dataclasses import dataclass

from serving.http.errors import ApiError, bad_field
from serving.http.keys import ApiKey
from serving.http.settings import MAX_NAME
from serving.request import ClientId


@dataclass(frozen=True)
class HttpCaller:
    """Who sent a request: the key it came with (None: keys are off), its header, its address."""

    key: ApiKey | None
    header: str | None
    peer: str

    @property
    def share(self) -> str:
        """Whose limits apply: the key's name; empty where there are no keys."""
        return self.key.name if self.key else ""

    def client(self, user: str | None) -> ClientId:
        """The client to charge.

        Raises:
          ApiError: 400: a name that cannot be printed or is too long.
        """
        name = user or self.header or ""
        if name:
            check_name(name, "user" if user else "X-Client-Id")
        if self.key is None:
            return name or self.peer
        return f"{self.key.name}/{escaped(name)}" if name else self.key.name

    def salt(self, cache_salt: str) -> str:
        """Callers of different keys never share cached prefixes, whatever salt they name."""
        return f"{self.share}/{cache_salt}" if self.key else cache_salt


def check_name(name: str, what: str) -> None:
    if len(name) > MAX_NAME:
        raise bad_field(what, f"{what} has {len(name)} characters; at most {MAX_NAME}")
    if not name.isprintable():
        raise bad_field(what, f"{what} must be printable characters")


def escaped(name: str) -> str:
    """A user's name as one part of a path."""
    return name.replace("%", "%25").replace("/", "%2F")


def header_name(value: bytes | None) -> str | None:
    """The text of an X-Client-Id header.

    Raises:
      ApiError: 400: not UTF-8.
    """
    if value is None:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise ApiError(400, "X-Client-Id is not UTF-8", param="X-Client-Id", code="invalid_value") from None
