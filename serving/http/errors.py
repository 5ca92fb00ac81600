"""The one shape of every refusal: OpenAI's error object."""

import json
from typing import Any

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A refusal, as the client will read it.

    Args:
      param: the field that is wrong, if one is.
      code: a word for programs.
      retry_after_s: when to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s
        self.challenge: str | None = None  # how a browser may ask for a key

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code or kind}
        }

    @property
    def headers(self) -> dict[str, str]:
        found = {}
        if self.retry_after_s is not None:
            found["retry-after"] = str(max(1, round(self.retry_after_s)))
        if self.challenge is not None:
            found["www-authenticate"] = self.challenge
        return found

    def encoded(self) -> bytes:
        return json.dumps(self.body).encode()


def bad_field(name: str, message: str, code: str | None = None) -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, message, param=name, code=code or "invalid_value")
