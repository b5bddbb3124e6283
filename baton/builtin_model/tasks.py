"""The tasks that the built-in model can do, each with an answer that can be checked.

    look-up    "maple = 4821\\n … \\nriver = 3057\\n\\nmaple ="     " 4821"
    repeat     'repeat " the old fox waits … " :'                  " the old fox waits …"
    count      "count 15 16 17"                                    " 18 19 20"
    sort       "sort pearl fig kite :"                             " fig kite pearl"
    sum        "add 17 + 38 ="                                     " 55"
    sentence   "write : the old fox"                               " waits near the river ."

A value has four digits: all but the first are decoded one by one, while the list is still needed. Every answer starts
with a space and ends with the end-of-sequence token.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from baton.builtin_model.sentences import is_sentence, sentence
from baton.builtin_model.words import NOUNS, SORTED_WORDS

PREFIX_OF_A_SENTENCE = "write :"
TASK_WORDS = ("repeat", "count", "sort", "add", "write")


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt and its answer. A sentence has many correct endings, of which `answer` is one."""

    kind: str
    prompt: str
    answer: str

    def accepts(self, text: str) -> bool:
        """Whether an output, without the end-of-sequence token, is correct."""
        if self.kind == "sentence":
            return is_sentence((self.prompt + text).removeprefix(PREFIX_OF_A_SENTENCE + " "))
        return text == self.answer


def entries(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """`count` distinct names, each with a value of four digits."""
    return [(name, f"{rng.randrange(10_000):04}") for name in rng.sample(NOUNS, count)]


def listing(pairs: list[tuple[str, str]]) -> str:
    """The lines `name = value`, 7 tokens each."""
    return "".join(f"{name} = {value}\n" for name, value in pairs)


def question(name: str) -> str:
    """The text after a list that asks for one of its values."""
    return f"\n{name} ="


def look_up(rng: random.Random, lines: int = 200) -> Task:
    """Find one value in a list of `lines` lines."""
    pairs = entries(rng, lines)
    name, value = rng.choice(pairs)
    return Task("look-up", listing(pairs) + question(name), f" {value}")


def repeat(rng: random.Random, longest: int = 40) -> Task:
    """Repeat a passage of 3 to `longest` words: sentences or random words, equally often."""
    length = rng.randint(3, longest)
    words = [rng.choice(NOUNS) for _ in range(length)] if rng.random() < 0.5 else _prose(rng, length)
    passage = " ".join(words)
    return Task("repeat", f'repeat " {passage} " :', f" {passage}")


def _prose(rng: random.Random, length: int) -> list[str]:
    words: list[str] = []
    while len(words) < length:
        words += sentence(rng).split()
    return words[:length]


def count_on(rng: random.Random) -> Task:
    """Continue consecutive numbers below 1,000 to the next multiple of ten."""
    start, shown = rng.randint(0, 980), rng.randint(2, 4)
    last = start + shown - 1
    seen, rest = range(start, last + 1), range(last + 1, last // 10 * 10 + 11)
    return Task("count", f"count {' '.join(map(str, seen))}", "".join(f" {number}" for number in rest))


def sort_words(rng: random.Random) -> Task:
    """Sort three to five words alphabetically."""
    words = rng.sample(SORTED_WORDS, rng.randint(3, 5))
    return Task("sort", f"sort {' '.join(words)} :", f" {' '.join(sorted(words))}")


def add(rng: random.Random) -> Task:
    """Add two numbers below 50."""
    left, right = rng.randrange(50), rng.randrange(50)
    return Task("sum", f"add {left} + {right} =", f" {left + right}")


def write(rng: random.Random) -> Task:
    """Complete a sentence of which one to five words are given."""
    words = sentence(rng).split()
    given = rng.randint(1, min(5, len(words) - 2))
    return Task("sentence", f"{PREFIX_OF_A_SENTENCE} {' '.join(words[:given])}", f" {' '.join(words[given:])}")


SMALL_TASKS: tuple[Callable[[random.Random], Task], ...] = (repeat, count_on, sort_words, add, write)
