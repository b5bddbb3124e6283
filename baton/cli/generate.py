"""`baton generate`: one prompt, and its answer as it is generated."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baton.cli.admin_options import Json, err, print_document
from baton.cli.report import print_answer
from baton.client.errors import InvalidRequest

if TYPE_CHECKING:
    from baton.client.answer import Answer
    from baton.client.client import Client
    from baton.client.stream import TokenStream

Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        envvar="BATON_ADDRESS",
        help="Address of a gateway. Default: the cluster that `baton up` started here, or port 50051.",
    ),
]
MaxTokens = Annotated[int | None, typer.Option(help="Maximum output tokens.")]
Temperature = Annotated[float | None, typer.Option(help="Sampling temperature; 0: greedy.")]
TopP = Annotated[float | None, typer.Option(help="Share of the probability to sample from; 1: all tokens.")]
TopK = Annotated[int | None, typer.Option(help="Number of likeliest tokens to sample from; 0: all tokens.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the sampling, for repeatable answers.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop string; may be given several times.")]
Timeout = Annotated[float | None, typer.Option(help="Deadline of the answer in seconds.")]


def generate(
    prompt: Annotated[str, typer.Argument(help="Prompt; - reads standard input.")],
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens/--no-special-tokens", help="Add the model's special tokens to the prompt.")
    ] = True,
    as_chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a user's message, for the model's chat template.")
    ] = False,
    timeout: Timeout = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Send a prompt and print the answer as it is generated. The model has defaults for options that are not given.

    Examples:

        baton generate "Once upon a time" --max-tokens 40

        baton generate --chat "What is a relay race?"

        baton generate - --json < prompt.txt
    """
    from baton.client.chat import Chat

    text = decoded(sys.stdin.buffer.read() if prompt == "-" else os.fsencode(prompt))
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop,
    }
    given = Chat([{"role": "user", "content": text}]) if as_chat else text
    with open_client(address) as client:
        stream = client.stream(given, timeout_s=timeout, add_special_tokens=special_tokens, **options)
        if as_json:
            print_document(stream.answer.as_dict())
            return
        print_answer(err, printed(stream))


def printed(stream: TokenStream) -> Answer:
    """Print an answer while it is generated; returns it."""
    for token in stream:
        print(token.text, end="", flush=True)
    answer = stream.answer
    print(answer.text[sum(len(token.text) for token in answer.tokens) :], flush=True)
    return answer


def decoded(text: bytes) -> str:
    """A text in UTF-8; raises `InvalidRequest` for other bytes."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The prompt is not UTF-8: byte {error.start} is 0x{text[error.start]:02x}. Convert it, as with `iconv`."
        ) from None


def open_client(address: str | None) -> Client:
    """A client for `address`; by default for the cluster that `baton up` started here, or the default port."""
    from baton.client.client import Client

    if address is None:
        from baton.deploy.look import client_address, serving_cluster

        cluster = serving_cluster(clients=True)
        address = client_address(cluster) if cluster else None
    return Client(address)
