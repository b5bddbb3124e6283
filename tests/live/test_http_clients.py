"""The OpenAI API in front of a real model: answers, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import time

import openai
import pytest

import baton
from baton.gateway.core.commands import StreamEnd
from baton.gateway.core.stream import TextToken
from baton.gateway.http.answer import Answer
from baton.gateway.siblings import seed_of
from baton.harness.process_cluster import ProcessCluster
from tests.live.processes import Play, kill, start_again

PROMPT = [6] * 40


def _client(cluster: ProcessCluster) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://{cluster.http_address}/v1", api_key="none", max_retries=0)


def test_http_and_grpc_give_the_same_greedy_text(play: Play) -> None:
    async def compare(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
        expected = await client.generate(PROMPT, max_tokens=24, temperature=0.0)
        async with _client(cluster) as http:
            model = (await http.models.list()).data[0].id
            whole = await http.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0)
            assert whole.choices[0].text == expected.text
            assert whole.usage is not None
            assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (40, len(expected.token_ids))

            async def stream() -> str:
                events = await http.completions.create(
                    model=model, prompt=PROMPT, max_tokens=24, temperature=0, stream=True
                )
                return "".join([event.choices[0].text async for event in events])

            assert await asyncio.gather(*(stream() for _ in range(8))) == [expected.text] * 8

    play(compare)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_pages_on_all_workers_within_a_second(play: Play, stream: bool) -> None:
    async def leave(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
        core = cluster.router.driver.core
        body = json.dumps(
            {"prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "stream": stream, "n": 3 if stream else 1}
        ).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", cluster.gateway.http_port)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        if stream:
            await reader.readuntil(b"data: ")
        await cluster.until(lambda: any(view.load.pages_in_use for view in core.state.workers.values()))
        left_s = time.monotonic()
        writer.transport.abort()
        await cluster.until_idle()
        assert time.monotonic() - left_s < 1.0

    play(leave)


def test_a_stream_outlives_the_worker_that_decodes_it(play: Play) -> None:
    """The client sees a pause, and the text of an undisturbed answer."""

    async def disturb(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
        expected = await client.generate(PROMPT, max_tokens=200, temperature=0.0, ignore_eos=True)
        async with _client(cluster) as http:
            events = await http.completions.create(
                model="measured",
                prompt=PROMPT,
                max_tokens=200,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            text, killed = "", ""
            async for event in events:
                text += event.choices[0].text
                if len(text) > 20 and not killed:
                    requests = cluster.router.driver.core.requests.live
                    runner = next(iter(requests.values())).runner or ""
                    if runner.startswith("decode"):
                        killed = runner
                        await kill(cluster, killed)
        assert killed
        assert text == expected.text
        await start_again(cluster, killed)

    play(disturb)


def test_several_sequences_prefill_their_prompt_once_and_have_seeds_of_their_own(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[StreamEnd] = []
    count = Answer.count

    def record(answer: Answer, sequence: int, tokens: list[TextToken], end: StreamEnd | None) -> None:
        if end is not None:
            ends.append(end)
        count(answer, sequence, tokens, end)

    monkeypatch.setattr(Answer, "count", record)
    prompt = [5 + 11 * index % 240 for index in range(301)]

    async def ask(cluster: ProcessCluster, client: baton.AsyncClient) -> None:
        async with _client(cluster) as http:
            answer = await http.completions.create(
                model="measured", prompt=prompt, max_tokens=12, temperature=1, seed=5, n=4
            )
        assert sorted(end.cached_tokens for end in ends) == [0, 288, 288, 288]
        assert all(end.prefill_worker == "prefill-0" for end in ends)
        for index, choice in enumerate(answer.choices):
            alone = await client.generate(prompt, max_tokens=12, temperature=1.0, seed=seed_of(5, index))
            assert choice.text == alone.text

    play(ask)
