"""The sampling defaults in a model's generation_config.json apply to its requests, from the file to the tokens."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import baton
from baton import SamplingParams
from baton.config.parse import parse_config
from baton.deploy.cluster import resolve_here
from baton.harness.process_cluster import ProcessCluster, plans
from tests.checkpoints import build_checkpoint

PROMPT = [5, 6, 7, 8]


def test_requests_use_the_models_sampling_defaults_unless_they_override_them(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, scale=1.0)
    generation = {"do_sample": True, "temperature": 1.2, "top_k": 50, "repetition_penalty": 1.1, "max_new_tokens": 12}
    (folder / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": 1}))
    resolved = resolve_here(
        parse_config(overrides={"model": {"path": str(folder)}, "router": {"admin_port": 0, "admin_http_port": 0}})
    )
    router_config = resolved.router_config("127.0.0.1")
    _, worker_config = plans(folder, 256, 100, chunk_tokens=64)

    async def serve() -> None:
        cluster = ProcessCluster(
            router_config, worker_config, {"mixed": 1}, sampling_defaults=resolved.sampling_defaults
        )
        async with cluster, baton.AsyncClient(cluster.address) as client:

            async def tokens(sampling: SamplingParams | None = None, **options: object) -> list[int]:
                return (await client.generate(PROMPT, sampling, **options)).token_ids

            theirs = SamplingParams(
                temperature=1.2, top_k=50, repetition_penalty=1.1, max_tokens=12, seed=3, ignore_eos=True
            )
            greedy = SamplingParams(max_tokens=20, ignore_eos=True)
            bare = await tokens(seed=3, ignore_eos=True)
            assert len(bare) == 12
            assert bare == await tokens(theirs)
            assert bare != (await tokens(greedy))[:12]
            output = await tokens(temperature=0.0, repetition_penalty=1.0, max_tokens=20, ignore_eos=True)
            assert output == await tokens(greedy)
            warmer = await tokens(temperature=3.0, seed=3, ignore_eos=True)
            assert warmer == await tokens(replace(theirs, temperature=3.0))

    asyncio.run(asyncio.wait_for(serve(), 120.0))


def test_the_settings_show_the_defaults_and_off_leaves_them_out(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.6, "top_p": 0.9}))
    asked = {"path": str(folder)}
    auto = resolve_here(parse_config(overrides={"model": asked}))
    assert auto.settings["sampling"] == (
        "temperature 0.6, top_p 0.9, at most 256 tokens (the model's generation_config.json)"
    )
    off = resolve_here(parse_config(overrides={"model": {**asked, "generation_config": "off"}}))
    assert off.settings["sampling"] == "greedy, at most 256 tokens (generation_config off)"
    assert tuple(resolved.gateway_config("gateway-0", "", "").sampling_defaults for resolved in (auto, off)) == (
        {"temperature": 0.6, "top_p": 0.9},
        {},
    )
    assert resolve_here(parse_config()).settings["sampling"] == "greedy, at most 256 tokens (Baton's defaults)"
