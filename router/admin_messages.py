"""Translates between admin messages and the core's types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from baton.protocol.errors import InvalidRequest
from baton.protocol.v1 import admin_pb2
from baton.router.core.core import RouterCore
from baton.router.core.explanation import Explanation
from baton.router.core.gateways import GatewayView
from baton.router.core.link_rates import LinkRate
from baton.router.core.live_request import LiveRequest
from baton.router.core.operation import Drain, Migrate, Operation, OperationSpec, Rebalance, Undrain
from baton.router.core.page_audit import Verdict
from baton.router.core.totals import Totals
from baton.router.gateway_rates import Rates
from baton.router.policy.cluster_state import WorkerView
from baton.router.request_phases import RequestPhase, ended_phases, live_phases


def read_spec(request: admin_pb2.StartOperationRequest) -> OperationSpec:
    """The requested operation; raises `InvalidRequest` if none is set."""
    match request.WhichOneof("kind"):
        case "drain":
            return Drain(tuple(request.drain.workers))
        case "undrain":
            return Undrain(tuple(request.undrain.workers))
        case "rebalance":
            return Rebalance(request.rebalance.prefill, request.rebalance.decode)
        case "migrate":
            return Migrate(request.migrate.request_id, request.migrate.worker or None)
        case _:
            raise InvalidRequest("The operation is missing: set drain, undrain, rebalance or migrate.")


def operation_message(operation: Operation, now: float) -> admin_pb2.Operation:
    """An operation, its steps and their progress."""
    message = admin_pb2.Operation(
        operation_id=operation.operation_id,
        title=operation.spec.title,
        state=operation.state.value,
        message=operation.message,
        elapsed_s=operation.elapsed_s(now),
    )
    for step in operation.steps:
        message.steps.add(
            worker=step.worker,
            action=step.action,
            state=step.state.value,
            detail=step.detail,
            elapsed_s=step.elapsed_s(now),
        )
    return message


def worker_message(view: WorkerView, now: float) -> admin_pb2.WorkerStatus:
    """A worker's last report and the router's predictions."""
    load, info = view.load, view.info
    return admin_pb2.WorkerStatus(
        name=view.name,
        host=info.host,
        pid=info.pid,
        device=info.device,
        incarnation=info.incarnation,
        pages_total=load.pages_total,
        pages_free=load.pages_free,
        pages_cached=load.pages_cached,
        pages_in_use=load.pages_in_use,
        running=load.running,
        waiting=load.waiting,
        pending_prefill_tokens=load.pending_prefill_tokens,
        context_tokens=load.context_tokens,
        reservations=len(load.reservation_ids),
        last_report_s=now - view.last_message_s,
        state=_state(view),
        role_epoch=load.role_epoch,
        predicted_busy_s=max(0.0, view.backlog_ends_s - now),
        predicted_tpot_s=_tpot_s(view),
        predicted_peak_pages=view.peak_pages(),
        swapped=load.swapped,
        swap_outs=load.swap_outs,
        recomputes=load.recomputes,
        rank_pids=[info.pid, *(rank.pid for rank in info.endpoint.ranks[1:])],
    )


def gateway_message(view: GatewayView, rates: Rates, now: float) -> admin_pb2.GatewayStatus:
    """A gateway's last report and its rates."""
    info, load = view.info, view.load
    return admin_pb2.GatewayStatus(
        name=info.name,
        host=info.host,
        pid=info.pid,
        incarnation=info.incarnation,
        public_address=info.public_address,
        streams=load.streams,
        tokens_per_s=rates.tokens_per_s,
        requests_per_s=rates.requests_per_s,
        cpu_share=rates.cpu_share,
        waiting_bytes=load.waiting_bytes,
        last_report_s=now - view.last_message_s,
        metrics_address=info.metrics_address,
    )


def _state(view: WorkerView) -> str:
    if view.serving:
        return "serving"
    holds = view.load.pages_in_use or view.load.running or view.load.waiting or view.sequences or view.reserved
    return "draining" if holds else "drained"


def _tpot_s(view: WorkerView) -> float:
    """Predicted seconds per token of the worker's decoding sequences; 0 without any."""
    if not view.running:
        return 0.0
    return view.decode_step_s()


