"""The fields of a form that one of our own pages sent."""

from urllib.parse import urlsplit

from starlette.requests import Request

from mixattn.evals.arena.platform.battle import Refused

LONGEST_BODY = 100_000  # bytes


async def form(request: Request) -> dict[str, str]:
    """The fields, as text.

    Raises:
      Refused: another site sent the form, or it is too long.
    """
    origin = request.headers.get("origin")
    if origin and origin != "null" and urlsplit(origin).netloc != request.headers.get("host"):
        raise Refused("this form was sent by another site", 403)
    if not request.headers.get("content-length", "0").isdecimal():
        raise Refused("the length of the form is no number", 400)
    if int(request.headers.get("content-length") or 0) > LONGEST_BODY:
        raise Refused(f"more than {LONGEST_BODY} bytes", 413)
    if "chunked" in request.headers.get("transfer-encoding", "").lower():
        raise Refused("a form must tell its length", 411)
    return {name: str(value) for name, value in (await request.form()).items()}
