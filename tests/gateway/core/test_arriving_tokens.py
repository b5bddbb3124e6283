"""From which workers a gateway takes tokens, which it misses, and how many it keeps."""

from __future__ import annotations

from baton.gateway.core import workers
from baton.gateway.core.commands import (
    AcceptWorker,
    ForgetWorker,
    SendToWorker,
    ShowTokens,
)
from baton.gateway.core.stream import MAX_EARLY_TOKENS
from baton.protocol.errors import Cancelled
from baton.protocol.gateway_messages import (
    AttachStreams,
    GatewayRegistered,
    LinkUp,
    StepOutput,
    StreamPosition,
    TokenOutput,
    WorkerJoined,
    WorkerLeft,
)
from baton.protocol.request import FinishReason
from tests.gateway.core.one_session import arrive, ask, sent, shown, start
from tests.gateway.core.small_cluster import MODEL


def test_missing_tokens_are_asked_from_the_worker_that_sent_later_ones_and_again_every_second() -> None:
    gateway = start()
    asked = ask()
    gateway.open(asked, 0.0)
    arrive(gateway, 0, 2, now=1.0)
    assert gateway.tick(1.0 + workers.GAP_S - 0.05) == []
    wanted = SendToWorker("w", AttachStreams((StreamPosition("r", 1, asked.digest),)))
    assert gateway.tick(1.0 + workers.GAP_S) == [wanted]
    assert gateway.tick(2.0) == [] and gateway.tick(2.0 + workers.GAP_S) == [wanted]
    assert shown(arrive(gateway, 1, now=2.3)) == [1, 2]
    assert gateway.tick(9.0) == []


def test_progress_restarts_the_time_after_which_missing_tokens_count_as_lost() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    arrive(gateway, 1, 3, now=1.0)
    arrive(gateway, 0, now=1.0 + workers.GAP_S)
    arrive(gateway, 4, now=1.0 + workers.GAP_S)
    assert gateway.tick(1.1 + workers.GAP_S) == []
    assert len(sent(gateway.tick(1.1 + 2 * workers.GAP_S), AttachStreams)) == 1


def test_a_worker_that_connects_gets_the_next_index_of_every_unfinished_stream() -> None:
    gateway = start()
    for request_id in ("stopped", "complete", "other", "r"):
        gateway.open(ask(request_id), 0.0)
    gateway.leave("stopped", Cancelled(""), 0.5)
    gateway.open(ask("stopped"), 0.6)
    last = TokenOutput("complete", 0, 97, finish=FinishReason.STOP)
    gateway.on_worker_messages("w", "1", [StepOutput((last,))], 1.0)
    arrive(gateway, 0, 1)
    (attach,) = sent(gateway.on_worker_messages("w", "1", [LinkUp("w", "1")], 2.0), AttachStreams)
    assert [(one.request_id, one.next_index) for one in attach.streams] == [("other", 0), ("r", 2)]


def test_a_worker_that_the_router_has_not_named_is_not_believed_but_answered_once_it_is() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    assert gateway.on_worker_messages("new", "1", [LinkUp("new", "1")], 1.0) == []
    assert arrive(gateway, 0, by="new") == [] and gateway.workers.refused_tokens == 1
    commands = gateway.on_router_message(WorkerJoined("new", "key"), 2.0)
    assert commands[0] == AcceptWorker("new", "key") and len(sent(commands, AttachStreams)) == 1
    assert gateway.on_router_message(WorkerLeft("new"), 3.0) == [ForgetWorker("new")]
    assert arrive(gateway, 0, by="new") == []


def test_a_worker_that_a_restarted_router_never_names_is_forgotten() -> None:
    gateway = start()
    gateway.on_router_message(WorkerJoined("w2"), 0.0)
    gateway.on_router_link(False, 1.0)
    gateway.on_router_link(True, 2.0)
    gateway.on_router_message(GatewayRegistered("other", "1"), 2.0)
    gateway.on_router_message(WorkerJoined("w"), 3.0)
    assert gateway.tick(2.0 + workers.CONFIRM_S - 0.1) == []
    assert gateway.tick(2.0 + workers.CONFIRM_S) == [ForgetWorker("w2")]
    assert "w" in gateway.workers and gateway.tick(500.0) == []


def test_tokens_outside_the_vocabulary_or_the_output_are_dropped_and_early_ones_are_bounded() -> None:
    gateway = start()
    gateway.open(ask(max_tokens=10 * MAX_EARLY_TOKENS), 0.0)
    for token_id in (-1, MODEL.vocab_size):
        output = StepOutput((TokenOutput("r", 0, token_id),))
        assert gateway.on_worker_messages("w", "1", [output], 1.0) == []
    assert gateway.workers.invalid_tokens == 2
    early = StepOutput(tuple(TokenOutput("r", index, 97) for index in range(1, 5 * MAX_EARLY_TOKENS)))
    gateway.on_worker_messages("w", "1", [early, StepOutput((TokenOutput("r", -5, 97),))], 1.0)
    assert len(shown(arrive(gateway, 0))) == 1 + MAX_EARLY_TOKENS


def test_tokens_of_one_frame_are_shown_at_once() -> None:
    gateway = start()
    gateway.open(ask(), 0.0)
    steps = [StepOutput((TokenOutput("r", index, 97),)) for index in range(3)]
    (tokens,) = gateway.on_worker_messages("w", "1", steps, 1.0)
    assert isinstance(tokens, ShowTokens) and len(tokens.tokens) == 3


def test_missing_tokens_are_asked_from_the_worker_that_sent_the_latest_and_from_none_that_has_left() -> None:
    gateway = start()
    gateway.on_router_message(WorkerJoined("w2"), 0.0)
    gateway.open(ask(), 0.0)
    arrive(gateway, 3, now=1.0)
    arrive(gateway, 4, now=1.1, by="w2")
    (command,) = gateway.tick(2.0)
    assert isinstance(command, SendToWorker) and command.worker == "w2"
    gateway.on_router_message(WorkerLeft("w2"), 2.1)
    assert gateway.tick(9.0) == []


def test_nothing_is_missing_after_a_stop_string() -> None:
    gateway = start()
    gateway.open(ask(stop=("a",)), 0.0)
    arrive(gateway, 5)
    arrive(gateway, 0)
    arrive(gateway, 6)
    assert gateway.workers.num_gaps == 0


def test_no_more_than_max_tokens_are_shown_even_if_a_worker_goes_on() -> None:
    gateway = start()
    gateway.open(ask(max_tokens=2), 0.0)
    assert shown(arrive(gateway, 0, 1, 2)) == [0, 1]
