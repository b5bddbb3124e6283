"""A small synthetic trace in Mooncake's format, for runs that only check that everything works."""

from __future__ import annotations

import json
import random
from pathlib import Path

from baton.simulator.trace import MOONCAKE_BLOCK_TOKENS


def write_trace(path: Path, requests: int = 200, seed: int = 0) -> Path:
    """Write a trace of conversations whose turns extend each other's prompts, at 3 requests per second."""
    rng = random.Random(seed)
    lines, now_ms, next_block = [], 0.0, 1
    turns: dict[int, list[int]] = {}  # Conversation → its blocks so far.
    for number in range(requests):
        now_ms += 1000 * rng.expovariate(3.0)
        blocks = turns.setdefault(rng.randrange(1 + number // 4), [0])
        fresh = rng.randint(1, 6)
        blocks += range(next_block, next_block + fresh)
        next_block += fresh
        prompt_tokens = len(blocks) * MOONCAKE_BLOCK_TOKENS - rng.randrange(MOONCAKE_BLOCK_TOKENS)
        row = {"timestamp": round(now_ms), "input_length": prompt_tokens, "output_length": rng.randint(5, 200)}
        lines.append(json.dumps({**row, "hash_ids": blocks}))
    path.write_text("\n".join(lines) + "\n")
    return path
