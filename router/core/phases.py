"""Records the phases of a sampled request: after each event, what its state says is running. Pure.

| phase | from | to |
| --- | --- | --- |
| queue | its arrival at the router | its placement |
| prefill | its placement | the first token |
| wait for decode | the first token | the reservation on a decode worker, if none was made before |
| handoff, migration | the order to reserve pages | the commit at the target |
| decode | the commit, or the first token where it stays | its last token, or the commit of a migration |
| retry | the loss of its worker or pages | its next placement |
"""

from __future__ import annotations

from baton.protocol.messages import HandoffCommitted, HandoffEnded, ReservationRefused, Reserved
from baton.router.core.events import Adopted, Claimed, Event, FirstToken, Lost, Placed, Reported
from baton.router.core.live_request import HandoffKind, LiveRequest, Phase
from baton.router.core.timeline import AttributeValue, RecordedPhase, Timeline
from baton.router.policy.placement import RoutingDecision


def observe(live: LiveRequest, event: Event, now: float) -> None:
    """End the phases that the event has ended and begin those that it has begun."""
    if isinstance(event, Claimed):
        _claimed(live, event)
    timeline = live.timeline
    if timeline is None:
        return
    _add_facts(timeline, event, now)
    wanted = _running(live)
    for key in [key for key in timeline.running if key not in wanted]:
        phase = timeline.running.pop(key)
        phase.end_s = now
        _end(phase, key, live, event, timeline.decided_by)
    for key, name in wanted.items():
        if key not in timeline.running:
            timeline.begin(key, RecordedPhase(name, now, now, _at_start(name, live)))


def _claimed(live: LiveRequest, event: Claimed) -> None:
    """Its span is another one now: phases that ended under the earlier one would have no parent."""
    trace = event.submit.trace
    if trace is None:
        live.timeline = None
    elif live.timeline is None or live.timeline.trace != trace:
        live.timeline = Timeline(trace)


def _running(live: LiveRequest) -> dict[str, str]:
    """The name of each running phase, by what distinguishes it from others of that name."""
    phase, handoff, running = live.phase, live.handoff, dict[str, str]()
    if live.closed:
        return running
    if phase in (Phase.ASKING, Phase.QUEUED):
        name = "retry" if live.attempts else "queue"
        running[name] = name
    elif phase is Phase.PREFILLING:
        running[f"prefill {live.runner}"] = "prefill"
    elif phase is Phase.DECODING:
        running[f"decode {live.runner}"] = "decode"
    elif phase is Phase.HANDING_OFF and handoff is None:
        running[_pages(live.runs_on)] = "handoff"  # Its pages are there, and its target has not committed
    elif phase is Phase.HANDING_OFF and handoff is not None and handoff.state is None:
        running["wait for decode"] = "wait for decode"
    if handoff is not None and handoff.state is not None:
        placed = handoff.kind is HandoffKind.PLACEMENT
        running[_pages(handoff.reservation_id)] = "handoff" if placed else "migration"
    return running


def _pages(reservation_id: str) -> str:
    return f"pages {reservation_id}"


def _at_start(name: str, live: LiveRequest) -> dict[str, AttributeValue]:
    match name:
        case "retry":
            return {"baton.attempt": live.attempts + 1, "baton.retry.reason": live.restarted_for}
        case "prefill":
            return {
                "baton.worker": live.runner or "",
                "baton.attempt": live.attempts,
                "baton.tokens": live.submit.num_prompt_tokens + live.submit.num_emitted,
            }
        case "decode":
            return {"baton.worker": live.runner or "", "baton.attempt": live.attempts, "baton.adopted": live.adopted}
        case "handoff" | "migration":
            source, target = live.runner or "", live.target or ""
            return {"baton.source": source, "baton.target": target, "baton.attempt": live.attempts}
    return {}


def _add_facts(timeline: Timeline, event: Event, now: float) -> None:
    """What the event reports on a phase that runs."""
    match event:
        case FirstToken(worker, ages_s):
            prefill = timeline.running.get(f"prefill {worker}")
            if prefill is not None:
                prefill.events += [("chunk computed", max(prefill.start_s, now - age_s)) for age_s in ages_s]
        case Reported(_, (Reserved() | HandoffCommitted() | HandoffEnded()) as message):
            transfer = timeline.running.get(_pages(message.reservation_id))
            if transfer is None:
                return
            if isinstance(message, HandoffEnded):
                report = message.report
                transfer.attributes |= {
                    "baton.handoff.outcome": message.outcome.value,
                    "baton.handoff.bytes": report.bytes_sent,
                    "baton.handoff.pages": report.pages_sent,
                    "baton.handoff.cached_pages": report.pages_cached,
                    "baton.handoff.transfer_s": report.transfer_s,
                    "baton.handoff.exposed_s": report.exposed_s,
                }
            else:
                transfer.events.append(("reserved" if isinstance(message, Reserved) else "committed", now))


def _end(phase: RecordedPhase, key: str, live: LiveRequest, event: Event, policy: str) -> None:
    """What is known of a phase at its end."""
    starts_over = live.phase in (Phase.ASKING, Phase.QUEUED)
    match phase.name:
        case "queue" | "retry":
            if isinstance(event, Placed):
                phase.attributes |= decision_attributes(policy, event.decision)
            elif isinstance(event, Adopted):
                phase.attributes |= {"baton.why": f"continued: {event.worker} has kept it", "baton.adopted": True}
        case "handoff" | "migration":
            if not live.closed and live.phase is not Phase.FINISHING and key != _pages(live.runs_on):
                phase.error = live.restarted_for if starts_over else _why_given_up(event)
        case _:
            if starts_over:
                phase.error = live.restarted_for
            elif phase.name == "decode":
                phase.attributes["baton.output_tokens"] = live.output_tokens


def _why_given_up(event: Event) -> str:
    match event:
        case Reported(_, HandoffEnded() as ended):
            return ended.reason or ended.outcome.value
        case Reported(worker, ReservationRefused()):
            return f"{worker} has too few free pages"
        case Lost(worker):
            return f"{worker} died"
    return "given up"


def decision_attributes(policy: str, decision: RoutingDecision) -> dict[str, AttributeValue]:
    """A placement decision, as `baton explain` shows it."""
    attributes: dict[str, AttributeValue] = {
        "baton.policy": policy,
        "baton.why": decision.why,
        "baton.prefill_worker": decision.prefill,
        "baton.decode_worker": decision.prefill if decision.local else decision.decode or "",
        "baton.local": decision.local,
        "baton.candidates": len(decision.candidates),
    }
    if decision.candidates:
        chosen = decision.candidates[0]
        attributes |= {
            "baton.predicted.ttft_s": chosen.ttft_s,
            "baton.predicted.wait_s": chosen.wait_s,
            "baton.predicted.tpot_s": chosen.tpot_s,
            "baton.uncached_tokens": chosen.uncached_tokens,
        }
    return attributes
