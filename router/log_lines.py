"""Lines of the router's log about requests and operations. Pure."""

from __future__ import annotations

from baton.router.core.completion import Completion
from baton.router.core.operation import Operation


def completion_line(completion: Completion) -> str:
    """How a request ended, its gateway and workers, tokens and time."""
    reason = completion.reason.value if completion.reason is not None else "no reason"
    end = completion.error.message if completion.error is not None else reason
    workers = dict.fromkeys(filter(None, (completion.prefill_worker, completion.decode_worker)))
    return (
        f"ended: {end}; {completion.prompt_tokens} prompt tokens, "
        f"{completion.output_tokens} output tokens, {completion.latency.total_s:.3f} s, "
        f"{completion.gateway or 'no gateway'}, attempts {completion.attempts} on {', '.join(workers) or 'no worker'}"
    )


def operation_line(operation: Operation) -> str:
    """The end of an operation, or its current step."""
    step = next((step for step in operation.steps if not step.state.ended), None)
    if operation.state.ended or step is None:
        words = [operation.state.value, operation.message]
    else:
        words = [step.worker, step.state.value, step.detail]
    return f"{operation.spec.title}: {', '.join(filter(None, words))}"
