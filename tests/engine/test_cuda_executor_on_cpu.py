"""The GPU's executor with CPU tensors and FlashInfer's calls computed by the reference.

This covers all but CUDA itself: metadata, staging, padding, recorded steps (a replay is the computation), sampling.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch

from baton.builtin_model import CHECKPOINT
from baton.engine import prompt_scores
from baton.engine.attention import flashinfer as backend
from baton.engine.checkpoint import read_config
from baton.engine.cuda_device import check_allocator, check_kernels, check_segments, open_device
from baton.engine.cuda_executor import CudaExecutor, CudaOptions
from baton.engine.executor import TorchExecutor
from baton.engine.families.table import FAMILIES
from baton.engine.memory_profile import _largest_step
from baton.engine.model_config import ModelConfig, model_config
from baton.engine.models import layers
from baton.engine.models.decoder import Decoder
from baton.engine.models.rope import FusedRotation, RopeTable, Rotation
from baton.engine.sequence import Sequence, page_ids
from baton.engine.step import Slice, StepPlan
from baton.engine.weights import load_weights
from baton.harness.random_weights import random_weights
from baton.protocol.errors import ConfigError
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import PageLayout
from tests.engine import flashinfer_reference
from tests.engine.running import generate

RAW = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_experts": 6,  # These are read for a family with experts.
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
PROMPTS = [[3, 5, 7, 11], [2] * 37, [13, 17], [19, 23, 29, 31, 37, 41, 43]]
SCORED = Request("b", tuple(range(40, 57)), SamplingParams(prompt_logprobs=2))
SAMPLING = [
    SamplingParams(max_tokens=9),
    SamplingParams(max_tokens=5, temperature=1.0, top_p=0.9, seed=7, logprobs=2),
    SamplingParams(max_tokens=14, temperature=0.7, seed=3, repetition_penalty=1.2, min_tokens=3),
    SamplingParams(max_tokens=12, frequency_penalty=0.5, presence_penalty=0.2, logit_bias=((11, 4.0), (17, -100.0))),
]


@pytest.fixture(autouse=True)
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", flashinfer_reference)
    monkeypatch.setattr(backend, "KERNEL_DTYPES", (torch.float32,))


def _parameters(
    num_pages: int = 40, architecture: str = "Qwen3ForCausalLM"
) -> tuple[ModelConfig, dict[str, torch.Tensor], PageLayout]:
    config = model_config({**RAW, "architectures": [architecture]})
    parameters = random_weights(config, torch.float32, "cpu", 1)
    for value in parameters.values():
        value.mul_(4 if value.dim() > 1 else 1)  # so that tokens differ
    return config, parameters, config.page_layout(num_pages, 4, "float32", "m")


@pytest.fixture
def cuda_layers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the fused layers, bound to the reference for one test."""
    sys.modules.pop("baton.engine.models.cuda_layers", None)
    yield importlib.import_module("baton.engine.models.cuda_layers")
    del sys.modules["baton.engine.models.cuda_layers"]
    del sys.modules["baton.engine.models"].cuda_layers  # type: ignore[attr-defined]


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("family", ["Qwen3", "Qwen3Moe"])
def test_tokens_are_those_of_the_cpu(family: str, graphs: bool) -> None:
    parts = _parameters(architecture=f"{family}ForCausalLM")
    expected = generate(TorchExecutor(*parts), PROMPTS, SAMPLING, chunk_tokens=16)
    progress: list[tuple[int, int]] = []
    options = CudaOptions(cuda_graphs=graphs, max_batch=3)  # four at once: one batch is too large for any graph
    executor = CudaExecutor(*parts, options, lambda done, total: progress.append((done, total)))
    executor.warm_up()
    assert generate(executor, PROMPTS, SAMPLING, chunk_tokens=16) == expected
    assert len({token for tokens in expected for token in tokens}) > 10
    assert progress == ([(1, 3), (2, 3), (3, 3)] if graphs else [])


def test_scores_of_a_prompt_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_scores, "MAX_LOGITS", 97 * 4)  # Four positions at a time
    decode, scored = Sequence.start(Request("a", (3, 5), SamplingParams()), (7,)), Sequence.start(SCORED)
    decode.page_table, decode.computed, scored.page_table = page_ids([9]), 2, page_ids(range(5))
    plan = StepPlan((Slice(decode, 2, 1, True), Slice(scored, 0, 17, True)))
    (expected,) = TorchExecutor(*_parameters()).execute(plan).prompt_logprobs
    (scores,) = CudaExecutor(*_parameters(), CudaOptions()).execute(plan).prompt_logprobs
    assert (scores.first, len(scores), scores.likely) == (1, 16, 2)
    assert scores.likely_ids == expected.likely_ids
    for got, wanted in zip(scores.entries(), expected.entries(), strict=True):
        assert got[1] == pytest.approx(wanted[1], abs=1e-4)
        assert [value for _, value in got[2]] == pytest.approx([value for _, value in wanted[2]], abs=1e-4)


