"""Answers to requests that are not carried out, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(Exception):
    """A request that is answered with an error of `status`; the message is one plain sentence for its sender."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return JSONResponse(self.body(), self.status, headers=self.headers)


def busy(seconds: int) -> Refused:
    return Refused(
        429,
        f"The server is busy; ask again in {seconds} s.",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds)},
    )


def too_late(seconds: float) -> Refused:
    """OpenAI's clients ask again after a 504, unless told not to: the same work would take as long again."""
    return Refused(
        504,
        f"The work took more than the {seconds:g} s that a request has here; ask for less, or raise `deadline`.",
        code="deadline_exceeded",
        headers={"x-should-retry": "false"},
    )


def check_chars(param: str, chars: int, most: int) -> None:
    if chars > most:
        raise Refused(400, f"{param}: {chars:,} characters; at most {most:,} are read here.", param=param,
                      code="context_length_exceeded")  # fmt: skip


def failed() -> Refused:
    return Refused(500, "The work failed in the server; its log says why.", code="failed")
