"""What gateways send: requests are accepted, refused, claimed and stopped. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton.config.schema import RouterSection
from baton.protocol import gateway_messages, session_messages
from baton.protocol.errors import BatonError, InvalidRequest, WorkerLost, error_from_name
from baton.protocol.gateway_messages import GatewayMessage, Submit
from baton.protocol.messages import Work, WorkerMessage
from baton.protocol.request import DIGEST_BYTES, Request
from baton.router.core import events
from baton.router.core.adoption import RESUME_WAIT_S, Adoption
from baton.router.core.automation import Automation
from baton.router.core.commands import SendToGateway
from baton.router.core.completion import failure, taken_over
from baton.router.core.gateways import Gateways
from baton.router.core.intake import Intake
from baton.router.core.live_request import LiveRequest
from baton.router.core.requests import Requests


@dataclass(eq=False)
class Submissions:
    """Commands and events that follow go to `requests`."""

    router_id: str
    config: RouterSection
    gateways: Gateways
    intake: Intake
    requests: Requests
    adoption: Adoption
    automation: Automation

    def on_message(self, gateway: str, message: WorkerMessage | GatewayMessage, now: float) -> None:
        """A message of a registered gateway."""
        self.gateways.by_name[gateway].last_message_s = now
        match message:
            case Submit():
                self._submit(gateway, message, now)
            case gateway_messages.StopRequest(request_id, num_tokens, reason, error, text):
                stopped = events.Stopped(reason, error_from_name(error, text) if error else None, num_tokens)
                self._of_gateway(gateway, request_id, stopped)
            case gateway_messages.EmittedTokens(request_id):
                self._of_gateway(gateway, request_id, events.Emitted(message))
            case gateway_messages.GatewayLoad():
                self.gateways.by_name[gateway].load = message
            case session_messages.Goodbye():
                self.lose(gateway, now)

    def _of_gateway(self, gateway: str, request_id: str, event: events.Event) -> None:
        """An event of a request, unless another gateway has claimed that."""
        live = self.requests.live.get(request_id)
        if live is not None and live.gateway == gateway:
            self.requests.events.append((request_id, event))

    def register(self, message: gateway_messages.RegisterGateway, now: float) -> None:
        """A gateway joins, or joins again."""
        name = message.info.name
        self.requests.commands += self.gateways.register(message, self.router_id, now)
        self.requests.on_gateway_registered(name, message.info.incarnation, message.request_ids, now)

    def lose(self, gateway: str, now: float, certain: bool = True) -> None:
        """A gateway has ended, or (not `certain`) is away: another one may claim its requests."""
        self.requests.commands += self.gateways.lose(gateway, None if certain else now)
        self.requests.on_gateway_lost(gateway, now)

    def _submit(self, gateway: str, submit: Submit, now: float) -> None:
        """Accept a request, refuse it, or give a live one to this gateway."""
        live = self.requests.live.get(submit.request_id)
        incarnation = self.gateways.by_name[gateway].info.incarnation
        try:
            if live is not None:
                check_claim(live, submit)
                if live.gateway != gateway and live.gateway in self.gateways and submit.called_at_s < live.called_at_s:
                    raise taken_over(live.request_id)  # by a client that came later, but whose gateway was faster
                self.requests.events.append((live.request_id, events.Claimed(gateway, incarnation, submit)))
                return
            self.intake.check(submit, now)
            if not (submit.resumed and self._resumes(submit.request_id, now)):
                self.requests.dispatch.check_queue(self.config.max_queued, now)
        except BatonError as error:
            self.requests.refusals.add(submit.request_id, gateway, error, now)
            self.requests.commands.append(SendToGateway(gateway, failure(submit.request_id, error, submit.submission)))
            return
        live = self.intake.open(submit, gateway, incarnation, now)
        self.requests.add(live)
        item = live.placement_input
        self.automation.on_arrival(live, item, now)
        self.requests.dispatch.wait(item)
        for action in self.adoption.on_submitted(live, submit.resumed):
            self.requests.take(action)

    def _resumes(self, request_id: str, now: float) -> bool:
        """Whether the request likely runs on a worker that has kept it, or is about to join."""
        return now < self.adoption.started_s + RESUME_WAIT_S or request_id in self.adoption.orphans


def check_claim(live: LiveRequest, submit: Submit) -> None:
    """Raise `InvalidRequest` if a live request of this id is another one, `WorkerLost` (try again) if it is ending."""
    if live.submit.digest != submit.digest or live.pinned:
        raise InvalidRequest(f"Request id {submit.request_id!r} is in use by another live request; choose another.")
    if live.closed:
        raise WorkerLost(f"Request {submit.request_id!r} is ending; retry in a moment.")


def probing(request: Request) -> Submit:
    """A request of the router's own, whose tokens no gateway gets."""
    tokens, sampling = len(request.prompt), request.sampling
    return Submit(request.request_id, bytes(DIGEST_BYTES), tokens, sampling.max_tokens, (), Work(request))