@pytest.mark.usefixtures("cuda_layers")
@pytest.mark.parametrize("architecture", FAMILIES)
def test_tokens_are_the_same_through_the_fused_layers(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    expected = generate(TorchExecutor(*_parameters(architecture=architecture)), PROMPTS, SAMPLING, chunk_tokens=16)
    for name in ("baton.engine.models.layers.fused", "baton.engine.models.rope.fused"):
        monkeypatch.setattr(name, lambda x: True)
    executor = CudaExecutor(*_parameters(architecture=architecture), CudaOptions(max_batch=4))
    assert generate(executor, PROMPTS, SAMPLING, chunk_tokens=16) == expected


def test_a_model_without_kernels_is_computed_with_torch() -> None:
    config = read_config(CHECKPOINT)  # heads of 32
    layout = config.page_layout(40, 16, "float32", "m")
    weights = load_weights(CHECKPOINT, config, torch.float32)
    executor = CudaExecutor(config, weights, layout, CudaOptions())
    expected = generate(TorchExecutor(config, weights, layout), PROMPTS, SAMPLING)
    assert generate(executor, PROMPTS, SAMPLING) == expected


def test_a_step_is_done_once_its_event_has_happened() -> None:
    executor = CudaExecutor(*_parameters(), CudaOptions(cuda_graphs=False))
    plan = StepPlan((Slice(Sequence.start(Request("r", (3, 5), SamplingParams())), 0, 2, False),))
    plan.slices[0].sequence.page_table.append(0)
    launched = executor.launch(plan)
    assert executor.done(launched), "nothing runs beside a CPU"
    for happened in (False, True):
        event = SimpleNamespace(query=lambda happened=happened: happened)
        assert executor.done(replace(launched, ended=event)) is happened  # type: ignore[arg-type]


def test_no_pool_page_is_the_padding_page() -> None:
    executor = CudaExecutor(*_parameters(num_pages=40), CudaOptions(max_batch=2))
    assert len(executor.pages) == 40
    assert executor.pages.is_contiguous()
    assert executor.pages.data_ptr() == executor.pages.untyped_storage().data_ptr()
    assert executor.pages.untyped_storage().nbytes() == 41 * executor.layout.page_bytes


def test_the_fused_layers_are_the_plain_ones(cuda_layers: ModuleType) -> None:
    generator = torch.Generator().manual_seed(1)
    residual, x, weight = (torch.randn(*shape, generator=generator) for shape in ((5, 16), (5, 16), (16,)))
    assert torch.allclose(cuda_layers.rms_norm(x, weight, 1e-5), layers.rms_norm(x, weight, 1e-5), atol=1e-6)
    total = residual + x
    normed = cuda_layers.add_rms_norm(residual, x.clone(), weight, 1e-5)
    assert torch.equal(residual, total)
    assert torch.allclose(normed, layers.rms_norm(total, weight, 1e-5), atol=1e-6)
    gate_up = torch.randn(5, 32, generator=generator)
    assert torch.allclose(cuda_layers.silu_and_mul(gate_up), layers.silu_and_mul(gate_up.clone()), atol=1e-6)


@pytest.mark.usefixtures("cuda_layers")
def test_the_fused_rotation_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_config(RAW)
    positions = torch.tensor([0, 4, 127, 9], dtype=torch.int32)
    qkv = torch.randn(4, 6, 64, generator=torch.Generator().manual_seed(2))
    plain = RopeTable(config.rope, config.head_dim, qkv).at(positions)
    monkeypatch.setattr("baton.engine.models.rope.fused", lambda like: True)
    fused = RopeTable(config.rope, config.head_dim, qkv).at(positions)
    assert isinstance(plain, Rotation)
    assert isinstance(fused, FusedRotation)
    expected = plain.together(qkv[:, :5], 4)
    got = fused.together(qkv[:, :5], 4)
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_profiled_step_can_be_run() -> None:
    """The step whose memory is measured, with its sampling; its memory can only be measured on a GPU."""
    config, parameters, _ = _parameters()
    options = CudaOptions(max_batch=5, max_tokens=300)
    _largest_step(Decoder(config, parameters), options, torch.device("cpu"))


def test_expandable_segments_are_refused() -> None:
    check_allocator({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"})
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        with pytest.raises(ConfigError, match=f"{name} turns expandable_segments on"):
            check_allocator({name: "max_split_size_mb:64, expandable_segments : True"})


def test_pages_in_an_expandable_segment_or_of_another_allocator_are_refused_wherever_that_was_set() -> None:
    plain = {"address": 4096, "total_size": 100, "is_expandable": False}
    mapped = {"address": 8192, "total_size": 100, "is_expandable": True}
    check_segments("native", [plain, mapped], 4196 - 1)
    check_segments("native", [plain, mapped], 8192 + 100)
    with pytest.raises(ConfigError, match=r"as an expandable segment, .*: unset PYTORCH_CUDA_ALLOC_CONF and"):
        check_segments("native", [plain, mapped], 8192)
    with pytest.raises(ConfigError, match="by cudaMallocAsync, but they must be plain cudaMalloc memory"):
        check_segments("cudaMallocAsync", [], 4096)


def test_hopper_kernels_are_for_hopper() -> None:
    check_kernels("fa3", (9, 0))
    check_kernels("fa2", (8, 0))
    with pytest.raises(ConfigError, match=r"this one is 8\.0"):
        check_kernels("fa3", (8, 0))


def test_a_missing_library_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[cuda\]' in Baton's checkout\.$"):
        backend.load_flashinfer()


def test_another_version_of_flashinfer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashinfer_reference, "__version__", "0.6.18.post1")
    with pytest.raises(ConfigError, match=r"FlashInfer 0\.6\.18\.post1 is installed, .*python==0\.6\.6'\.$"):
        backend.load_flashinfer()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match="finds no GPU here"):
        open_device("cuda:0")
