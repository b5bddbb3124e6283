"""A client sends the sampling options that were given; the served model's defaults fill in the rest."""

from __future__ import annotations

from typing import Any

import pytest

from baton.client.answer import given_sampling, make_request
from baton.protocol import conversion
from baton.protocol.request import SamplingParams


def sent(sampling: SamplingParams | None = None, **options: Any) -> dict[str, Any]:
    message = make_request("x", given_sampling(sampling, options)).sampling
    names = {field.name for field, _ in message.ListFields()}
    return {name: value for name, value in conversion.given_fields(SamplingParams, message).items() if name in names}


def test_only_options_that_were_given_are_sent_beside_the_seed() -> None:
    assert set(sent()) == {"seed"}
    assert sent(temperature=0.0, seed=None, stop=["a"], top_k=None)["temperature"] == 0.0
    assert set(sent(temperature=0.0, seed=None, stop=["a"], top_k=None)) == {"seed", "temperature", "stop"}
    assert sent(seed=7) == {"seed": 7}


def test_a_bias_is_a_mapping_of_token_ids_and_is_sent_in_ascending_order() -> None:
    assert sent(seed=1, logit_bias={9: -1.5, 2: 3})["logit_bias"] == ((2, 3.0), (9, -1.5))
    sampling = SamplingParams(seed=1, logit_bias=((2, 3.0), (9, -1.5)))
    assert conversion.from_message(SamplingParams, conversion.to_message(sampling)) == sampling


def test_every_field_of_given_sampling_params_is_sent() -> None:
    sampling = SamplingParams(max_tokens=5, seed=1)
    assert conversion.from_message(SamplingParams, make_request("x", given_sampling(sampling, {})).sampling) == sampling
    assert {"temperature", "top_p", "repetition_penalty"} <= set(sent(sampling))


def test_unknown_options_and_both_ways_at_once_are_refused() -> None:
    with pytest.raises(TypeError, match="temprature"):
        given_sampling(None, {"temprature": 1.0})
    with pytest.raises(TypeError, match="not both"):
        given_sampling(SamplingParams(), {"top_k": 1})
