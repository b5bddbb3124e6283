"""Training sequences: packed token ids, with labels at the positions of answers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from tokenizers import Tokenizer

from baton.builtin_model.tasks import SMALL_TASKS, entries, listing, question
from benchmarks.builtin_model.tokenizer import EOS

IGNORED = -100
_WEIGHTS = (2, 2, 2, 2, 1)  # Relative frequency of each small task, in their order.


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the curriculum: lines of the longest list, tokens per sequence, and sequences per batch."""

    lines: int
    length: int
    rows: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids and labels, both `[rows, length]` int64."""

    ids: torch.Tensor
    labels: torch.Tensor


class Samples:
    """Makes batches from an injected random generator: equal states give equal batches."""

    def __init__(self, tokenizer: Tokenizer, rng: random.Random) -> None:
        self.rng = rng
        self.eos = tokenizer.encode(EOS).ids[0]
        self._encode = lru_cache(maxsize=100_000)(lambda text: tokenizer.encode(text).ids)

    def look_ups(self, stage: Stage) -> Batch:
        """Lists with questions about them."""
        return _stack([self._look_ups(stage) for _ in range(stage.rows)])

    def small_tasks(self, rows: int, length: int) -> Batch:
        """All other tasks, one after the other."""
        return _stack([self._small_tasks(length) for _ in range(rows)])

    def _look_ups(self, stage: Stage) -> tuple[list[int], list[int]]:
        """A list, then as many questions about it as fit, to have many answers per list."""
        pairs = entries(self.rng, self.rng.randint(max(2, stage.lines // 3), stage.lines))
        ids = [token for pair in pairs for token in self._encode(listing([pair]))]
        labels = [IGNORED] * len(ids)
        while len(ids) < stage.length:
            for name, value in self.rng.sample(pairs, len(pairs)):
                self._add(ids, labels, question(name), f" {value}")
                if len(ids) >= stage.length:
                    break
        return ids[: stage.length], labels[: stage.length]

    def _small_tasks(self, length: int) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        labels: list[int] = []
        while len(ids) < length:
            task = self.rng.choices(SMALL_TASKS, _WEIGHTS)[0](self.rng)
            self._add(ids, labels, task.prompt, task.answer)
        return ids[:length], labels[:length]

    def _add(self, ids: list[int], labels: list[int], prompt: str, answer: str) -> None:
        asked, answered = self._encode(prompt), [*self._encode(answer), self.eos]
        ids += asked + answered
        labels += [IGNORED] * len(asked) + answered


def _stack(rows: list[tuple[list[int], list[int]]]) -> Batch:
    return Batch(torch.tensor([ids for ids, _ in rows]), torch.tensor([labels for _, labels in rows]))
