"""The shipped model still answers the questions that its evaluation asks."""

from __future__ import annotations

import random

import pytest

from baton.builtin_model import CHECKPOINT
from baton.builtin_model.tasks import SMALL_TASKS
from benchmarks.builtin_model.evaluate import HELD_OUT_SEED, Answerer, questions

THRESHOLDS = {"look-up, 50 lines": 0.9, "look-up, 200 lines": 0.8} | {
    make(random.Random(0)).kind: 0.7 for make in SMALL_TASKS
}


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(CHECKPOINT)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_the_shipped_model_still_answers(answerer: Answerer, name: str) -> None:
    tasks = questions(12, HELD_OUT_SEED)[name]
    right = 0
    for task in tasks:
        text = answerer.answer(task.prompt)
        right += text is not None and task.accepts(text)
    assert right / len(tasks) >= THRESHOLDS[name]
