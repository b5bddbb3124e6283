"""Several ranks compute what one computes: logits up to the last digits of float64, and the same tokens in float32."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from baton.engine.cuda_executor import CudaOptions
from baton.engine.memory_profile import _largest_step
from baton.engine.model_config import model_config
from baton.engine.models.decoder import Decoder
from baton.engine.ranks import Ranks
from baton.engine.step import StepResult
from baton.harness.random_weights import random_weights
from baton.protocol.request import SamplingParams
from tests.checkpoints import build_checkpoint
from tests.engine.rank_group import Build, Leader, RankGroup, alone
from tests.engine.running import sampled_tokens
from tests.engine.test_cuda_executor_on_cpu import RAW

HEADS = 8
BIASES = {"attention_bias": True, "mlp_bias": True}
# Heads of 64 for the GPU's attention; an uneven vocabulary, of which the last of four ranks has one padded row or more.
MODELS: dict[str, dict[str, Any]] = {
    "llama3": {"num_key_value_heads": 8, "vocab_size": 320, "tie_word_embeddings": True},
    "qwen2": {"num_key_value_heads": 2, "vocab_size": 321, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 1, "vocab_size": 323, "head_dim": 64},
    "mistral": {"num_key_value_heads": 2, "vocab_size": 327, "head_dim": 64},
    "qwen2-moe": {"num_key_value_heads": 2, "vocab_size": 321, "head_dim": 64},
    "qwen3-moe": {"num_key_value_heads": 2, "vocab_size": 322, "head_dim": 64},
    "granite": {"num_key_value_heads": 1, "vocab_size": 321, "head_dim": 64, **BIASES},
    "olmo2": {"num_key_value_heads": 2, "vocab_size": 325, "head_dim": 64, "attention_bias": True},
    "phi3": {"num_key_value_heads": 2, "vocab_size": 321, "head_dim": 64},
    "smollm3": {"num_key_value_heads": 8, "vocab_size": 323, "head_dim": 64, **BIASES},
}
EXACT = 1e-9  # Of logits of some 10, in float64.
PROMPTS = [[3, 5, 7, 11], [2] * 37, [13, 17], [*range(40, 81)]]  # Chunks of 16 run beside decodes.
GREEDY = [SamplingParams(max_tokens=count, ignore_eos=True) for count in (9, 5, 14, 7)]
SAMPLED = [
    SamplingParams(max_tokens=9, logprobs=3, prompt_logprobs=2),
    SamplingParams(max_tokens=12, temperature=1.0, top_p=0.9, seed=7, logprobs=2),
    SamplingParams(max_tokens=14, temperature=0.7, seed=3, repetition_penalty=1.2, min_tokens=3, top_k=20),
    SamplingParams(max_tokens=12, frequency_penalty=0.5, logit_bias=((11, 4.0), (17, -100.0)), prompt_logprobs=1),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    shape: dict[str, Any] = {"hidden_size": 256, "num_attention_heads": HEADS, "intermediate_size": 96}
    return {
        family: build_checkpoint(tmp_path_factory.mktemp(family), family, seed=3, scale=2.0, **shape, **options)
        for family, options in MODELS.items()
    }


@dataclass
class Recorded:
    """A `Leader` that keeps every logit that its steps compute, and the prompts' log-probabilities."""

    leader: Leader
    logits: list[torch.Tensor]
    scores: list[Any]

    @property
    def config(self) -> Any:
        return self.leader.config

    @property
    def layout(self) -> Any:
        return self.leader.layout

    def execute(self, plan: Any) -> StepResult:
        result = self.leader.execute(plan)
        self.scores += result.prompt_logprobs
        return result


def recorded(leader: Leader) -> Recorded:
    """Keeps copies, because the sampler changes logits."""
    kept: list[torch.Tensor] = []
    compute: Callable[..., torch.Tensor] = leader.executor.model.logits

    def logits(*arguments: Any) -> torch.Tensor:
        got = compute(*arguments)
        kept.append(got.clone())
        return got

    leader.executor.model.logits = logits  # type: ignore[method-assign, assignment]
    return Recorded(leader, kept, [])


def _logits(leader: Leader) -> torch.Tensor:
    record = recorded(leader)
    sampled_tokens(record, PROMPTS, GREEDY, chunk_tokens=16)
    return torch.cat(record.logits)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("executor", ["cpu", "gpu"])
