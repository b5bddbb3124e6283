"""The OpenAI-compatible HTTP API of a gateway, as an ASGI application."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from baton.access.access import GENERATE, Access
from baton.access.hot_reload import HotReload
from baton.gateway.driver import GatewayDriver
from baton.gateway.ended_request import RefusedRequest
from baton.gateway.http.answers import renderer
from baton.gateway.http.ask import Ask, HttpModel
from baton.gateway.http.chat import parse_chat
from baton.gateway.http.completions import parse_completion
from baton.gateway.http.live_answer import LEFT, LiveAnswer
from baton.gateway.http.long_bodies import parsed
from baton.gateway.http.metrics_app import check_watcher
from baton.gateway.http.models import (
    TokenizerInfo,
    detokenize_body,
    model_body,
    models_body,
    parse_detokenize,
    parse_tokenize,
    tokenize_body,
    tokenizer_info_body,
    version_body,
)
from baton.gateway.intake import Intake
from baton.gateway.siblings import sibling
from baton.http.application import Handler, HttpApplication
from baton.http.exchange import Exchange
from baton.http.metrics import METRICS_PATH, metrics_response
from baton.http.response import JSON, HttpResponse
from baton.http.routes import Routes
from baton.logs import log
from baton.metrics.exposition import Exposition
from baton.protocol.errors import BatonError, Cancelled, NoRouter
from baton.protocol.request import Request

MAX_LOGGED_FIELDS = 1000
PROBES = ("/health", "/liveness", "/readiness")  # Callers need no token
MODEL_PATH = "/v1/models/"
EMPTY = HttpResponse(200, {}, b"")
Parser = Callable[[bytes, HttpModel, Mapping[str, str]], Ask]


@dataclass(eq=False)
class HttpApp(HttpApplication):
    """Routes, access and errors of the API. A request is generated as one over gRPC is."""

    driver: GatewayDriver
    intake: Intake
    tokens: HotReload[Access] | None
    tokenizer_info: TokenizerInfo
    version: str
    metrics: Exposition
    model: HttpModel = field(init=False)
    answers: set[LiveAnswer] = field(default_factory=set)
    _logged_fields: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        served = self.intake.model
        self.model = HttpModel(
            served.name, served.context_tokens, served.config.vocab_size, int(time.time()), served.sampling_defaults
        )
        routes: dict[str, tuple[str, Handler]] = {
            "/health": ("GET", self._alive),
            "/liveness": ("GET", self._alive),
            "/readiness": ("GET", self._ready),
            "/version": ("GET", self._version),
            METRICS_PATH: ("GET", self._metrics),
            "/v1/models": ("GET", self._models),
            "/v1/completions": ("POST", self._completion),
            "/v1/chat/completions": ("POST", self._chat),
            "/tokenize": ("POST", self._tokenize),
            "/detokenize": ("POST", self._detokenize),
            "/tokenizer_info": ("GET", self._tokenizer_info),
            MODEL_PATH: ("GET", self._one_model),
        }
        self.routes, self.context_tokens = Routes(routes), served.context_tokens

    def end_answers(self) -> None:
        """End all live answers, because the gateway stops."""
        for answer in list(self.answers):
            answer.fail(NoRouter("This gateway is stopping: send the request again."))

    def check_caller(self, exchange: Exchange) -> None:
        """Callers need a token, except for probes; that for metrics is one of operators."""
        path = exchange.scope["path"]
        if path == METRICS_PATH:
            check_watcher(exchange, self.tokens)
        elif path not in PROBES:
            self._tenant(exchange)

    async def _failed(self, exchange: Exchange, error: BatonError) -> HttpResponse | None:
        if not exchange.streams and exchange.scope["path"] not in (*PROBES, METRICS_PATH):
            self.driver.refuse(RefusedRequest(exchange.request_id, "http", error))
        return await super()._failed(exchange, error)

    def _tenant(self, exchange: Exchange) -> str:
        """The tenant of the request's token; raises `Unauthenticated` and `PermissionDenied`."""
        if self.tokens is None:
            return ""
        caller = self.tokens.value.identify(exchange.authorization)
        caller.require_role(GENERATE)
        return caller.tenant

    async def _alive(self, exchange: Exchange) -> HttpResponse:
        return EMPTY

    async def _ready(self, exchange: Exchange) -> HttpResponse:
        """A router is there, and a worker for each needed role."""
        if (unready := self.driver.unready) is not None:
            raise unready
        return EMPTY

    async def _version(self, exchange: Exchange) -> HttpResponse:
        return _json(version_body(self.version))

    async def _metrics(self, exchange: Exchange) -> HttpResponse:
        return await metrics_response(self.metrics, exchange)

    async def _models(self, exchange: Exchange) -> HttpResponse:
        return _json(models_body(self.model))

    async def _one_model(self, exchange: Exchange) -> HttpResponse:
        return _json(model_body(exchange.scope["path"].removeprefix(MODEL_PATH), self.model))

    async def _tokenizer_info(self, exchange: Exchange) -> HttpResponse:
        return _json(tokenizer_info_body(self.tokenizer_info))

    async def _tokenize(self, exchange: Exchange) -> HttpResponse:
        body = await exchange.body()
        ask = await parsed(parse_tokenize, body, self.model)
        if ask.chat is not None:
            token_ids = await self.intake.encode_chat(ask.chat, len(body))
        else:
            token_ids = await self.intake.encode(ask.text or "", ask.add_special_tokens)
        return _json(tokenize_body(token_ids, self.model, self.intake.model.tokenizer if ask.with_strings else None))

    async def _detokenize(self, exchange: Exchange) -> HttpResponse:
        token_ids = await parsed(parse_detokenize, await exchange.body(), self.model)
        return _json(detokenize_body(self.intake.model.tokenizer.decode(token_ids)))

    async def _completion(self, exchange: Exchange) -> None:
        await self._generate(exchange, parse_completion, "cmpl-")

    async def _chat(self, exchange: Exchange) -> None:
        await self._generate(exchange, parse_chat, "chatcmpl-")

    async def _generate(self, exchange: Exchange, parse: Parser, prefix: str) -> None:
        """Answer a body of completions or of a chat."""
        answer, requests = await self._prepared(exchange, parse, prefix)
        names, trace, traces = _names(exchange, answer.ask), answer.trace, self.driver.traces
        self.answers.add(answer)
        self.driver.http_ids.update(names)
        ended: BatonError | None = Cancelled(LEFT)
        try:
            await answer.run(requests)
            ended = None
        except BatonError as error:
            ended = error
            raise
        finally:
            self.answers.discard(answer)
            self.driver.http_ids.difference_update(names)
            if traces is not None and trace is not None and len(requests) > 1:
                times = requests[0].arrival_s, self.driver.clock()
                traces.on_body_ended(trace, names[0], len(requests), times, ended)

    async def _prepared(self, exchange: Exchange, parse: Parser, prefix: str) -> tuple[LiveAnswer, list[Request]]:
        """The answer to a body, not begun, and the requests of its sequences."""
        arrival_s = self.driver.clock()
        body = await exchange.body()
        ask = await parsed(parse, body, self.model, exchange.headers)
        self._log_ignored(ask)
        prompts = await self._prompts(ask, len(body))
        names = _names(exchange, ask)
        if not (self.driver.http_ids.isdisjoint(names) and self.driver.session.streams.keys().isdisjoint(names)):
            # A live id would be resumed, as gRPC's clients do
            exchange.request_id = f"{exchange.request_id}-{self.intake.seeds.getrandbits(32):08x}"
        requests = self._requests(ask, prompts, exchange, arrival_s)
        words = self.intake.model.tokenizer
        written = renderer(ask, prefix + exchange.request_id, int(time.time()), prompts, words)
        traces = self.driver.traces
        trace = traces.begin(exchange.trace_headers, ask.operation) if traces is not None else None
        return LiveAnswer(self.driver, exchange, ask, written, trace), requests

    async def _prompts(self, ask: Ask, num_bytes: int) -> list[Sequence[int]]:
        """The token ids of every prompt of a body of `num_bytes` bytes."""
        if ask.chat is not None:
            return [await self.intake.encode_chat(ask.chat, num_bytes)]
        return [
            await self.intake.encode(prompt, ask.add_special_tokens) if isinstance(prompt, str) else prompt
            for prompt in ask.prompts
        ]

    def _requests(
        self, ask: Ask, prompts: Sequence[Sequence[int]], exchange: Exchange, arrival_s: float
    ) -> list[Request]:
        """A request per sequence. The first has the id of the exchange, the others have a number more."""
        tenant, requests = self._tenant(exchange), list[Request]()
        names = _names(exchange, ask)
        for prompt in prompts:
            first = self.intake.request(
                prompt,
                ask.sampling,
                arrival_s=arrival_s,
                tenant=tenant,
                priority=ask.priority,
                objectives=ask.objectives,
            )
            for index in range(ask.best_of):
                requests.append(sibling(first, index, names[len(requests)]))
        return requests

    def _log_ignored(self, ask: Ask) -> None:
        for name in ask.ignored:
            if name not in self._logged_fields and len(self._logged_fields) < MAX_LOGGED_FIELDS:
                self._logged_fields.add(name)
                log.info(f"the unknown field {name!r} of a request is ignored, as all further ones")


def _names(exchange: Exchange, ask: Ask) -> list[str]:
    """The request ids of the sequences."""
    first = exchange.request_id
    return [first, *(f"{first}-{number}" for number in range(1, ask.num_sequences))]


def _json(body: bytes) -> HttpResponse:
    return HttpResponse(200, {"content-type": JSON}, body)
