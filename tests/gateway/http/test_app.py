"""The HTTP API of a gateway with real sockets, between clients and the far ends of router and worker."""

from __future__ import annotations

import asyncio
import struct
from array import array
from typing import Any

import httpx2
import pytest

import baton
from baton.gateway.build import RunningGateway
from baton.gateway.siblings import seed_of
from baton.protocol.codec import work_of
from baton.protocol.errors import InvalidRequest
from baton.protocol.gateway_messages import RequestEnded, ServingPools, StopRequest, Submit
from baton.protocol.prompt_logprobs import PromptLogprobs
from tests.gateway.far_ends import GATEWAY, FarEnds
from tests.gateway.http.calls import BODY, STREAM, connect, events, play, post
from tests.waiting import until_async


def test_a_stream_has_an_event_per_token_that_comes_alone_and_the_id_of_its_request() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        async with asyncio.timeout(10):
            stream = client.stream("POST", "/v1/completions", json=STREAM, headers={"x-request-id": "mine"})
            opening = asyncio.create_task(stream.__aenter__())
            await far.until(Submit)
            await far.send_tokens("mine", range(1))
            response = await opening
            assert (response.status_code, response.headers["x-request-id"]) == (200, "mine")
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.aiter_lines()
            seen = [await anext(lines)]
            for index in range(1, 4):
                await far.send_tokens("mine", range(index, index + 1), ends=index == 3)
                assert await anext(lines) == ""
                seen.append(await anext(lines))
            seen += [line async for line in lines if line]
            await stream.__aexit__(None, None, None)
        *chunks, done = events("\n\n".join(seen))
        assert {chunk["id"] for chunk in chunks} == {"cmpl-mine"}
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]  # The end may come after the last token
        assert len(chunks) in (4, 5)
        assert (set(reasons[:-1]), reasons[-1], done) == ({None}, "length", "[DONE]")
        assert not running.driver._subscriptions
        assert not far.of(StopRequest)

    play(scene)


def test_an_id_that_is_in_use_is_made_another() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        headers = {"x-request-id": "same"}
        both = [asyncio.create_task(client.post("/v1/completions", json=BODY, headers=headers)) for _ in range(2)]
        await until_async(lambda: len(far.of(Submit)) == 2)
        for submit in far.of(Submit):
            await far.send_tokens(submit.request_id, range(4), ends=True)
        answers = [await each for each in both]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert {answer.headers["x-request-id"] for answer in answers} == {s.request_id for s in far.of(Submit)}

    play(scene)


@pytest.mark.parametrize("bodies", [(("r-1", 1), ("r", 2)), (("r", 2), ("r-1", 1))], ids=["before", "after"])
def test_an_id_of_a_later_sequence_takes_no_other_clients_stream(bodies: tuple[tuple[str, int], ...]) -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        answers = []
        for number, (name, n) in enumerate(bodies, 1):
            sent = client.post("/v1/completions", json={**BODY, "n": n}, headers={"x-request-id": name})
            answers.append(asyncio.create_task(sent))
            await until_async(lambda number=number: len(far.of(Submit)) == number)  # type: ignore[misc]
        firsts = [submit.request_id for submit in far.of(Submit)]
        for name in firsts:
            await far.send_tokens(name, range(1))
        await until_async(lambda: len(far.of(Submit)) == 3)
        names = {submit.request_id for submit in far.of(Submit)}
        assert len(names) == 3
        for name in names:
            await far.send_tokens(name, range(4), ends=True)
        assert [(await each).status_code for each in answers] == [200, 200]

    play(scene)


def test_ids_of_answers_over_http_and_of_grpc_calls_do_not_meet() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        async def over_http(name: str) -> httpx2.Response:
            return await client.post("/v1/completions", json={**BODY, "n": 2}, headers={"x-request-id": name})

        async with baton.AsyncClient(running.addresses.public) as other:
            waits = asyncio.create_task(over_http("r"))
            await far.until(Submit)
            for name in ("r", "r-1"):  # The second is not submitted yet
                with pytest.raises(InvalidRequest, match="in use"):
                    await other.generate([5, 6, 7], request_id=name, max_tokens=4)
            called = asyncio.create_task(other.generate([5, 6, 7], request_id="q-1", max_tokens=4))
            await far.until(Submit, lambda submit: submit.request_id == "q-1")
            renamed = asyncio.create_task(over_http("q"))
            await until_async(lambda: len(far.of(Submit)) == 3)
            sent = 0
            while sent < 5:
                await until_async(lambda: len(far.of(Submit)) > sent)  # noqa: B023
                await far.send_tokens(far.of(Submit)[sent].request_id, range(4), ends=True)
                sent += 1
            assert len((await called).token_ids) == 4
            assert (await waits).headers["x-request-id"] == "r"
            assert (await renamed).headers["x-request-id"] not in ("q", "")

    play(scene)


