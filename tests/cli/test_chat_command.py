"""`baton chat`: what it sends and shows, through a pipe and at a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from baton.protocol.v1 import inference_pb2
from tests.cli.commands import BATON
from tests.client.fake_inference import FakeInference, serving, slow, tokens


def _sent(fake: FakeInference) -> list[list[tuple[str, str]]]:
    return [[(each.role, each.content) for each in asked.conversation.messages] for asked in fake.asked]


def _piped(address: str, given: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*BATON, "chat", "--address", address, *options]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)


def test_every_line_of_a_pipe_is_a_turn_and_sees_the_ones_before() -> None:
    fake = FakeInference([tokens(5, 6), tokens(7), tokens(8)])
    with serving(fake) as (address, _):
        done = _piped(address, "Grüße\n\nagain\n/clear\nnew\n/exit\nnever\n", "--system", "kind", "--top-k", "3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "5 6 \n7 \n8 \n", "")
    first = [("system", "kind"), ("user", "Grüße")]
    assert _sent(fake) == [
        first,
        [*first, ("assistant", "5 6 "), ("user", "again")],
        [("system", "kind"), ("user", "new")],
    ]
    assert fake.asked[0].sampling.top_k == 3


def test_a_pipe_can_have_json_answers() -> None:
    with serving(FakeInference([tokens(5)])) as (address, _):
        done = _piped(address, "a\nb", "--json")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["5 ", "5 "]


def test_an_error_ends_a_pipe_with_one_sentence() -> None:
    def refuses(fake: FakeInference, request: inference_pb2.GenerateRequest, context: Any) -> Iterator[int]:
        context.set_trailing_metadata((("baton-error", "InvalidRequest"),))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The model has no chat template.")
        yield 0

    with serving(FakeInference([refuses])) as (address, _):
        done = _piped(address, "a\nb\n")
    assert done.returncode == 1
    assert done.stderr == "error: The model has no chat template.\n"


class _Screen:
    """Reads what a terminal shows."""

    def __init__(self, terminal: int) -> None:
        self._terminal, self._unread = terminal, ""

    def until(self, text: str) -> None:
        """Read up to the end of a text."""
        while text not in self._unread:
            self._unread += os.read(self._terminal, 1024).decode()
        self._unread = self._unread.partition(text)[2]


@pytest.mark.timeout(60)
def test_ctrl_c_stops_an_answer_and_keeps_the_conversation() -> None:
    fake = FakeInference([slow(0.02, *range(100, 9000)), tokens(7)])
    with serving(fake) as (address, _):
        terminal, theirs = pty.openpty()
        command = [*BATON, "chat", "--address", address]
        child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        screen = _Screen(terminal)
        try:
            screen.until("> ")
            os.write(terminal, b"hello\n")
            screen.until("101 ")
            child.send_signal(2)
            screen.until("stopped")
            screen.until("> ")
            os.write(terminal, b"again\n")
            screen.until("output tokens")
            os.write(terminal, b"/exit\n")
            assert child.wait(60) == 0
        finally:
            child.kill()
            child.wait()
            os.close(terminal)
    first, second = _sent(fake)
    assert first == [("user", "hello")]
    assert (second[0], second[2]) == (("user", "hello"), ("user", "again"))
    role, answer = second[1]
    assert (role, answer[:8]) == ("assistant", "100 101 ")
