"""What the router logs of requests and operations."""

from __future__ import annotations

import pytest

from baton.protocol.errors import BatonError, WorkerLost
from baton.protocol.latency import Latency
from baton.protocol.request import FinishReason
from baton.router.core.completion import Completion
from baton.router.core.operation import Drain, Operation, OperationState, Step, StepState
from baton.router.log_lines import completion_line, operation_line


@pytest.mark.parametrize(
    ("reason", "error", "workers", "told"),
    [
        (FinishReason.STOP, None, ("prefill-0", "decode-0"), ("ended: stop;", "on prefill-0, decode-0")),
        (FinishReason.LENGTH, None, ("mixed-0", "mixed-0"), ("ended: length;", "on mixed-0")),
        (None, WorkerLost("It was on two workers that died."), ("", ""), ("two workers that died", "on no worker")),
    ],
)
def test_a_requests_end_is_one_line(
    reason: FinishReason | None, error: BatonError | None, workers: tuple[str, str], told: tuple[str, str]
) -> None:
    latency = Latency(10.0, last_token_s=10.25)
    line = completion_line(Completion("r1", "gateway-0", reason, error, 6, 4, latency, *workers, 1, 0, None, 0))
    assert told[0] in line
    assert line.endswith(told[1])
    assert "6 prompt tokens, 4 output tokens, 0.250 s, gateway-0, attempts 1" in line


def test_an_operation_is_told_by_the_step_it_is_at_and_at_last_by_its_end() -> None:
    steps = [Step("decode-0", "drain", state=StepState.DONE), Step("decode-1", "drain", state=StepState.DRAINING)]
    operation = Operation("op", Drain(("decode-0", "decode-1")), steps, 0.0)
    steps[1].detail = "3 requests left"
    assert operation_line(operation) == "drain decode-0, decode-1: decode-1, draining, 3 requests left"
    operation.state, operation.message = OperationState.FAILED, "decode-1 has died"
    assert operation_line(operation) == "drain decode-0, decode-1: failed, decode-1 has died"
