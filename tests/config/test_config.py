"""Configuration: working defaults, and errors that name the key and the remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baton.config.facts import MachineFacts, ModelFacts
from baton.config.memory import GIB
from baton.config.parse import parse_config
from baton.config.resolve import resolve
from baton.protocol.errors import ConfigError

MACHINE = MachineFacts(cores=8, memory_available_bytes=16 * GIB, fast_bfloat16=False)
MODEL = ModelFacts("/m", "m", context_tokens=4096, kv_values_per_token=2 * 4 * 2 * 32)


def test_an_empty_file_is_a_complete_configuration() -> None:
    config = parse_config()
    assert (config.pools.prefill, config.pools.decode, config.pools.mixed) == (1, 1, 0)


def test_a_context_limited_by_a_sliding_window_says_so() -> None:
    windowed = replace(MODEL, context_limit="the sliding window")
    words = [
        resolve(parse_config(text), MACHINE, model).settings["context_tokens"]
        for text, model in (("", windowed), ("[model]\ncontext_tokens = 100", windowed), ("", MODEL))
    ]
    assert words == ["4096, because of the sliding window", "100", "4096"]


def test_given_flags_override_the_file_and_missing_flags_do_not() -> None:
    config = parse_config("[pools]\nprefill = 3\n[model]\ndtype = 'float32'", {"pools": {"prefill": 2, "decode": None}})
    assert (config.pools.prefill, config.pools.decode, config.model.dtype) == (2, 1, "float32")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pools]\nprefil = 2", "no key 'prefil'; did you mean 'prefill'"),
        ("[enginee]\npage_size = 16", "no key 'enginee'; did you mean 'engine'"),
        ("[engine]\npage_size = 17", r"engine\.page_size is 17"),
        ("[engine]\nthreads = 'many'", r"engine\.threads is 'many'"),
        ("[gateway]\nport = 70000", r"gateway\.port is 70000"),
        ("[pools]\nprefill = 0\ndecode = 0", "All pools are empty"),
        ("[pools]\ndecode = 0", "No pool can decode"),
        ("[engine]\nswap_memory_gib = -1.0", r"engine\.swap_memory_gib is -1"),
        ("[engine]\nswap_memory_gib = inf", r"engine\.swap_memory_gib is inf"),
        ("[engine]\ndevice = 'gpu'", r"engine\.device is 'gpu'"),
        ("[engine]\ngpu_memory_fraction = 1.5", r"engine\.gpu_memory_fraction is 1\.5"),
        ("[engine]\ngpu_memory_fractoin = 0.5", "did you mean 'gpu_memory_fraction'"),
        ("[engine]\nattention = 'fa4'", r"engine\.attention is 'fa4'"),
        ("[engine]\ncuda_graphs = 'often'", r"engine\.cuda_graphs is 'often'"),
        ("not toml", "not valid TOML"),
        ("tensor_parallel = 2", r"tensor_parallel is 2: it is a section, \[tensor_parallel\]"),
        ("[placement]\nprefill = 3", r"placement\.prefill is 3: it is a section, \[placement\.prefill\]"),
    ],
)
def test_a_mistake_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(text)


def test_a_key_in_place_of_a_section_is_named_though_a_flag_sets_another_key_of_it() -> None:
    with pytest.raises(ConfigError, match="pools is 3: it is a section"):
        parse_config("pools = 3", {"pools": {"prefill": 1}})


def test_auto_values_follow_machine_and_model() -> None:
    resolved = resolve(parse_config("[pools]\nprefill = 2\ndecode = 2"), MACHINE, MODEL)
    assert (resolved.dtype, resolved.threads, resolved.context_tokens) == ("float32", 2, 4096)
    page_bytes = 16 * MODEL.kv_values_per_token * 4
    assert resolved.num_pages * page_bytes * 4 <= MACHINE.memory_available_bytes / 4
    assert resolve(parse_config(), MachineFacts(8, 16 * GIB, True), MODEL).dtype == "bfloat16"


def test_more_workers_than_cores_still_get_a_thread_each() -> None:
    assert resolve(parse_config("[pools]\ndecode = 20"), MACHINE, MODEL).threads == 1


def test_pages_for_less_than_one_request_are_refused() -> None:
    with pytest.raises(ConfigError, match="which needs 257"):
        resolve(parse_config("[engine]\nnum_pages = 100"), MACHINE, MODEL)


def test_host_memory_for_preempted_sequences_is_bounded_chosen_or_none() -> None:
    page_bytes = 16 * MODEL.kv_values_per_token * 4
    auto = resolve(parse_config(), MACHINE, MODEL)
    assert 0 < auto.host_pages <= auto.num_pages
    assert auto.host_pages * page_bytes * 2 <= MACHINE.memory_available_bytes / 8
    assert auto.worker_config("w", "decode", "").engine.host_pages == auto.host_pages
    large = MachineFacts(8, 2000 * GIB, False)
    assert resolve(parse_config("[engine]\nnum_pages = 1000000"), large, MODEL).host_pages == 8 * GIB // page_bytes
    few = resolve(parse_config("[engine]\nnum_pages = 300"), MACHINE, MODEL)
    assert few.host_pages == 300
    chosen = resolve(parse_config("[engine]\nswap_memory_gib = 1.0"), MACHINE, MODEL)
    assert chosen.host_pages == GIB // page_bytes
    off = resolve(parse_config("[engine]\nswap_memory_gib = 0"), MACHINE, MODEL)
    assert (off.host_pages, off.settings["host_pages"]) == (0, "none")
    with pytest.raises(ConfigError, match="less than one page"):
        resolve(parse_config("[engine]\nswap_memory_gib = 0.0000001"), MACHINE, MODEL)


def test_no_shown_setting_is_still_auto() -> None:
    assert all("auto" not in value for value in resolve(parse_config(), MACHINE, MODEL).settings.values())


def test_access_settings_reach_router_and_workers() -> None:
    text = "[access]\nshare_prefixes = true\nmax_prompt_tokens = 100\nmax_streams_per_tenant = 3\ntokens_file = '/t'"
    resolved = resolve(parse_config(text), MACHINE, MODEL)
    access = resolved.router_config("127.0.0.1").access
    assert (access.max_prompt_tokens, access.max_streams_per_tenant, access.tokens_file) == (100, 3, "/t")
    assert access.share_prefixes
    assert resolved.worker_config("w", "mixed", "").access.share_prefixes
    assert "tokens" in resolved.settings["access"]
    plain = resolve(parse_config(), MACHINE, MODEL)
    assert plain.router_config("127.0.0.1").access.max_prompt_tokens == "auto"
    assert not plain.worker_config("w", "mixed", "").access.share_prefixes


def test_a_limit_that_allows_nothing_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"access\.max_prompt_tokens is 0"):
        parse_config("[access]\nmax_prompt_tokens = 0")


GPUS = "[placement.prefill]\ngpus = 1\n[placement.decode]\ngpus = 0.5\n"


def test_pools_that_take_gpus_compute_on_them() -> None:
    resolved = resolve(parse_config(GPUS), MACHINE, MODEL)
    configs = [resolved.worker_config(f"{role}-0", role, "") for role in ("prefill", "decode")]
    prefill, decode = (config.engine for config in configs)
    assert (prefill.device, decode.device) == ("cuda:0", "cuda:0")
    assert (prefill.gpu_memory_fraction, decode.gpu_memory_fraction) == (0.9, 0.45)
    assert (prefill.num_pages, configs[0].model.dtype, prefill.max_batch) == (0, "bfloat16", 256)
    assert prefill.chunk_tokens == 4096
    assert resolved.host_pages > 0
    assert resolved.settings["num_pages"] == "as many as fit on each worker's GPU"
    assert resolved.settings["gpu"].startswith(
        "prefill cuda:0, 0.9 of it; decode cuda:0, 0.45 of it; CUDA graphs on prefill and decode workers; "
    )


def test_without_placement_workers_divide_the_gpu_that_is_named() -> None:
    text = "[engine]\ndevice = 'cuda:1'\ncuda_graphs = false\nattention = 'fa2'\nnum_pages = 300"
    engine = resolve(parse_config(text), MACHINE, MODEL).worker_config("decode-0", "decode", "").engine
    assert (engine.device, engine.gpu_memory_fraction, engine.num_pages) == ("cuda:1", 0.45, 300)
    assert (engine.cuda_graphs, engine.attention) == (False, "fa2")
    named = resolve(parse_config("[engine]\ndevice = 'cuda'\nkv_memory_gib = 1.0"), MACHINE, MODEL)
    assert named.worker_config("decode-0", "decode", "").engine.device == "cuda:0"
    assert named.num_pages == GIB // (16 * MODEL.kv_values_per_token * 2)


def test_a_cpu_cluster_does_not_mention_gpus() -> None:
    resolved = resolve(parse_config("[engine]\ndevice = 'cpu'\n" + GPUS), MACHINE, MODEL)
    assert resolved.worker_config("decode-0", "decode", "").engine.device == "cpu"
    assert resolved.num_pages > 0
    assert "gpu" not in resolved.settings


def test_pools_on_different_kinds_of_device_are_rejected() -> None:
    with pytest.raises(ConfigError, match="prefill on cuda, decode on cpu: give every pool gpus"):
        resolve(parse_config("[placement.prefill]\ngpus = 1"), MACHINE, MODEL)


def test_the_log_level_reaches_router_and_workers_and_an_unknown_level_is_refused() -> None:
    resolved = resolve(parse_config("", {"logging": {"level": "debug"}}), MACHINE, MODEL)
    assert resolved.router_config("127.0.0.1").logging.level == "debug"
    assert resolved.worker_config("decode-0", "decode", "tcp://127.0.0.1:1").logging.level == "debug"
    with pytest.raises(ConfigError, match=r"logging\.level is 'loud'"):
        parse_config('[logging]\nlevel = "loud"')
