"""The tables in the documentation are generated from benchmarks/results."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from baton.harness import provenance
from baton.harness.results import FOLDER, Goal, Result, published, read_result, write_json
from benchmarks.catalog import BENCHMARKS
from benchmarks.tables import DOCUMENTS, differs, rewrite

RESULT = Result(
    "swap",
    {"serving_swap_outs": 12345.0, "swap_in_gib_s_512": 2.345678, "swap_in_gib_s_128": 0.5, "swap_out_gib_s_128": 3.0},
    date="2026-01-02",
    commit="abcdef123456",
    dirty=True,
    command="python -m benchmarks.swap",
    wall_s=12.4,
    load_average={"before": 0.1, "after": 1.5},
    machine={"cpu": "Abacus", "cores": 2, "memory_gib": 4.0},
    goals={"swap_in_gib_s_128": Goal(1.0), "serving_swap_outs": Goal(20_000, at_most=True)},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "swap.json", RESULT.to_json())
    return tmp_path


def _block(spec: str, folder: Path, commits: int | None = None) -> list[str]:
    text = f"before\n<!-- figures: {spec} -->\nold\n<!-- end -->\nafter\n"
    first, head, *made, end, last = rewrite(text, folder, lambda result: commits).splitlines()
    assert (first, head, end, last) == ("before", f"<!-- figures: {spec} -->", "<!-- end -->", "after")
    return made


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_documentation_has_the_figures_of_the_results(name: str) -> None:
    assert not differs((provenance.ROOT / name).read_text()), "run `python -m benchmarks.tables`"


def test_every_kept_result_is_a_full_run_of_a_known_benchmark_and_names_no_folder() -> None:
    for path in FOLDER.glob("*.json"):
        result = read_result(path)
        assert result.name == path.stem
        assert path.stem in {*(benchmark.name for benchmark in BENCHMARKS), "gpu"}
        assert result.size == "full"
        assert "/" not in result.command


def test_a_block_has_one_row_a_figure_and_says_where_it_was_measured(folder: Path) -> None:
    assert _block("swap serving_swap_outs *_128", folder) == [
        "| figure | value | goal |  |",
        "| --- | --- | --- | --- |",
        "| `serving_swap_outs` | 12,345 | ≤ 20000 | met |",
        "| `swap_in_gib_s_128` | 0.5 | ≥ 1 | **missed** |",
        "| `swap_out_gib_s_128` | 3 |  |  |",
        "| `resume_ratio_swap_to_recompute_128` | not measured yet |  |  |",
        "| `resume_by_swap_ms_128` | not measured yet |  |  |",
        "| `resume_by_recompute_ms_128` | not measured yet |  |  |",
        "",
        "_Measured 2026-01-02, commit abcdef1234 with changes; Abacus, 2 cores, 4.0 GiB; "
        "load average 0.1 before, 1.5 after; 12 s._ `python -m benchmarks.swap`",
    ]


def test_a_block_may_have_one_row_for_each_number_in_the_names(folder: Path) -> None:
    assert _block("swap by=positions swap_in_gib_s_{n} swap_out_gib_s_{n}", folder)[:4] == [
        "| positions | `swap_in_gib_s_…` | `swap_out_gib_s_…` |",
        "| --- | --- | --- |",
        "| 128 | 0.5 (≥ 1, **missed**) | 3 |",
        "| 512 | 2.35 |  |",
    ]
    renamed = _block("swap by=positions new_{n} swap_in_gib_s_{n}", folder)[2:4]  # Not measured under its new name
    assert renamed == ["| 128 |  | 0.5 (≥ 1, **missed**) |", "| 512 |  | 2.35 |"]


def test_a_block_may_have_figures_of_several_benchmarks_and_of_one_without_a_result(folder: Path) -> None:
    spec = 'swap:swap_out_gib_s_128="pages to host memory, in GiB/s" fuzz:inputs gpu:attention_error'
    assert _block(spec, folder, commits=2) == [
        "| figure | value | goal |  | measured | command |",
        "| --- | --- | --- | --- | --- | --- |",
        "| pages to host memory, in GiB/s (`swap_out_gib_s_128`) | 3 |  |  | 2026-01-02, 2 commits to its code since "
        "| `python -m benchmarks.swap` |",
        "| `inputs` | not measured yet |  |  |  | `python -m tests.reliability.fuzz` |",
        "| `attention_error` | not measured yet |  |  |  | `python -m benchmarks.gpu` |",
    ]


def test_figures_whose_code_has_changed_are_marked_and_the_mark_is_not_a_difference(folder: Path) -> None:
    text = "<!-- figures: swap swap_out_gib_s_128 -->\n<!-- end -->\n"
    marked = rewrite(text, folder, lambda result: 3)
    assert ", 3 commits to its code since" in marked
    assert ", 1 commit to its code since" in rewrite(text, folder, lambda result: 1)
    assert not differs(marked, folder)
    assert not differs(rewrite(text, folder, lambda result: None), folder)
    assert differs(marked.replace("| 3 |", "| 4 |"), folder)
    assert differs(text, folder)


def test_a_block_that_cannot_be_made_says_why(folder: Path) -> None:
    for spec, why in (
        ("swap none_of_these", "no figure none_of_these"),
        ("swap by=x none_{}", "no figure none_"),
        ("swop", "There is no benchmark swop"),
    ):
        with pytest.raises(ValueError, match=why):
            _block(spec, folder)


def test_a_figure_copied_from_text_is_marked(folder: Path) -> None:
    old = Result("fuzz", {"inputs": 1.0}, source="transcribed", date="2025-12-31", commit="unknown")
    write_json(folder / "fuzz.json", old.to_json())
    assert _block("fuzz inputs", folder)[-1] == "_Taken over from notes of 2025-12-31, commit unknown._"
    assert published("fuzz", folder) == old


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_commits_that_touch_the_code_are_counted_where_git_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.commit() == ("unknown", None)
    assert provenance.commits_since("abcdef", ["code"]) is None  # a tarball
    _git(tmp_path, "init", "-q")
    for name in ("code", "other", "code"):
        (tmp_path / name).write_text(f"{len(list(tmp_path.iterdir()))}{name}")
        _git(tmp_path, "add", name)
        _git(tmp_path, "commit", "-qm", name)
    first, last = _git(tmp_path, "rev-list", "--reverse", "HEAD").split()[::2]
    assert provenance.commits_since(first, ["code"]) == 1
    assert provenance.commits_since(first, ["code", "other"]) == 2
    assert provenance.commits_since(last, ["code"]) == 0
    assert provenance.commits_since("0" * 40, ["code"]) is None  # beyond a shallow clone
    assert provenance.commit() == (_git(tmp_path, "rev-parse", "--short=10", "HEAD"), False)
    (tmp_path / "code").write_text("changed")
    assert provenance.commit()[1] is True