def test_the_sequences_of_a_body_are_merged_into_one_stream() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        body = {**STREAM, "prompt": [[5, 6], [7, 8]], "n": 2, "seed": 3}
        answer = asyncio.create_task(client.post("/v1/completions", json=body, headers={"x-request-id": "r"}))
        await until_async(lambda: len(far.of(Submit)) == 2)
        assert [submit.request_id for submit in far.of(Submit)] == ["r", "r-2"]
        await far.send_tokens("r-2", range(1))  # Its prompt is in the prefix cache now
        await until_async(lambda: len(far.of(Submit)) == 3)
        await far.send_tokens("r", range(4), ends=True)
        await until_async(lambda: len(far.of(Submit)) == 4)
        seeds = {submit.request_id: work_of(submit.work).request.sampling.seed for submit in far.of(Submit)}
        assert list(seeds.items()) == [("r", 3), ("r-2", 3), ("r-3", seed_of(3, 1)), ("r-1", seed_of(3, 1))]
        for name in ("r-1", "r-2", "r-3"):
            await far.send_tokens(name, range(4), ends=True)
        seen = events((await answer).text)
        assert {event["choices"][0]["index"] for event in seen[:-1]} == {0, 1, 2, 3}
        assert seen[-1] == "[DONE]"

    play(scene)


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
def test_a_client_that_leaves_stops_all_of_its_sequences_at_once(body: dict[str, Any]) -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        _, writer = await connect(running, post({**body, "n": 3}, "x-request-id: r"))
        await far.until(Submit)
        await far.send_tokens("r", range(1))
        await until_async(lambda: len(far.of(Submit)) == 3)
        writer.transport.abort()
        await until_async(lambda: len(far.of(StopRequest)) == 3, timeout_s=1.0)
        assert not running.driver._subscriptions

    play(scene)


def test_log_probabilities_of_a_prompt_are_those_of_the_worker_and_come_once_for_all_sequences() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        body = {**BODY, "n": 2, "prompt_logprobs": 1}
        answer = asyncio.create_task(client.post("/v1/completions", json=body, headers={"x-request-id": "r"}))
        await far.until(Submit)
        await until_async(lambda: far.attached)
        assert far.worker is not None
        own, likeliest = struct.pack("<2f", -1.5, -2.5), struct.pack("<2f", -0.5, -0.25)
        far.worker.send([PromptLogprobs("r", 1, 1, own, struct.pack("<2i", 9, 7), likeliest)])
        await far.send_tokens("r", range(4), ends=True)
        second = await far.until(Submit, lambda submit: submit.request_id == "r-1")
        assert work_of(second.work).request.sampling.prompt_logprobs is None
        await far.send_tokens("r-1", range(4), ends=True)
        for choice in (await answer).json()["choices"]:
            first, *others = choice["prompt_logprobs"]
            assert first is None
            found = [{token: entry["logprob"] for token, entry in one.items()} for one in others]
            assert found == [{"6": -1.5, "9": -0.5}, {"7": -0.25}]

    play(scene)


def test_an_error_before_the_first_token_is_a_status_and_a_later_one_an_event() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        for sent, number in ((0, 0), (1, 1)):
            name = f"r{number}"
            answer = asyncio.create_task(client.post("/v1/completions", json=STREAM, headers={"x-request-id": name}))
            await far.until(Submit, lambda message, name=name: message.request_id == name)  # type: ignore[misc]
            if sent:
                await far.send_tokens(name, range(sent))
                await until_async(lambda: any(answer.exchange.started for answer in running.http_app.answers))
            end = RequestEnded(name, error="Overloaded", message="Full.", retry_after_s=0.25, num_tokens=sent)
            far.router.send(GATEWAY, [end])
            response = await answer
            if not sent:
                assert response.status_code == 429
                assert response.headers["retry-after-ms"] == "250"
            else:
                seen = events(response.text)
                assert (response.status_code, seen[-1]) == (200, "[DONE]")
                assert seen[-2]["error"]["message"] == "Full."

    play(scene)


