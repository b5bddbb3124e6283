"""A request's output as its client sees it: each index once, in order, with its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.gateway.core.detokenizer import Detokenizer, StopStrings, Vocabulary
from baton.protocol.gateway_messages import TokenOutput
from baton.protocol.prompt_logprobs import PromptLogprobs
from baton.protocol.request import FinishReason, Request

MAX_EARLY_TOKENS = 1024  # of one stream; further ones are dropped, and sent again when the gap is asked for


@dataclass(slots=True)  # not frozen: one is made per token
class TextToken:
    """One output token, ready for the client."""

    index: int
    token_id: int
    text: str
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


@dataclass(slots=True, eq=False)
class OutputStream:
    """Orders tokens that may come from two workers, twice or early, and turns them into text.

    Log-probabilities of the prompt come before the first token: it counts as early until they are complete.

    `finish` is set by the worker's last token or by `close`, `stop_string_met` by the text; after either nothing is
    accepted.
    """

    request: Request
    vocabulary: Vocabulary | None  # None: no text is needed
    token_ids: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    finish: FinishReason | None = None
    stop_string_met: bool = False
    trailing_text: str = ""
    prompt: list[PromptLogprobs] = field(default_factory=list)  # The prompt's log-probabilities, if requested
    _prompt_due: int = field(init=False)  # Index of the first prompt token whose log-probability is missing
    _early: dict[int, TokenOutput] = field(default_factory=dict)
    _detokenizer: Detokenizer | None = field(init=False)
    _stop_strings: StopStrings | None = field(init=False)

    def __post_init__(self) -> None:
        self._detokenizer = None
        if self.vocabulary is not None:
            self._detokenizer = Detokenizer(self.vocabulary)
            self._detokenizer.read_prompt(self.request.prompt)
        sampling = self.request.sampling
        self._prompt_due = 1 if sampling.prompt_logprobs is not None else len(self.request.prompt)
        self._stop_strings = StopStrings(sampling.stop, sampling.include_stop_str_in_output) if sampling.stop else None

    def resume(self, token_ids: Sequence[int]) -> list[TextToken]:
        """Continue after these tokens; returns them as they were streamed, without log-probabilities."""
        request_id = self.request.request_id
        return [self._show(TokenOutput(request_id, index, token_id)) for index, token_id in enumerate(token_ids)]

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.stop_string_met

    @property
    def reason(self) -> FinishReason | None:
        """Why the output ended; None while it goes on."""
        return FinishReason.STOP if self.stop_string_met else self.finish

    @property
    def has_gap(self) -> bool:
        """Whether tokens came before earlier ones."""
        return bool(self._early)

    @property
    def _may_end(self) -> bool:
        """Whether text of the newest token may complete a stop string: only after `min_tokens` others."""
        return len(self.token_ids) > self.request.sampling.min_tokens

    def accept(self, output: TokenOutput) -> list[TextToken]:
        """The tokens that can be shown now: none for a repeated or early one, several when it closes a gap."""
        due = len(self.token_ids)
        if output.index < due or self.ended:
            return []
        if output.index >= self.request.sampling.max_tokens:
            return []
        if output.index > due or (not due and self._prompt_due < len(self.request.prompt)):
            if len(self._early) < MAX_EARLY_TOKENS:
                self._early[output.index] = output
            return []
        shown = [self._show(output)]
        if self._early:
            shown += self._show_early()
        return shown

    def accept_prompt(self, part: PromptLogprobs) -> PromptLogprobs | None:
        """Log-probabilities of the prompt; returns those that come next, None if there are none.

        The first token is not shown before all have come.
        """
        stop = part.first + len(part)
        if self.token_ids or not part.first <= self._prompt_due < stop:
            return None
        new = part.part(self._prompt_due, stop)
        self.prompt.append(new)
        self._prompt_due = stop
        return new

    def after_prompt(self) -> list[TextToken]:
        """The tokens that waited for the prompt's log-probabilities, and can be shown now."""
        return self._show_early() if self._prompt_due >= len(self.request.prompt) else []

    def _show_early(self) -> list[TextToken]:
        shown = []
        while not self.ended and (following := self._early.pop(len(self.token_ids), None)) is not None:
            shown.append(self._show(following))
        if self.ended:
            self._early.clear()
        return shown

    def close(self, reason: FinishReason) -> None:
        """The output is complete although its last token did not have the reason."""
        self.finish = reason
        self.trailing_text = self._last_text()

    def forget_early(self) -> None:
        """Drop tokens that came before earlier ones: other workers will compute all of them."""
        self._early.clear()

    def _show(self, output: TokenOutput) -> TextToken:
        if not self.token_ids:
            self.cached_tokens = output.cached_tokens
        self.token_ids.append(output.token_id)
        text = self._detokenizer.push(output.token_id) if self._detokenizer is not None else ""
        if self._stop_strings is not None:
            text, self.stop_string_met = self._stop_strings.push(text, self._may_end)
        if output.finish is not None and not self.stop_string_met:
            self.close(output.finish)
        return TextToken(output.index, output.token_id, text, output.logprob, output.top_logprobs)

    def _last_text(self) -> str:
        rest = self._detokenizer.flush() if self._detokenizer is not None else ""
        if self._stop_strings is None:
            return rest
        shown, self.stop_string_met = self._stop_strings.push(rest, self._may_end)
        return shown if self.stop_string_met else shown + self._stop_strings.flush()