def planner_message(core: RouterCore, now: float) -> admin_pb2.Planner:
    """The planner's mode, and its forecast and advice once it has any."""
    message = admin_pb2.Planner(auto=core.automation.auto)
    advice = core.automation.look(now)
    if advice is not None:
        message.prompt_tokens_per_s = advice.prompt_tokens_per_s
        message.output_tokens_per_s = advice.output_tokens_per_s
        message.prefill, message.decode = advice.prefill or 0, advice.decode or 0
        message.why = advice.why
    return message


def totals_message(totals: Totals) -> admin_pb2.RequestTotals:
    """The sums over all requests."""
    return admin_pb2.RequestTotals(**asdict(totals))


def explanation_message(
    request_id: str, explanation: Explanation, live: LiveRequest | None, now: float
) -> admin_pb2.Explanation:
    """The routing decision of a request, and its outcome; `live` unless it has ended."""
    decision, latency = explanation.decision, explanation.latency
    if explanation.completion is None and live is not None:
        latency = live.latency
    message = admin_pb2.Explanation(
        request_id=request_id,
        policy=explanation.policy,
        prefill_worker=decision.prefill,
        decode_worker=explanation.decode_worker,
        why=decision.why,
        output_tokens_p50=explanation.output_tokens_p50,
        output_tokens_p90=explanation.output_tokens_p90,
        queue_s=latency.queue_s if latency else 0.0,
        ttft_s=latency.ttft_s if latency else None,
        tpot_s=latency.tpot_s if latency else None,
        output_tokens=explanation.output_tokens,
        state=explanation.state,
    )
    for one in decision.candidates:
        message.candidates.add(
            worker=one.worker,
            local=one.local,
            ttft_s=one.ttft_s,
            wait_s=one.wait_s,
            uncached_tokens=one.uncached_tokens,
            tpot_s=one.tpot_s,
        )
    ended, ended_s = explanation.completion, explanation.ended_s
    if ended is not None and ended_s is not None:
        message.prompt_tokens, message.gateway = ended.prompt_tokens, ended.gateway
        message.attempts, message.migrations = ended.attempts, ended.migrations
        message.handoff_bytes = ended.handoff.bytes_sent if ended.handoff is not None else 0
        _add_phases(message, ended_phases(ended, ended_s), ended.latency.arrival_s, now)
    elif live is not None:
        _add_phases(message, live_phases(live), live.latency.arrival_s, now)
    return message


def _add_phases(message: admin_pb2.Explanation, phases: Sequence[RequestPhase], arrival_s: float, now: float) -> None:
    for one in phases:
        message.phases.add(
            name=one.name,
            worker=one.worker,
            start_s=one.start_s - arrival_s,
            seconds=(now if one.end_s is None else one.end_s) - one.start_s,
            running=one.end_s is None,
        )


def links_message(rates: Sequence[LinkRate]) -> admin_pb2.Links:
    """The measured transfer rates between workers."""
    message = admin_pb2.Links()
    for one in rates:
        message.links.add(
            source=one.source,
            target=one.target,
            num_bytes=one.num_bytes,
            seconds=one.seconds,
            same_host=one.same_host,
            warning=one.warning,
        )
    return message


def page_check_message(verdict: Verdict) -> admin_pb2.PageCheck:
    """The pages in use on each worker, and those that no live request accounts for."""
    message = admin_pb2.PageCheck(
        clean=verdict.clean,
        live_requests=verdict.live_requests,
        unanswered_handoffs=verdict.unanswered_handoffs,
        lost_handoffs=verdict.lost_handoffs,
    )
    for one in verdict.workers:
        message.workers.add(
            name=one.latest.worker,
            incarnation=one.latest.incarnation,
            pages_total=one.latest.pages_total,
            pages_free=one.latest.pages_free,
            pages_cached=one.latest.pages_cached,
            pages_in_use=one.latest.pages_in_use,
            pages_accounted=one.pages_accounted,
            pages_leaked=one.pages_leaked,
            unknown=one.unknown,
            reported=one.reported,
        )
    return message
