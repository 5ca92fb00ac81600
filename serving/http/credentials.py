"""The secret that a request shows: a bearer token, or the password of HTTP's basic scheme, which browsers ask
for and send again with a page's stream of events."""

import base64
from collections.abc import Mapping


def secret_of(headers: Mapping[str, str]) -> str | None:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value or None
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2] or None
        except ValueError:  # not ASCII, not base64, or not UTF-8
            return None
    return headers.get("x-api-key") or None
