"""Evaluates the built-in model on held-out questions.

    python -m benchmarks.builtin_model.evaluate

An answer is correct if every character is correct and the model ended it. Decoding is greedy.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from baton.builtin_model import CHECKPOINT
from baton.builtin_model.tasks import SMALL_TASKS, Task, look_up

HELD_OUT_SEED = 1_000_003
LINES = (10, 50, 100, 150, 200, 249)
LONGEST_ANSWER = 64


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one kind of question."""

    name: str
    asked: int
    right: int
    longest_prompt: int

    @property
    def share(self) -> float:
        """The share of correct answers."""
        return self.right / self.asked


class Answerer:
    """A loaded checkpoint that answers prompts."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def num_tokens(self, prompt: str) -> int:
        """The length of a prompt in tokens."""
        return len(self._tokenizer(prompt)["input_ids"])

    def answer(self, prompt: str) -> str | None:
        """The model's answer, or None when it does not end."""
        ids = self._tokenizer(prompt, return_tensors="pt")["input_ids"]
        options = {"do_sample": False, "max_new_tokens": LONGEST_ANSWER, "pad_token_id": self._tokenizer.pad_token_id}
        output = self._model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist()
        if output[-1] != self._tokenizer.eos_token_id:
            return None
        return str(self._tokenizer.decode(output[:-1]))


def questions(count: int, seed: int) -> dict[str, list[Task]]:
    """`count` questions of every kind; each length of list is a kind of its own."""
    rng = random.Random(seed)

    def ask(make: Callable[[random.Random], Task]) -> list[Task]:
        return [make(rng) for _ in range(count)]

    look_ups = {f"look-up, {lines} lines": ask(lambda rng, n=lines: look_up(rng, n)) for lines in LINES}  # type: ignore[misc]
    others = [ask(make) for make in SMALL_TASKS]
    return look_ups | {tasks[0].kind: tasks for tasks in others}


def score(answerer: Answerer, name: str, tasks: list[Task]) -> Score:
    """Answer all tasks of a kind, and count the correct answers."""
    answers = [(task, answerer.answer(task.prompt)) for task in tasks]
    right = sum(text is not None and task.accepts(text) for task, text in answers)
    return Score(name, len(tasks), right, max(answerer.num_tokens(task.prompt) for task in tasks))


def table(scores: list[Score]) -> Table:
    """The scores as a table, a row per kind of question."""
    result = Table("questions", title="Built-in model, greedy, held-out questions")
    for column in ("asked", "right", "share", "longest prompt, tokens"):
        result.add_column(column, justify="right")
    for each in scores:
        result.add_row(each.name, str(each.asked), str(each.right), f"{each.share:.1%}", str(each.longest_prompt))
    return result


def main() -> None:
    """Parse the arguments, evaluate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=100, help="questions of every kind")
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the scores to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    answerer = Answerer(args.model)
    kinds = questions(args.count, args.seed)
    scores = [score(answerer, name, tasks) for name, tasks in track(kinds.items(), "asking", transient=True)]
    Console().print(table(scores))
    if args.json:
        rows = [asdict(each) | {"share": each.share} for each in scores]
        args.json.write_text(json.dumps({"seed": args.seed, "scores": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