def test_logits_are_those_of_one_rank(group: RankGroup, folders: dict[str, Path], family: str, executor: str) -> None:
    build = Build(folders[family], "float64", executor)
    with alone(build) as leader:
        expected = _logits(leader)
    with group.build(build) as leader:
        got = _logits(leader)
    assert expected.dtype is got.dtype is torch.float64
    assert expected.shape == got.shape == (sum(params.max_tokens for params in GREEDY), MODELS[family]["vocab_size"])
    assert (got - expected).abs().max() <= EXACT


@pytest.mark.parametrize(
    ("family", "executor"),
    [
        *itertools.product(("qwen2", "qwen3"), ("cpu", "gpu", "fused")),
        *((family, "fused") for family in ("granite", "olmo2", "phi3", "qwen3-moe", "smollm3")),
    ],
)
def test_sampled_tokens_and_log_probabilities_are_those_of_one_rank(
    group: RankGroup, folders: dict[str, Path], family: str, executor: str
) -> None:
    build = Build(folders[family], "float32", executor)
    with alone(build) as leader:
        one = recorded(leader)
        expected = sampled_tokens(one, PROMPTS, SAMPLED, chunk_tokens=16)
    with group.build(build) as leader:
        several = recorded(leader)
        answers = sampled_tokens(several, PROMPTS, SAMPLED, chunk_tokens=16)
    for got, wanted in zip(answers, expected, strict=True):
        assert [token.token_id for token in got] == [token.token_id for token in wanted]
        for token, other in zip(got, wanted, strict=True):
            assert token.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [best for best, _ in token.top_logprobs] == [best for best, _ in other.top_logprobs]
    assert len(several.scores) == len(one.scores) > 2, "prompts are scored in chunks"
    for score, other in zip(several.scores, one.scores, strict=True):
        assert (score.request_id, score.first, score.likely_ids) == (other.request_id, other.first, other.likely_ids)
        for mine, theirs in zip(score.entries(), other.entries(), strict=True):
            assert mine[1] == pytest.approx(theirs[1], abs=1e-4)


@pytest.mark.parametrize("family", ["llama3", "qwen2", "granite", "olmo2", "phi3", "qwen2-moe", "qwen3-moe", "smollm3"])
def test_greedy_tokens_are_those_of_one_rank_and_of_transformers(
    group: RankGroup, folders: dict[str, Path], family: str
) -> None:
    folder, params = folders[family], [SamplingParams(max_tokens=64, ignore_eos=True)] * 2
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = []
    for prompt in PROMPTS[:2]:
        output = model.generate(
            torch.tensor([prompt]), max_new_tokens=64, min_new_tokens=64, do_sample=False, eos_token_id=None
        )
        expected.append(output[0, len(prompt) :].tolist())
    for context in (alone(Build(folder)), group.build(Build(folder))):
        with context as leader:
            answers = sampled_tokens(leader, PROMPTS[:2], params, chunk_tokens=16)
            assert [[token.token_id for token in answer] for answer in answers] == expected


def test_a_request_has_the_same_tokens_beside_others(group: RankGroup, folders: dict[str, Path]) -> None:
    with group.build(Build(folders["qwen3"])) as leader:
        together = sampled_tokens(leader, PROMPTS, SAMPLED, chunk_tokens=16)
        for index, prompt in enumerate(PROMPTS):
            (answer,) = sampled_tokens(leader, [prompt], [SAMPLED[index]], chunk_tokens=512)
            assert [token.token_id for token in answer] == [token.token_id for token in together[index]]


def _profile(ranks: Ranks) -> bool:
    """The step whose memory is measured, on CPU tensors, with its sampling."""
    config = model_config(RAW)
    parameters = random_weights(config.slice(ranks.num_ranks, ranks.rank), torch.float32, "cpu", 1)
    _largest_step(Decoder(config, parameters, ranks), CudaOptions(max_batch=5, max_tokens=300), torch.device("cpu"))
    return True


def test_all_ranks_run_the_profiled_step(group: RankGroup) -> None:
    assert group.call(_profile) == [True] * group.num_ranks


def test_every_rank_warms_up_and_keeps_its_heads_only(group: RankGroup, folders: dict[str, Path]) -> None:
    with group.build(Build(folders["llama3"])) as leader:
        group.warm_up()
        before = leader.executor.pages.normal_().clone()
        leader.executor.warm_up()
        assert torch.equal(leader.executor.pages, before)
        assert leader.executor.pages.shape[1] == HEADS // group.num_ranks
        assert len(leader.executor.head_checksums(3)) == HEADS // group.num_ranks
        assert leader.layout.num_kv_heads == HEADS
