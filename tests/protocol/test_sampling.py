"""A request without sampling options uses its model's defaults; its own options override them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.protocol.errors import ModelError
from baton.protocol.request import SamplingParams
from baton.protocol.sampling import default_words, model_defaults, with_defaults

# What Llama 3.1, Qwen3 and Mistral publish, and what transformers writes for a model that was never sampled.
LLAMA = {"bos_token_id": 1, "do_sample": True, "eos_token_id": [2, 3], "temperature": 0.6, "top_p": 0.9}
QWEN = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}
BARE = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "use_cache": True}


@pytest.mark.parametrize(
    ("generation", "sampling"),
    [
        (LLAMA, SamplingParams(temperature=0.6, top_p=0.9)),
        (QWEN, SamplingParams(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05)),
        (BARE, SamplingParams()),
        ({}, SamplingParams()),
        ({"do_sample": True}, SamplingParams(temperature=1.0)),
        ({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.1}, SamplingParams(repetition_penalty=1.1)),
        ({"do_sample": True, "temperature": None, "min_p": 0.05}, SamplingParams(temperature=1.0, min_p=0.05)),
        ({"max_new_tokens": 2048, "max_length": 20}, SamplingParams(max_tokens=2048)),
        ({"temperature": 1, "top_k": -1, "max_new_tokens": 50.0}, SamplingParams(temperature=1.0, max_tokens=50)),
        ({"typical_p": 0.9, "num_beams": 4, "penalty_alpha": 0.6}, SamplingParams()),
    ],
)
def test_the_defaults_are_those_of_generation_config(generation: dict[str, Any], sampling: SamplingParams) -> None:
    assert with_defaults({}, model_defaults(generation)) == sampling


@given(
    st.fixed_dictionaries({}, optional={"temperature": st.floats(0, 2), "top_k": st.integers(0, 9), "seed": st.just(4)})
)
def test_a_requests_own_values_override_the_defaults(fields: dict[str, Any]) -> None:
    sampling = with_defaults(fields, model_defaults(QWEN))
    default = with_defaults({}, model_defaults(QWEN))
    for name in SamplingParams.__slots__:
        assert getattr(sampling, name) == fields.get(name, getattr(default, name))


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        ({"temperature": "hot"}, "'hot' for temperature"),
        ({"temperature": True}, "True for temperature"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"max_new_tokens": 0}, "max_tokens is 0"),
        ({"max_new_tokens": 10.5}, r"10\.5 for max_new_tokens"),
        ({"top_k": float("inf")}, "inf for top_k"),
        ({"repetition_penalty": -1.0}, r"repetition_penalty is -1\.0"),
    ],
)
def test_an_invalid_value_is_named(generation: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        model_defaults(generation)


def test_the_description_names_what_differs() -> None:
    assert default_words({}, "Baton's defaults") == "greedy, at most 256 tokens (Baton's defaults)"
    words = default_words(model_defaults({**QWEN, "max_new_tokens": 512}), "its file")
    assert words == "temperature 0.6, top_k 20, top_p 0.95, repetition_penalty 1.05, at most 512 tokens (its file)"
