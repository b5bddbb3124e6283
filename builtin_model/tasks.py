"""The questions the built-in model can answer, each with its one right answer.

    look-up    "maple = copper\\n … \\nmaple ="                 " copper"
    repeat     "say again : \\" pond lamp … \\" :"              " pond lamp …"
    count      "count : 17 18 19 20 :"                          " 21 22 23"
    sort       "sort : pearl fig kite :"                        " fig kite pearl"
    sum        "add : 7 + 15 :"                                 " 22"
    sentence   "write :"                                        a sentence of the grammar

Every answer starts with a space and is ended by the end-of-sequence token.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from builtin_model.sentences import is_sentence, sentence
from builtin_model.words import NOUNS, SORTED_WORDS


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt and its answer; a sentence prompt has many right answers, `answer` is one of them."""

    kind: str
    prompt: str
    answer: str

    def accepts(self, text: str) -> bool:
        """Whether an output (end-of-sequence removed) is right."""
        return is_sentence(text.strip()) if self.kind == "sentence" else text == self.answer


def pairs(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """`count` names, all different, each with a value."""
    return [(name, rng.choice(NOUNS)) for name in rng.sample(NOUNS, count)]


def listing(entries: list[tuple[str, str]]) -> str:
    return "".join(f"{name} = {value}\n" for name, value in entries)


def question(name: str) -> str:
    return f"\n{name} ="


def look_up(rng: random.Random, count: int = 60) -> Task:
    """One value out of a list of `count` lines (4 tokens each)."""
    entries = pairs(rng, count)
    name, value = rng.choice(entries)
    return Task("look-up", listing(entries) + question(name), f" {value}")


def repeat(rng: random.Random, longest: int = 24) -> Task:
    passage = " ".join(rng.choice(NOUNS) for _ in range(rng.randint(3, longest)))
    return Task("repeat", f'say again : " {passage} " :', f" {passage}")


def count_on(rng: random.Random) -> Task:
    start = rng.randint(0, 190)
    numbers = [str(start + index) for index in range(7)]
    return Task("count", f"count : {' '.join(numbers[:4])} :", f" {' '.join(numbers[4:])}")


def sort_words(rng: random.Random) -> Task:
    words = rng.sample(SORTED_WORDS, rng.randint(2, 4))
    return Task("sort", f"sort : {' '.join(words)} :", f" {' '.join(sorted(words))}")


def add(rng: random.Random) -> Task:
    left, right = rng.randint(0, 20), rng.randint(0, 20)
    return Task("sum", f"add : {left} + {right} :", f" {left + right}")


def write(rng: random.Random) -> Task:
    return Task("sentence", "write :", f" {sentence(rng)}")


SMALL_TASKS: tuple[Callable[[random.Random], Task], ...] = (repeat, count_on, sort_words, add, write)
