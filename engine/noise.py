"""Random numbers that belong to a place in a sequence, not to a generator: (seed, position) → uniform in [0, 1).

splitmix64's output function (Steele, Lea and Flood 2014) over a counter, applied twice. The same request draws the
same numbers on every worker, in every batch, however often it is resumed.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits."""
    mixed = _mix((_mix(seed & _MASK) + (position + 1) * 0x9E3779B97F4A7C15) & _MASK)
    return (mixed >> 11) * 2.0**-53
