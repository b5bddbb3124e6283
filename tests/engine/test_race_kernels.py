"""The sampling kernels give the tokens of the numpy code: on a GPU if present, else in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported; no other test imports it

from baton.engine.race import definition, gpu  # noqa: E402
from baton.engine.race.draw import draw_rows  # noqa: E402
from baton.protocol.request import SamplingParams  # noqa: E402
from tests.engine.race_rows import random_rows  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"


def _drawn(logits: np.ndarray, rows: np.ndarray, capacity: int = gpu.CAPACITY) -> tuple[list[int], list[bool]]:
    """The kernels' tokens, and whether each row was finite."""
    there = torch.from_numpy(logits).to(DEVICE)
    tokens, finite = gpu.draw_rows(there, torch.from_numpy(rows).to(DEVICE), rows, capacity)
    return tokens.tolist(), finite.tolist()


def _expected(logits: np.ndarray, rows: np.ndarray) -> list[int]:
    tokens = logits.argmax(axis=1)
    (noisy,) = np.nonzero(rows[:, definition.KIND] != definition.GREEDY)
    tokens[noisy] = draw_rows(logits[noisy], rows[noisy])
    return [int(token) for token in tokens]


@pytest.mark.parametrize(
    ("vocab", "capacity", "programs"),
    [(40, gpu.CAPACITY, 528), (2048, 16, 528), (5000, gpu.CAPACITY, 528), (5000, 64, 1)],
    ids=["small", "one full block", "noted", "read whole by one program"],
)
def test_kernels_draw_the_tokens_of_the_numpy_code(
    vocab: int, capacity: int, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PROGRAMS", programs)
    logits, rows = random_rows(np.random.default_rng(vocab + capacity), 14, vocab)
    tokens, finite = _drawn(logits, rows, capacity)
    assert all(finite)
    assert tokens == _expected(logits, rows)


def test_kernels_draw_a_row_alone_as_in_any_batch() -> None:
    rng = np.random.default_rng(3)
    logits, rows = random_rows(rng, 6, 300)
    together, _ = _drawn(logits, rows)
    order = rng.permutation(len(rows))
    assert _drawn(logits[order], rows[order])[0] == [together[i] for i in order]
    assert [_drawn(logits[i : i + 1], rows[i : i + 1])[0][0] for i in range(len(rows))] == together


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy, about infinities
def test_kernels_distinguish_rows_with_nan_or_infinity_from_extreme_rows() -> None:
    logits, rows = random_rows(np.random.default_rng(1), 8, 70)
    rows[:, definition.KIND] = np.repeat([definition.GREEDY, definition.WHOLE], 4)
    rows[:, [definition.TOP_K, definition.MIN_WEIGHT]] = 0
    rows[:, definition.TOP_P] = definition.ALL_KEPT
    one_huge = np.full(70, -3e38, np.float32)
    one_huge[69] = 3e38
    with_nan, with_infinity = logits[0].copy(), logits[0].copy()
    with_nan[50], with_infinity[60] = np.nan, np.inf
    logits = np.stack([one_huge, with_nan, with_infinity, np.full(70, -np.inf, np.float32)] * 2)
    tokens, finite = _drawn(logits, rows)
    assert finite == [True, False, False, False] * 2
    assert tokens[0] == tokens[4] == 69
    assert all(0 <= token < 70 for token in tokens)


def test_kernels_compile_for_a_hopper_gpu_without_fused_sums_or_spilled_registers(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.engine.compiled_race"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert printed.returncode == 0, printed.stderr[-2000:]
    kernels = json.loads(printed.stdout)
    assert len(kernels) == 6
    for name, facts in kernels.items():
        assert facts["fused"] == 0, name
        assert facts["local_bytes"] == facts["stack_bytes"] == 0, name
        # Two programs of 256 threads fit on a multiprocessor, for the kernels that read whole rows.
        assert facts["registers"] <= (128 if name != "settle_kernel" else 255), name
        assert facts["shared_bytes"] <= 16 << 10, name


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_every_address_that_a_kernel_gets_is_a_multiple_of_16_in_any_batch(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise Triton would recompile the kernel for other batches while serving."""
    odd: list[tuple[str, int]] = []

    class Watched:
        def __init__(self, name: str) -> None:
            self.name, self.kernel = name, getattr(gpu, f"{name}_kernel")

        def __getitem__(self, grid: object) -> Any:
            def launch(*arguments: Any, **options: Any) -> None:
                tensors = [(place, one) for place, one in enumerate(arguments) if isinstance(one, torch.Tensor)]
                odd.extend((self.name, place) for place, one in tensors if one.data_ptr() % 16)
                self.kernel[grid](*arguments, **options)

            return launch

    for name in ("peaks", "bins", "race", "check", "again", "settle"):
        monkeypatch.setattr(gpu, f"{name}_kernel", Watched(name))
    params = [SamplingParams(temperature=1.0, top_k=3 * (row % 2), top_p=0.9, seed=row) for row in range(count)]
    rows = definition.row_parameters(params, [5] * count, 64)
    _drawn(np.random.default_rng(1).normal(size=(count, 64)).astype(np.float32), rows)
    assert not odd
