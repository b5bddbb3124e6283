"""`baton chat`: what it sends and shows, through a pipe and at a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from baton.protocol.v1 import inference_pb2
from tests.cli.commands import BATON
from tests.client.fake_inference import FakeInference, Part, serving, slow, tokens

CTRL_C = b"\x03"


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


@contextmanager
def _terminal(*answers: Part) -> Iterator[tuple[FakeInference, _Screen, Callable[[bytes], object]]]:
    """The command at a terminal of its own, where keys are typed; at the end it leaves at `/exit`."""
    fake = FakeInference([*answers])
    with serving(fake) as (address, _):
        terminal, theirs = pty.openpty()
        child = subprocess.Popen(
            [*BATON, "chat", "--address", address],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        screen = _Screen(terminal)
        try:
            screen.until("> ")
            yield fake, screen, lambda keys: os.write(terminal, keys)
            os.write(terminal, b"/exit\n")
            assert child.wait(60) == 0
        finally:
            child.kill()
            child.wait()
            os.close(terminal)


@pytest.mark.timeout(60)
def test_ctrl_c_stops_an_answer_and_keeps_the_conversation() -> None:
    with _terminal(slow(0.02, *range(100, 9000)), tokens(7)) as (fake, screen, type_keys):
        type_keys(b"hello\n")
        screen.until("101 ")
        type_keys(CTRL_C)
        screen.until("stopped")
        screen.until("> ")
        type_keys(b"again\n")
        screen.until("output tokens")
    first, second = _sent(fake)
    assert first == [("user", "hello")]
    assert (second[0], second[2]) == (("user", "hello"), ("user", "again"))
    role, answer = second[1]
    assert (role, answer[:8]) == ("assistant", "100 101 ")


@pytest.mark.timeout(60)
def test_ctrl_c_at_the_prompt_drops_the_line_and_clear_the_conversation() -> None:
    with _terminal(tokens(5), tokens(6), tokens(7)) as (fake, screen, type_keys):
        for question in (b"one\n", b"two\n"):
            type_keys(question)
            screen.until("output tokens")
            screen.until("> ")
            type_keys(b"not sent" + CTRL_C)
            screen.until("Ctrl-C stops an answer")
            screen.until("> ")
        type_keys(b"/clear\n")
        screen.until("> ")
        type_keys(b"three\n")
        screen.until("output tokens")
    assert _sent(fake) == [
        [("user", "one")],
        [("user", "one"), ("assistant", "5 "), ("user", "two")],
        [("user", "three")],
    ]
