"""The model before training: a Llama whose first two layers can already look back.

From random weights, look-ups stay at chance for thousands of steps, until a head that copies the previous token and
a head that searches for such copies happen to match. Both are roughly initialised here (mimetic initialisation,
Trockman and Kolter 2023), and then trained like all other weights:

    layer 0, head 0   attends to the previous token and writes its content into a subspace left free for it
    layer 1, head 0   attends to the positions whose copy resembles the current token: to what followed it last time
"""

from __future__ import annotations

import math

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.builtin_model.tokenizer import CONTEXT

HIDDEN, HEAD_DIM = 128, 32
# Large, so that ten of the sixteen rotations of a head hardly turn within a context: contents match at any distance.
ROPE_THETA = 1e8
_SPREAD = 0.06  # Standard deviation of hidden matrices.
_CONSTANT = 3.0  # Value of every embedding in dimension 0, from which a head can recognise positions.
_FREE = slice(64, 64 + HEAD_DIM)  # Dimensions of the residual stream that embeddings leave empty.
_FAST, _SLOW = range(4), range(6, HEAD_DIM // 2)  # Rotations that distinguish neighbours, and that do not.
_PEAK = 12.0  # Lead of the previous token's attention logit.
_MATCH = 1.7  # Strength of the search for copies.


def build_model(vocab_size: int, eos: int) -> LlamaForCausalLM:
    """The architecture, initialised from torch's generator."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        initializer_range=_SPREAD,
        # With tied weights the names' embeddings would drift together, because no answer contains a name.
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        _look_back(model)
    return model


def _look_back(model: LlamaForCausalLM) -> None:
    embedding = model.model.embed_tokens.weight
    embedding.mul_(1 / _SPREAD)
    embedding[:, 0] = _CONSTANT
    embedding[:, _FREE] = 0.0
    reading = torch.nn.init.orthogonal_(torch.empty(HEAD_DIM, HIDDEN))
    reading[:, 0] = 0.0
    reading[:, _FREE] = 0.0
    reading /= reading.norm(dim=1, keepdim=True)

    copy = model.model.layers[0].self_attn
    strength = math.sqrt(_PEAK * math.sqrt(HEAD_DIM)) / _CONSTANT
    half = HEAD_DIM // 2
    for pair in _FAST:
        angle = ROPE_THETA ** (-pair / half)
        copy.k_proj.weight[pair, 0] = strength
        copy.q_proj.weight[pair, 0] = strength * math.cos(angle)
        copy.q_proj.weight[half + pair, 0] = -strength * math.sin(angle)
    copy.v_proj.weight[:HEAD_DIM] = reading
    copy.o_proj.weight[_FREE, :HEAD_DIM] = torch.eye(HEAD_DIM)

    search = model.model.layers[1].self_attn
    search.q_proj.weight[:HEAD_DIM] = 0.0
    search.k_proj.weight[:HEAD_DIM] = 0.0
    for index, row in enumerate([*_SLOW, *(half + pair for pair in _SLOW)]):
        search.q_proj.weight[row] = _MATCH * reading[index]
        search.k_proj.weight[row, _FREE.start + index] = _MATCH
