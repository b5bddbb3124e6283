"""Recorded and made-up request streams: when a request comes, how long it is, and what it shares with others."""

from __future__ import annotations

import csv
import heapq
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path

from baton.protocol.errors import ConfigError

MOONCAKE_BLOCK_TOKENS = 512
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MAX_REQUEST_TOKENS = 1 << 24
SYNTHETIC_BLOCK_TOKENS = 64  # tokens per block of made-up prompts
WARM_UP = 4.0  # mean lengths of a conversation


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request. Equal leading `blocks` (of `block_tokens` each) are equal leading tokens."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = MOONCAKE_BLOCK_TOKENS
    tenant: str = ""

    def prompt(self, number: int) -> tuple[int, ...]:
        """Token ids: a block is its number, repeated; `number` marks what no other request has."""
        tokens: list[int] = []
        for block in self.blocks:
            tokens += [block + 2] * self.block_tokens
        del tokens[self.prompt_tokens :]
        tokens += [-2 - number] * (self.prompt_tokens - len(tokens))
        return tuple(tokens)


def read_trace(path: Path) -> list[TraceRequest]:
    """A Mooncake JSONL or an Azure CSV trace, in order of arrival, the first at 0 s.

    Raises `ConfigError` naming the line that cannot be read.
    """
    requests: list[TraceRequest] = []
    number = 0
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = _json_rows(lines) if path.suffix in (".jsonl", ".json") else _csv_rows(lines)
            for number, read in rows:  # noqa: B007 (what goes wrong names it)
                requests.append(_checked(read()))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The trace {path} cannot be read: {error}.") from None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, csv.Error) as error:
        where = f"in line {number}" if number else "at its beginning"
        raise ConfigError(f"The trace {path} is wrong {where}: {_reason(error)}.") from None
    if not requests:
        raise ConfigError(f"The trace {path} holds no request.")
    requests.sort(key=lambda request: request.arrival_s)
    start_s = requests[0].arrival_s
    return [replace(request, arrival_s=request.arrival_s - start_s) for request in requests]


Row = tuple[int, Callable[[], TraceRequest]]  # a line's number, and what reads it


def _json_rows(lines: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, partial(_mooncake, line)


def _mooncake(line: str) -> TraceRequest:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")
    prompt_tokens = int(row["input_length"])
    # Blocks beyond the prompt say nothing.
    blocks = tuple(int(block) for block in row.get("hash_ids", ())[: -(-prompt_tokens // MOONCAKE_BLOCK_TOKENS)])
    if any(block < 0 for block in blocks):
        raise ValueError("a hash id is negative")
    return TraceRequest(float(row["timestamp"]) / 1000, prompt_tokens, int(row["output_length"]), blocks)


def _csv_rows(lines: Iterator[str]) -> Iterator[Row]:
    reader = csv.DictReader(lines)
    missing = [name for name in AZURE_COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"its first line must name the columns {', '.join(AZURE_COLUMNS)}")
    for row in reader:
        yield reader.line_num, partial(_azure, row)


def _azure(row: dict[str, str]) -> TraceRequest:
    if any(row[name] is None for name in AZURE_COLUMNS):
        raise ValueError("a column is missing")
    arrival = datetime.fromisoformat(row["TIMESTAMP"][:26])
    arrival = arrival if arrival.tzinfo else arrival.replace(tzinfo=UTC)  # the same trace in every time zone
    return TraceRequest(arrival.timestamp(), int(row["ContextTokens"]), max(1, int(row["GeneratedTokens"])))


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON ({error.msg.lower()})"
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error).rstrip(".")


def _checked(request: TraceRequest) -> TraceRequest:
    if not math.isfinite(request.arrival_s):
        raise ValueError("its time is not finite")
    for what, tokens in (("prompt", request.prompt_tokens), ("output", request.output_tokens)):
        if not 1 <= tokens <= MAX_REQUEST_TOKENS:
            raise ValueError(f"it has {tokens} {what} tokens; 1 to {MAX_REQUEST_TOKENS} can be simulated")
    return request


def scale_arrivals(requests: Sequence[TraceRequest], factor: float) -> list[TraceRequest]:
    """The same requests, `factor` times as fast."""
    return [replace(request, arrival_s=request.arrival_s / factor) for request in requests]


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Conversations that begin as a Poisson process, each with a few turns over a growing, shared prefix.

    `rate_s` counts requests, in the long run. Lengths are log-normal around their medians. `system_prompts` of
    `system_tokens` are shared among conversations.
    """

    requests: int = 1000
    rate_s: float = 10.0
    prompt_median: int = 1000
    output_median: int = 200
    spread: float = 0.8  # standard deviation of a length's logarithm
    turns: float = 3.0  # mean, geometric
    think_s: float = 20.0  # between an answer and the next turn
    system_prompts: int = 8
    system_tokens: int = 512
    tenants: int = 1

    def generate(self, seed: int) -> list[TraceRequest]:
        """The first `requests` after a time in which as many conversations have come to run as ever will."""
        rng = random.Random(seed)
        fresh = count(self.system_prompts * self._system_blocks)
        made: list[TraceRequest] = []
        to_come: list[float] = []  # arrivals after the newest conversation's start: earlier ones cannot come any more
        start_s = -WARM_UP * self.turns * self.think_s
        while len(made) - len(to_come) < self.requests:
            start_s += rng.expovariate(self.rate_s / self.turns)
            for request in self._conversation(rng, start_s, fresh):
                if request.arrival_s >= 0:
                    made.append(request)
                    heapq.heappush(to_come, request.arrival_s)
            while to_come and to_come[0] <= start_s:
                heapq.heappop(to_come)
        return sorted(made, key=lambda request: request.arrival_s)[: self.requests]

    def _conversation(self, rng: random.Random, start_s: float, fresh: Iterator[int]) -> Iterator[TraceRequest]:
        system = rng.randrange(max(self.system_prompts, 1))
        shared = self._system_blocks
        blocks = [system * shared + index for index in range(shared)]
        tenant = f"tenant-{rng.randrange(self.tenants)}" if self.tenants > 1 else ""
        arrival_s, tokens = start_s, len(blocks) * SYNTHETIC_BLOCK_TOKENS
        while True:
            tokens += self._length(rng, self.prompt_median)
            blocks += [next(fresh) for _ in range(-(-tokens // SYNTHETIC_BLOCK_TOKENS) - len(blocks))]
            output = self._length(rng, self.output_median)
            yield TraceRequest(arrival_s, tokens, output, tuple(blocks), SYNTHETIC_BLOCK_TOKENS, tenant)
            if rng.random() < 1.0 / self.turns:
                return
            tokens += output
            arrival_s += 0.02 * output + rng.expovariate(1.0 / self.think_s)

    @property
    def _system_blocks(self) -> int:
        return self.system_tokens // SYNTHETIC_BLOCK_TOKENS if self.system_prompts else 0

    def _length(self, rng: random.Random, median: int) -> int:
        return max(1, min(int(median * rng.lognormvariate(0.0, self.spread)), 16 * median))
