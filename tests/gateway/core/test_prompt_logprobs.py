"""Log-probabilities of a prompt reach the reader once and in order, and no token comes before them."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from baton.gateway.core.commands import Command, ShowPrompt, ShowTokens
from baton.gateway.core.session import GatewaySession
from baton.gateway.core.workers import GAP_S
from baton.gateway.public_messages import MAX_TOKENS_PER_MESSAGE, prompt_messages
from baton.protocol.gateway_messages import AskEmitted, AttachStreams, EmittedTokens, Submit
from baton.protocol.messages import Work
from baton.protocol.prompt_logprobs import PromptLogprobs
from baton.protocol.request import Request, SamplingParams
from baton.protocol.v1 import inference_pb2
from tests.gateway.core.one_session import arrive, ask, sent, shown, start


def _logprobs(first: int, count: int, likely: int = 0) -> PromptLogprobs:
    own = struct.pack(f"<{count}f", *(-float(first + place) for place in range(count)))
    return PromptLogprobs("r", first, likely, own, bytes(4 * count * likely), bytes(4 * count * likely))


def _come(gateway: GatewaySession, *parts: tuple[int, int], likely: int = 0) -> list[Command]:
    return gateway.on_worker_messages("w", "1", [_logprobs(*part, likely) for part in parts], 1.0)


def _indexes(commands: list[Command]) -> list[int]:
    return [index for one in commands if isinstance(one, ShowPrompt) for index, _, _ in one.logprobs.entries()]


def test_tokens_wait_for_all_of_them() -> None:
    gateway = start()
    gateway.open(ask(prompt_logprobs=0), 0.0)
    assert _indexes(_come(gateway, (1, 2))) == [1, 2]
    assert shown(arrive(gateway, 0, 1)) == []
    commands = _come(gateway, (3, 2))
    assert (_indexes(commands), shown(commands)) == ([3, 4], [0, 1])
    assert [type(one) for one in commands] == [ShowPrompt, ShowTokens]
    assert shown(arrive(gateway, 2)) == [2]


@given(st.permutations([(1, 2), (1, 3), (2, 2), (3, 2), (4, 1), (1, 4)]))
def test_in_any_order_and_parts_each_comes_once(parts: list[tuple[int, int]]) -> None:
    gateway = start()
    gateway.open(ask(prompt_logprobs=0), 0.0)
    commands = [*arrive(gateway, 0), *_come(gateway, *parts, *parts), *_come(gateway, *parts)]
    assert _indexes(commands) == [1, 2, 3, 4]
    assert shown(commands) == [0]


def test_lost_ones_are_asked_for_when_a_token_waits_for_them() -> None:
    gateway = start()
    asked = ask(prompt_logprobs=0)
    (submit,) = sent(gateway.open(asked, 0.0), Submit)
    assert submit.page_keys == ()  # The router expects no cached pages
    arrive(gateway, 0, now=1.0, last=0)
    (attach,) = sent(gateway.tick(1.0 + GAP_S), AttachStreams)
    assert [(one.request_id, one.next_index) for one in attach.streams] == [("r", 0)]
    _come(gateway, (1, 4))
    assert gateway.streams["r"].output.ended


def test_a_request_that_is_computed_again_is_scored_again_only_without_a_token() -> None:
    gateway = start()
    gateway.open(ask(prompt_logprobs=0), 0.0)
    _come(gateway, (1, 3))
    (emitted,) = sent(gateway.on_router_message(AskEmitted("r"), 1.0), EmittedTokens)
    assert emitted.num_emitted == 0
    assert _indexes(_come(gateway, (1, 4))) == [4]
    arrive(gateway, 0)
    (emitted,) = sent(gateway.on_router_message(AskEmitted("r"), 1.0), EmittedTokens)
    assert isinstance(emitted.work, Work) and emitted.work.emitted == (97,)


def test_another_reader_gets_them_if_it_has_no_token() -> None:
    gateway = start()
    asked = ask(prompt_logprobs=0)
    gateway.open(asked, 0.0)
    _come(gateway, (1, 4))
    arrive(gateway, 0)
    again = gateway.open(asked, 2.0, resume_from=0)
    assert (_indexes(again), shown(again)) == ([1, 2, 3, 4], [0])
    assert _indexes(gateway.open(asked, 2.0, (97,), 1)) == []


def test_what_is_not_of_the_request_is_dropped_and_counted() -> None:
    gateway = start()
    gateway.open(ask(prompt_logprobs=0), 0.0)
    assert _come(gateway, (1, 5)) == []
    assert _come(gateway, (1, 4), likely=1) == []
    assert gateway.workers.invalid_tokens == 9
    assert _come(gateway, (2, 1)) == []  # Not the next one


def test_a_request_without_them_or_with_a_prompt_of_one_token_waits_for_nothing() -> None:
    gateway = start()
    gateway.open(Request("r", (65,), SamplingParams(max_tokens=1, prompt_logprobs=2)), 0.0)
    commands = arrive(gateway, 0, last=0)
    assert shown(commands) == [0]
    gateway.on_router_link(False, 2.0)
    gateway = start()
    gateway.open(ask(), 0.0)
    assert _come(gateway, (1, 4)) == []


def test_messages_for_clients_have_bounded_sizes_and_begin_with_the_first_prompt_token() -> None:
    count = MAX_TOKENS_PER_MESSAGE + 7
    prompt = [token % 300 for token in range(count + 1)]
    sizes: list[int] = []
    entries: list[inference_pb2.PromptToken] = []
    for data in prompt_messages(prompt, [_logprobs(1, 3, 2), _logprobs(4, count - 3, 2)]):
        response = inference_pb2.GenerateResponse.FromString(data)
        sizes.append(len(response.prompt_tokens))
        entries += response.prompt_tokens
    assert sizes == [4, MAX_TOKENS_PER_MESSAGE, 4]
    assert [entry.index for entry in entries] == list(range(count + 1))
    assert [entry.id for entry in entries] == prompt
    assert not entries[0].HasField("logprob")
    assert [entry.logprob for entry in entries[1:]] == [-float(index) for index in range(1, count + 1)]
    assert [len(entry.top_logprobs) for entry in entries] == [0] + [2] * count
