"""Training sequences: packed token ids, and labels where an answer stands."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from tokenizers import Tokenizer

from builtin_model.tasks import SMALL_TASKS, entries, listing, question
from builtin_model.tokenizer import EOS

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the curriculum: the longest list, and how the sequences of a step are cut."""

    lines: int
    length: int
    look_ups: int
    echoes: int
    small_tasks: int


@dataclass(frozen=True, slots=True)
class Batch:
    """`[rows, length]` ids and labels; the first `look_ups` rows hold a list and questions about it."""

    ids: torch.Tensor
    labels: torch.Tensor
    look_ups: int


class Samples:
    """Makes batches from an injected random generator: the same state of it, the same batches."""

    def __init__(self, tokenizer: Tokenizer, rng: random.Random) -> None:
        self.rng = rng
        self.eos: int = tokenizer.token_to_id(EOS)
        self._first_word = 2  # after the special tokens
        self._num_tokens: int = tokenizer.get_vocab_size()
        self._encode = lru_cache(maxsize=100_000)(lambda text: tokenizer.encode(text).ids)

    def batch(self, stage: Stage) -> Batch:
        """Look-ups first, then the rest."""
        rows = [self._look_ups(stage) for _ in range(stage.look_ups)]
        rows += [self._echoes(stage.length) for _ in range(stage.echoes)]
        rows += [self._small_tasks(stage.length) for _ in range(stage.small_tasks)]
        ids, labels = (torch.tensor(column) for column in zip(*rows, strict=True))
        return Batch(ids, labels, stage.look_ups)

    def _look_ups(self, stage: Stage) -> tuple[list[int], list[int]]:
        """A list, then as many questions about it as fit: many answers for the price of one list."""
        pairs = entries(self.rng, self.rng.randint(max(2, stage.lines // 3), stage.lines))
        ids = [token for pair in pairs for token in self._encode(listing([pair]))]
        labels = [IGNORED] * len(ids)
        while len(ids) < stage.length:
            for name, value in self.rng.sample(pairs, len(pairs)):
                self._add(ids, labels, question(name), f" {value}")
                if len(ids) >= stage.length:
                    break
        return ids[: stage.length], labels[: stage.length]

    def _echoes(self, length: int) -> tuple[list[int], list[int]]:
        """Tokens at random, said again and again: every one of them teaches to look back."""
        period = self.rng.randint(6, length // 2)
        said = [self.rng.randrange(self._first_word, self._num_tokens) for _ in range(period)]
        ids = (said * (length // period + 1))[:length]
        return ids, [IGNORED] * (period + 1) + ids[period + 1 :]

    def _small_tasks(self, length: int) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        labels: list[int] = []
        while len(ids) < length:
            task = self.rng.choice(SMALL_TASKS)(self.rng)
            self._add(ids, labels, task.prompt, task.answer)
        return ids[:length], labels[:length]

    def _add(self, ids: list[int], labels: list[int], prompt: str, answer: str) -> None:
        asked, answered = self._encode(prompt), [*self._encode(answer), self.eos]
        ids += asked + answered
        labels += [IGNORED] * len(asked) + answered
