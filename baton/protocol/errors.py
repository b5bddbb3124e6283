"""The tree of errors.

    BatonError
    ├── InvalidRequest        the caller must change the request           INVALID_ARGUMENT
    │   └── PromptTooLong     prompt (plus output) exceeds the context     INVALID_ARGUMENT
    ├── ConfigError           the operator must change the configuration   FAILED_PRECONDITION
    │   └── ModelError        the checkpoint cannot be served              FAILED_PRECONDITION
    ├── Unauthenticated       the call has no valid token                  UNAUTHENTICATED
    ├── PermissionDenied      the caller may not do this                   PERMISSION_DENIED
    ├── Conflict              a running operation excludes this one        FAILED_PRECONDITION
    ├── Overloaded            no capacity now, retry later                 RESOURCE_EXHAUSTED   retryable
    ├── NotFound              no object has that name or id                NOT_FOUND
    ├── NoWorkers             a pool has no live worker                    UNAVAILABLE          retryable
    ├── NoRouter              a gateway has no connection to the router    UNAVAILABLE          retryable
    ├── WorkerLost            a worker died while running the request      UNAVAILABLE          retryable
    ├── HandoffFailed         KV pages did not arrive                      UNAVAILABLE          retryable
    ├── WrongRole             the worker has changed its role              UNAVAILABLE          retryable
    ├── DeadlineExceeded      the request's own deadline passed            DEADLINE_EXCEEDED
    ├── Cancelled             the client disconnected or cancelled         CANCELLED
    └── InternalError         a defect in Baton                            INTERNAL

`grpc_status` is the canonical gRPC status *name*, so that this module needs no gRPC.
"""

from __future__ import annotations


class BatonError(Exception):
    """Root of all errors that Baton raises; the message is one sentence that says what to do."""

    grpc_status = "INTERNAL"
    retryable = False

    @property
    def message(self) -> str:
        """The sentence for the user."""
        return str(self.args[0]) if self.args else self.__class__.__name__


class InvalidRequest(BatonError):
    grpc_status = "INVALID_ARGUMENT"


class PromptTooLong(InvalidRequest):
    pass


class ConfigError(BatonError):
    grpc_status = "FAILED_PRECONDITION"


class ModelError(ConfigError):
    pass


class Unauthenticated(BatonError):
    grpc_status = "UNAUTHENTICATED"


class PermissionDenied(BatonError):
    grpc_status = "PERMISSION_DENIED"


class Conflict(BatonError):
    grpc_status = "FAILED_PRECONDITION"


class Overloaded(BatonError):
    """`retry_after_s` estimates in how many seconds capacity is free; None: no estimate. `cause` is for metrics."""

    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True

    def __init__(self, message: str = "", retry_after_s: float | None = None, cause: str = "") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.cause = cause or type(self).__name__


class NotFound(BatonError):
    grpc_status = "NOT_FOUND"


class NoWorkers(BatonError):
    grpc_status = "UNAVAILABLE"
    retryable = True


class NoRouter(BatonError):
    grpc_status = "UNAVAILABLE"
    retryable = True


class WorkerLost(BatonError):
    grpc_status = "UNAVAILABLE"
    retryable = True


class HandoffFailed(BatonError):
    grpc_status = "UNAVAILABLE"
    retryable = True


class WrongRole(BatonError):
    grpc_status = "UNAVAILABLE"
    retryable = True


class DeadlineExceeded(BatonError):
    grpc_status = "DEADLINE_EXCEEDED"


class Cancelled(BatonError):
    grpc_status = "CANCELLED"


class InternalError(BatonError):
    grpc_status = "INTERNAL"


def _tree(root: type[BatonError]) -> list[type[BatonError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _tree(child))]


ERRORS_BY_NAME: dict[str, type[BatonError]] = {kind.__name__: kind for kind in _tree(BatonError)}
"""Errors by class name: between processes an error travels as name and message (see `error_from_name`)."""


def error_from_name(name: str, message: str) -> BatonError:
    """The error that another process reported; an unknown name becomes `InternalError`."""
    return ERRORS_BY_NAME.get(name, InternalError)(message)
