"""`baton chat`: a conversation with the served model, in the terminal or through a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from baton.cli.admin_options import Json, err, print_document
from baton.cli.generate import (
    Address,
    MaxTokens,
    Seed,
    Stop,
    Temperature,
    Timeout,
    TopK,
    TopP,
    decoded,
    open_client,
)
from baton.cli.report import milliseconds
from baton.client.errors import BatonError

if TYPE_CHECKING:
    from baton.client.answer import Answer
    from baton.client.chat import Chat
    from baton.client.client import Client
    from baton.client.stream import TokenStream

COMMANDS = "/clear starts a new conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer."


@dataclass(eq=False)
class Conversation:
    """The messages of a conversation; each question is followed by its answer."""

    system: str = ""
    _messages: list[dict[str, str]] = field(default_factory=list)

    def asking(self, question: str) -> Chat:
        """The conversation with a further question, as a prompt."""
        from baton.client.chat import Chat

        first = [{"role": "system", "content": self.system}] if self.system else []
        return Chat([*first, *self._messages, {"role": "user", "content": question}])

    def keep(self, question: str, answer: str) -> None:
        """Add a question and its answer, perhaps only the part that was generated."""
        self._messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def clear(self) -> None:
        """Forget all questions and answers."""
        self._messages.clear()


def chat(
    system: Annotated[str, typer.Option(metavar="TEXT", help="System message: what the model is to be.")] = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    timeout: Timeout = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Talk with the served model: each line is a message, and the model sees the whole conversation.

    /clear starts a new conversation, /exit ends. Answers may use the rest of the context. From a pipe every line is
    a message, and an error ends the command.

    Examples:

        baton chat --system "You answer in one sentence."

        baton chat --temperature 0 --json < questions.txt
    """
    options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed, "stop": stop}
    with open_client(address) as client:
        options["max_tokens"] = max_tokens or client.model().context_tokens
        turns = _Turns(client, Conversation(_text(system)), {**options, "timeout_s": timeout}, as_json)
        turns.run(_typed() if sys.stdin.isatty() else _piped())


@dataclass(eq=False)
class _Turns:
    """Sends messages and prints answers."""

    client: Client
    conversation: Conversation
    options: dict[str, Any]
    as_json: bool

    def run(self, lines: Iterator[str]) -> None:
        """One turn for each line that is not a command."""
        for line in lines:
            match line.strip():
                case "":
                    continue
                case "/exit":
                    return
                case "/clear":
                    self.conversation.clear()
                case text if text.startswith("/") and sys.stdin.isatty():
                    err.print(COMMANDS)
                case text:
                    self._turn(text)

    def _turn(self, question: str) -> None:
        """One question and its answer; an error at a terminal leaves the conversation as it was."""
        stream = self.client.stream(self.conversation.asking(question), **self.options)
        shown: list[str] = []
        try:
            answer = self._read(stream, shown)
        except KeyboardInterrupt:
            stream.cancel()
            err.print("\n[dim]stopped[/]")
            if shown:
                self.conversation.keep(question, "".join(shown))
            return
        except BatonError as error:
            if not sys.stdin.isatty():
                raise
            err.print(f"[red]error:[/] {escape(error.message)}", soft_wrap=True)
            return
        self.conversation.keep(question, answer.text)

    def _read(self, stream: TokenStream, shown: list[str]) -> Answer:
        """Print the answer while it arrives; `shown` receives its text."""
        for token in stream:
            shown.append(token.text)
            if not self.as_json:
                print(token.text, end="", flush=True)
        answer = stream.answer
        if self.as_json:
            print_document(answer.as_dict())
            return answer
        print(answer.text[len("".join(shown)) :], flush=True)
        if sys.stdin.isatty():
            err.print(
                f"[dim]{answer.prompt_tokens} prompt tokens ({answer.cached_tokens} from the prefix cache), "
                f"{answer.output_tokens} output tokens; TTFT {milliseconds(answer.ttft_s)}, "
                f"TPOT {milliseconds(answer.tpot_s)}[/]"
            )
        return answer


def _typed() -> Iterator[str]:
    """The lines that the user types, until Ctrl-D."""
    import readline  # noqa: F401 - gives `input` a history and editing

    err.print(f"[dim]{COMMANDS}[/]")
    while True:
        try:
            yield _text(input("> "))
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            err.print(f"\n[dim]{COMMANDS}[/]")


def _piped() -> Iterator[str]:
    """The lines of standard input."""
    for line in sys.stdin.buffer:
        yield decoded(line)


def _text(typed: str) -> str:
    return decoded(os.fsencode(typed))
