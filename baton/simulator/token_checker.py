"""What a cluster promises its clients, checked: each token of the model's answer once and in order, and no foreign KV.

The model is a function of all tokens before, so `expected_output` computes each answer without any code of the cluster.
A page's memory is the (token, position) pairs that were computed into it, so a page that was written late, too early or
for another sequence shows in the first step that reads it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from baton.engine.step import SampledToken, StepPlan, StepResult
from baton.gateway.core.stream import TextToken
from baton.protocol.request import Objectives, Request
from baton.router.core.completion import Completion

VOCAB, EOS = 97, 96

Slot = tuple[int, int] | None
"""The token and position whose KV stands there; None: garbage."""


class Violation(AssertionError):
    """The cluster broke a promise. The message says which."""


def next_token(tokens: Seq[int]) -> int:
    """The model: any function of the tokens will do."""
    return (sum((index + 1) * token for index, token in enumerate(tokens)) * 31 + len(tokens)) % VOCAB


def expected_output(request: Request, ends: bool = True) -> list[int]:
    """The model's answer; `ends`: it has an end-of-sequence token."""
    tokens = list(request.prompt)
    output: list[int] = []
    while len(output) < request.sampling.max_tokens:
        output.append(next_token(tokens))
        tokens.append(output[-1])
        if ends and output[-1] == EOS:
            break
    return output


@dataclass(eq=False)
class PageMemory:
    """A worker's pages and host memory, and the executor over them."""

    worker: str
    num_pages: int
    page_size: int
    pages: list[list[Slot]] = field(init=False)
    host: dict[int, list[Slot]] = field(default_factory=dict)  # by slot of host memory
    prefilled: int = 0  # tokens that were computed in chunks
    computed: int = 0  # positions, of all steps

    def __post_init__(self) -> None:
        self.pages = [[None] * self.page_size for _ in range(self.num_pages)]

    def execute(self, plan: StepPlan) -> StepResult:
        """Check the KV that each slice reads, write its own, and answer where it samples. Raises `Violation`."""
        sampled = []
        self.computed += plan.num_tokens
        for part in plan.slices:
            sequence, tokens = part.sequence, part.sequence.tokens
            self.prefilled += 0 if sequence.decoding else part.num_tokens
            held = [slot for page in sequence.page_table for slot in self.pages[page]]
            if held[: part.start] != list(zip(tokens[: part.start], range(part.start), strict=True)):
                raise Violation(f"{self.worker} reads foreign KV for {sequence.request_id}")
            for position in range(part.start, part.start + part.num_tokens):
                page = sequence.page_table[position // self.page_size]
                self.pages[page][position % self.page_size] = (tokens[position], position)
            if part.samples:
                if part.start + part.num_tokens != len(tokens):
                    raise Violation(f"{self.worker} samples {sequence.request_id} before its last token")
                sampled.append(SampledToken(next_token(tokens)))
        return StepResult(sampled)

    def corrupt(self, pages: Seq[int]) -> None:
        """Fill pages with garbage."""
        for page in pages:
            self.pages[page] = [None] * self.page_size


@dataclass(eq=False)
class Clients:
    """What each client has received, by request id. Raises `Violation` for a gap, a repeat or a second end."""

    requests: dict[str, Request] = field(default_factory=dict)
    shown: dict[str, list[int]] = field(default_factory=dict)
    ended: dict[str, Completion] = field(default_factory=dict)
    longest_pause_s: dict[str, float] = field(default_factory=dict)  # between two tokens, or before the first
    first_s: dict[str, float] = field(default_factory=dict)  # when the first token came
    _wanted_from: dict[str, int] = field(default_factory=dict)  # first index that the client lacks
    _last_s: dict[str, float] = field(default_factory=dict)

    def ask(self, request: Request) -> None:
        """A client has sent this request."""
        self.requests[request.request_id] = request
        self._last_s[request.request_id] = request.arrival_s

    def resume(self, request_id: str, lost: int) -> list[int]:
        """The client asks for the rest: the last `lost` tokens did not reach it. Returns those it has."""
        shown = self.shown[request_id]
        del shown[len(shown) - lost :]
        self._wanted_from[request_id] = len(shown)
        return shown

    def on_tokens(self, request_id: str, tokens: Seq[TextToken], now: float) -> None:
        """The router streams tokens to the client."""
        if request_id in self.ended:
            raise Violation(f"{request_id} got a token after its end")
        shown = self.shown[request_id]
        for token in tokens:
            if token.index < self._wanted_from.get(request_id, 0):
                continue  # the server does not send it twice
            if token.index != len(shown):
                raise Violation(f"{request_id} got token {token.index} after {len(shown)} tokens")
            shown.append(token.token_id)
        if request_id in self._last_s:
            pause_s = now - self._last_s[request_id]
            self.longest_pause_s[request_id] = max(self.longest_pause_s.get(request_id, 0.0), pause_s)
            self._last_s[request_id] = now
            self.first_s.setdefault(request_id, now)

    def met(self, request_id: str, objectives: Objectives) -> bool:
        """Whether the client got its whole answer, as soon and as fast as the objectives ask."""
        completion, request = self.ended.get(request_id), self.requests.get(request_id)
        if completion is None or completion.error is not None or request is None or request_id not in self.first_s:
            return False
        first_s, gaps = self.first_s[request_id], len(self.shown[request_id]) - 1
        on_time = objectives.ttft_s is None or first_s - request.arrival_s <= objectives.ttft_s
        if not gaps or objectives.tpot_s is None:
            return on_time
        return on_time and self._last_s[request_id] - first_s <= gaps * objectives.tpot_s

    def on_end(self, completion: Completion) -> None:
        """The router ends the client's stream."""
        if completion.request_id in self.ended:
            raise Violation(f"{completion.request_id} ended twice")
        self.ended[completion.request_id] = completion

    def check(self, request_id: str, ends: bool) -> None:
        """The tokens that the client has are right, and all there if the answer ended without an error."""
        shown, expected = self.shown[request_id], expected_output(self.requests[request_id], ends)
        completion = self.ended.get(request_id)
        complete = completion is not None and completion.error is None
        if shown != (expected if complete else expected[: len(shown)]):
            raise Violation(f"{request_id} got {shown} instead of {expected}")