def test_probes_show_whether_the_router_and_a_worker_for_each_role_are_there() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        for path in ("/health", "/liveness", "/readiness"):
            await until_async(lambda: running.driver.ready)
            response = await client.get(path)
            assert (response.status_code, response.text) == (200, "")
            assert (await client.head(path)).status_code == 200
        for pools, missing in ((ServingPools(True, False), "decode"), (ServingPools(False, True), "prefill")):
            far.router.send(GATEWAY, [pools])
            async with asyncio.timeout(10):
                while f"No {missing} worker" not in (response := await client.get("/readiness")).text:
                    pass
            assert response.status_code == 503
        far.router.send(GATEWAY, [ServingPools(True, True)])
        await until_async(lambda: running.driver.ready)
        far.stop_router()
        await until_async(lambda: not running.driver.ready)
        assert (await client.get("/liveness")).status_code == 200
        assert "router is away" in (await client.get("/readiness")).text
        far.restart_router()
        await until_async(lambda: running.driver.ready)
        assert (await client.get("/readiness")).status_code == 200

    play(scene, router_grace_s=0.3)


def test_unknown_paths_and_methods_are_errors_in_openais_form() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        assert (await client.post("/v1/embeddings", json={})).json()["error"]["code"] == "unknown_url"
        wrong = await client.get("/v1/completions")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        asked = await client.options("/v1/completions", headers={"origin": "http://evil.example"})
        assert not any(name.startswith("access-control") for name in asked.headers)

    play(scene)


def test_text_becomes_tokens_and_text_again() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        tokens = (await client.post("/tokenize", json={"prompt": "write : the old fox"})).json()
        assert (tokens["count"], tokens["max_model_len"]) == (len(tokens["tokens"]), 2048)
        text = await client.post("/detokenize", json={"tokens": tokens["tokens"]})
        assert text.json() == {"prompt": "write : the old fox"}
        assert (await client.get("/tokenizer_info")).json()["eos_token"] == "<eos>"

    play(scene)


def test_a_gateway_that_stops_ends_its_streams_with_an_error_that_can_be_retried() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        begun = asyncio.create_task(client.post("/v1/completions", json=STREAM, headers={"x-request-id": "r"}))
        waiting = asyncio.create_task(client.post("/v1/completions", json=STREAM, headers={"x-request-id": "w"}))
        await until_async(lambda: len(far.of(Submit)) == 2)
        await far.send_tokens("r", range(1))
        await until_async(lambda: any(answer.exchange.started for answer in running.http_app.answers))
        assert running.http_server is not None
        await running.http_server.stop(0.0, running.http_app.end_answers)
        assert "stopping" in events((await begun).text)[-2]["error"]["message"]
        refused = await waiting
        assert (refused.status_code, refused.headers["x-should-retry"]) == (503, "true")

    play(scene)


def test_log_probabilities_of_a_prompt_reach_its_choice() -> None:
    async def scene(client: httpx2.AsyncClient, running: RunningGateway, far: FarEnds) -> None:
        body = {**BODY, "max_tokens": 1, "prompt_logprobs": 1}
        answer = asyncio.create_task(client.post("/v1/completions", json=body, headers={"x-request-id": "r"}))
        await far.until(Submit)
        await until_async(lambda: far.attached)
        assert far.worker is not None
        ids, values = array("i", [8, 9]).tobytes(), array("f", [-0.5, -0.25]).tobytes()
        far.worker.send([PromptLogprobs("r", 1, 1, array("f", [-1.5, -2.0]).tobytes(), ids, values)])
        await far.send_tokens("r", range(1), ends=True)
        scores = (await answer).json()["choices"][0]["prompt_logprobs"]
        assert scores[0] is None
        assert [entry[str(token)]["logprob"] for entry, token in zip(scores[1:], (6, 7), strict=True)] == [-1.5, -2.0]
        assert [entry[str(token)]["logprob"] for entry, token in zip(scores[1:], (8, 9), strict=True)] == [-0.5, -0.25]

    play(scene)
