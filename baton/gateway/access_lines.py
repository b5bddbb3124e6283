"""The access log: a line per request that has ended or was refused. Prompts and answers are not in it."""

from __future__ import annotations

from typing import Any

from baton.gateway.ended_request import EndedRequest, RefusedRequest
from baton.http.errors import status_of
from baton.logs import access_log
from baton.protocol.errors import BatonError


def write_access_line(ended: EndedRequest) -> None:
    """Log how a request ended."""
    fields = access_fields(ended)
    access_log.info(access_line(fields), extra={"request": ended.request.request_id, "fields": fields})


def write_refusal_line(refused: RefusedRequest) -> None:
    """Log a request that got an error in place of a stream."""
    error = refused.error
    fields = {"method": refused.api, "status": _status(refused.api, error)}
    fields |= {"error": type(error).__name__, "error_message": error.message}
    line = f"{refused.api} {fields['status']} {fields['error']}: {error.message}"
    access_log.info(line, extra={"request": refused.request_id, "fields": fields})


def access_fields(ended: EndedRequest) -> dict[str, Any]:
    """The members of a request's line, in seconds and tokens."""
    end, error = ended.end, ended.end.error
    fields: dict[str, Any] = {
        "tenant": ended.request.tenant,
        "method": ended.api,
        "status": _status(ended.api, error),
        "prompt_tokens": end.prompt_tokens,
        "cached_tokens": end.cached_tokens,
        "output_tokens": end.output_tokens,
        "ttft_s": _rounded(end.latency.ttft_s),
        "duration_s": _rounded(ended.ended_s - end.latency.arrival_s),
    }
    if error is not None:
        fields |= {"error": type(error).__name__, "error_message": error.message}
    elif end.reason is not None:
        fields["finish_reason"] = end.reason.value
    if ended.trace is not None:
        fields["trace_id"] = ended.trace.name
    return fields


def access_line(fields: dict[str, Any]) -> str:
    """The same as a sentence, for people."""
    how = f"{fields['error']}: {fields['error_message']}" if "error" in fields else fields.get("finish_reason", "ended")
    first = "no token" if fields["ttft_s"] is None else f"first after {fields['ttft_s']:.3f} s"
    tenant = f"tenant {fields['tenant']}, " if fields["tenant"] else ""
    trace = f", trace {fields['trace_id']}" if "trace_id" in fields else ""
    return (
        f"{fields['method']} {fields['status']} {how}; {tenant}{fields['prompt_tokens']} prompt "
        f"({fields['cached_tokens']} cached) + {fields['output_tokens']} output tokens, {first}, "
        f"{fields['duration_s']:.3f} s{trace}"
    )


def _status(api: str, error: BatonError | None) -> int | str:
    """The status of the end: a stream that has begun ends with it in its last event."""
    if api == "http":
        return 200 if error is None else status_of(error)
    return "OK" if error is None else error.grpc_status


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
