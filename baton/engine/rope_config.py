"""Reads the rope of a config.json; models/rope.py computes its angles. Pure.

The kinds are those of transformers' modeling_rope_utils.py, of which every angle must depend on the position alone.
Cached keys stay valid then, whatever the length of the sequence becomes. Two kinds choose their frequencies by the
length, so they are served up to the length at which they would change: `dynamic` up to `max_position_embeddings`,
where it is the plain rope, and `longrope` up to `original_max_position_embeddings`, with its short factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from baton.protocol.errors import ModelError


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every frequency is divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3's: low frequencies are divided by `factor`, high ones kept, the middle blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_tokens: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): as Llama 3's, blended by the number of rotations over the original context.

    `low` and `high` are the pairs of values between which frequencies are blended.
    """

    factor: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class FactorPerFrequency:
    """Each frequency is divided by a factor of its own."""

    factors: tuple[float, ...]


Scaling = LinearScaling | Llama3Scaling | YarnScaling | FactorPerFrequency


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotation of the first `rotary_dim` values of each head; cosines and sines are multiplied by `magnitude`.

    `context_tokens` is the longest sequence that it is served for, `limit` the reason if that is not the model's
    number of positions.
    """

    theta: float
    rotary_dim: int
    context_tokens: int
    scaling: Scaling | None = None
    magnitude: float = 1.0
    limit: str = ""


@dataclass(frozen=True, slots=True)
class _Settings:
    """The settings of a rope, with the numbers of its model."""

    rope: Mapping[str, Any]
    theta: float
    rotary_dim: int
    positions: int
    original_tokens: int  # The context that the model was first trained with.

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; `default` (None: not optional) in place of null or a missing key."""
        value = self.rope.get(key)
        if value is None and default is None:
            raise KeyError(key)
        return positive(default if value is None else value)

    def made(self, scaling: Scaling | None, magnitude: float = 1.0, context: int | None = None) -> Rope:
        return Rope(self.theta, self.rotary_dim, context or self.positions, scaling, positive(magnitude))


def positive(number: Any) -> float:
    """The number itself; raises `ModelError` unless it is a finite number above 0."""
    if type(number) not in (int, float) or not 0 < number < float("inf"):
        raise ModelError(f"config.json gives {number!r} for a number of its norm or rope: it must be above 0.")
    return number  # type: ignore[no-any-return]


def rope_settings(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """transformers 5 writes `rope_parameters`, older versions `rope_scaling` and `rope_theta`; these win there."""
    return raw.get("rope_scaling") or raw.get("rope_parameters") or {}


def read_rope(
    raw: Mapping[str, Any], head_dim: int, default_theta: float, kinds: Mapping[str, str], partial: bool
) -> Rope:
    """The rope of a config.json; raises `ModelError` for a kind that is not supported.

    `kinds` has the supported kinds by their names in the config.json; `partial` allows to rotate a part of each head.
    """
    rope = rope_settings(raw)
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ModelError("A rope for each type of layer (rope_parameters by layer type) is not supported.")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in kinds:
        raise ModelError(f"The rope scaling {kind} is not supported, only {', '.join(kinds)}.")
    share = rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
    if share != 1.0 and not partial:
        raise ModelError(
            f"{raw['architectures'][0]} is not supported with a part of each head rotated (partial_rotary_factor)."
        )
    rotary_dim = int(head_dim * positive(share))
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise ModelError(f"config.json rotates {rotary_dim} of {head_dim} values of a head: it must be an even number.")
    positions = int(positive(raw["max_position_embeddings"]))
    original = raw.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    theta = positive(rope.get("rope_theta") or raw.get("rope_theta") or default_theta)
    return _KINDS[kinds[kind]](_Settings(rope, theta, rotary_dim, positions, int(positive(original or positions))))


def _plain(settings: _Settings) -> Rope:
    return settings.made(None)


def _dynamic(settings: _Settings) -> Rope:
    settings.number("factor")
    return settings.made(None)  # Frequencies change for longer sequences only.


def _linear(settings: _Settings) -> Rope:
    return settings.made(LinearScaling(settings.number("factor")))


def _llama3(settings: _Settings) -> Rope:
    low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
    return settings.made(Llama3Scaling(settings.number("factor"), low, high, settings.original_tokens))


def _yarn(settings: _Settings) -> Rope:
    """The context becomes `factor` times the original one, where config.json names that."""
    original, rope = settings.original_tokens, settings.rope
    factor = settings.number("factor", settings.positions / original)
    if rope.get("attention_factor") is not None:
        magnitude = settings.number("attention_factor")
    elif rope.get("mscale") and rope.get("mscale_all_dim"):
        scales = (settings.number("mscale"), settings.number("mscale_all_dim"))
        magnitude = _yarn_magnitude(factor, scales[0]) / _yarn_magnitude(factor, scales[1])
    else:
        magnitude = _yarn_magnitude(factor, 1.0)
    low = _pair_of_rotations(settings, settings.number("beta_fast", 32))
    high = _pair_of_rotations(settings, settings.number("beta_slow", 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, settings.rotary_dim - 1)
    stretched = int(factor * original) if rope.get("original_max_position_embeddings") else 0
    return settings.made(YarnScaling(factor, low, high), magnitude, max(settings.positions, stretched))


def _yarn_magnitude(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _pair_of_rotations(settings: _Settings, rotations: float) -> float:
    """The pair of values that turns so many times over the original context."""
    wavelength = settings.original_tokens / (rotations * 2 * math.pi)
    return settings.rotary_dim * math.log(wavelength) / (2 * math.log(settings.theta))


def _longrope(settings: _Settings) -> Rope:
    """Long factors would replace the short ones for all positions once a sequence exceeds the original context."""
    original, positions = settings.original_tokens, settings.positions
    factor = settings.number("factor", positions / original)
    suggested = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    factors = tuple(positive(number) for number in settings.rope["short_factor"])
    pairs = settings.rotary_dim // 2
    if len(factors) != pairs:
        raise ModelError(f"config.json has {len(factors)} numbers in short_factor instead of {pairs}.")
    magnitude = settings.number("attention_factor", suggested)
    context = min(positions, original)
    limit = "the short factors of longrope" if context < positions else ""
    return Rope(settings.theta, settings.rotary_dim, context, FactorPerFrequency(factors), magnitude, limit)


_KINDS: dict[str, Callable[[_Settings], Rope]] = {
    "default": _plain,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
