"""Errors as OpenAI's clients expect them: status, headers and body. Pure.

openai-python sends a request again after 408, 409, 429 and 5xx unless `x-should-retry` is false, and waits for the time
in `retry-after-ms`. Every error of Baton has `x-should-retry`.
"""

from __future__ import annotations

import orjson

from baton.http.response import JSON, BodyTooLarge, HttpResponse, MethodNotAllowed, RouteNotFound
from baton.protocol.errors import (
    BatonError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    NoWorkers,
    Overloaded,
    PermissionDenied,
    PromptTooLong,
    Unauthenticated,
)

DONE = b"data: [DONE]\n\n"


class InvalidField(InvalidRequest):
    """A field of the body is invalid; the message names it."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class ModelNotFound(NotFound):
    """No model of that name is served."""


# The first class that an error is an instance of determines its status, OpenAI's type of error and its code.
_STATUSES: tuple[tuple[type[BatonError], int, str, str | None], ...] = (
    (PromptTooLong, 400, "invalid_request_error", "context_length_exceeded"),
    (MethodNotAllowed, 405, "invalid_request_error", "method_not_allowed"),
    (BodyTooLarge, 413, "invalid_request_error", "request_too_large"),
    (InvalidRequest, 400, "invalid_request_error", None),
    (Unauthenticated, 401, "invalid_request_error", "invalid_api_key"),
    (PermissionDenied, 403, "permission_error", "permission_denied"),
    (ModelNotFound, 404, "invalid_request_error", "model_not_found"),
    (RouteNotFound, 404, "invalid_request_error", "unknown_url"),
    (NotFound, 404, "invalid_request_error", "not_found"),
    (Overloaded, 429, "rate_limit_error", "rate_limit_exceeded"),
    (DeadlineExceeded, 504, "timeout_error", "deadline_exceeded"),
    (Cancelled, 499, "invalid_request_error", "cancelled"),
)
_UNAVAILABLE = (503, "service_unavailable_error", "service_unavailable")
_DEFECT = (500, "server_error", "internal_error")


def error_response(error: BatonError, in_stream: bool = False, context_tokens: int | None = None) -> HttpResponse:
    """The response for an error; `in_stream`: the events that end a stream which has begun.

    `context_tokens` is the length of the model's context, which clients look for in the message of `PromptTooLong`.
    """
    status, kind, code = _status(error)
    message = error.message
    if isinstance(error, PromptTooLong) and context_tokens is not None:
        message = f"This model's maximum context length is {context_tokens} tokens. {message}"
    param = error.field if isinstance(error, InvalidField) else None
    if isinstance(error, ModelNotFound):
        param = "model"
    body = orjson.dumps({"error": {"message": _text(message), "type": kind, "param": param, "code": code}})
    if in_stream:
        return HttpResponse(200, {}, b"data: " + body + b"\n\n" + DONE)
    return HttpResponse(status, {"content-type": JSON, **_retry_headers(error), **_other_headers(error)}, body)


def status_of(error: BatonError) -> int:
    """The HTTP status of an error."""
    return _status(error)[0]


def _text(message: str) -> str:
    """Without half characters, which JSON cannot have."""
    return message.encode(errors="replace").decode()


def _status(error: BatonError) -> tuple[int, str, str | None]:
    for kind, *answer in _STATUSES:
        if isinstance(error, kind):
            return answer[0], answer[1], answer[2]  # type: ignore[return-value]
    return _UNAVAILABLE if error.grpc_status == "UNAVAILABLE" else _DEFECT


def _retry_headers(error: BatonError) -> dict[str, str]:
    """Whether a retry can help, and when.

    `NoWorkers` comes after the cluster has waited for one; `Overloaded` without a time is refused at any load.
    """
    wait_s = error.retry_after_s if isinstance(error, Overloaded) else None
    hopeless = isinstance(error, NoWorkers) or (isinstance(error, Overloaded) and wait_s is None)
    headers = {"x-should-retry": "true" if error.retryable and not hopeless else "false"}
    if wait_s is not None:
        wait_ms = max(1, round(wait_s * 1000))
        headers |= {"retry-after": str(-(-wait_ms // 1000)), "retry-after-ms": str(wait_ms)}
    return headers


def _other_headers(error: BatonError) -> dict[str, str]:
    if isinstance(error, Unauthenticated):
        return {"www-authenticate": "Bearer"}
    return {"allow": error.allowed} if isinstance(error, MethodNotAllowed) else {}
