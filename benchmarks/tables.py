"""Generates the tables of the documentation from `benchmarks/results`.

    python -m benchmarks.tables            # rewrite every block of docs/benchmarks.md and README.md
    python -m benchmarks.tables --check    # only name the documents that differ (exit code 1)

A block is the text between `<!-- figures: … -->` and `<!-- end -->`. `figures:` is followed by a benchmark and figures:

    engine                                 every figure
    engine ratio_* tokens_per_s            these figures (with * for any characters)
    swap by=positions resume_ms_{} copy_{} a row for each text in place of {} ({n}: digits), a column per pattern
    engine:tokens_per_s handoff:stall_ms   figures of several benchmarks, each with its command
    gpu:attention_error="words about it"   the same, titled with these words

The line below each table says where it was measured, and how many later commits, as of the generation of the table,
changed the benchmark's code; --check ignores that number.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from baton.harness.provenance import ROOT, commits_since
from baton.harness.results import FOLDER, TRANSCRIBED, Goal, Result, published
from benchmarks.catalog import BY_NAME

DOCUMENTS = ("docs/benchmarks.md", "README.md")
BLOCK = re.compile(r"(?P<head><!-- figures: (?P<spec>[^>]*?) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
PLACE = re.compile(r"\{n?\}")
AGE = re.compile(r", \d+ commits? to its code since")
MISSING = "not measured yet"
Age = Callable[[Result], int | None]  # Number of commits to a result's code since it was measured.


def age_of(result: Result) -> int | None:
    """The number of later commits to the measured code; None if unknown."""
    paths = (
        ("benchmarks/gpu", "baton/engine", "kv_transfer") if result.name == "gpu" else BY_NAME[result.name].code_paths
    )
    return commits_since(result.commit, paths)


def rewrite(text: str, folder: Path = FOLDER, age: Age = age_of) -> str:
    """The document with every block generated from `folder`; raises `ValueError` for an invalid specification."""

    def made(found: re.Match[str]) -> str:
        return f"{found['head']}{block(found['spec'], folder, age)}\n{found['end']}"

    return BLOCK.sub(made, text)


def differs(text: str, folder: Path = FOLDER) -> bool:
    """Whether a block differs from the results, apart from the number of later commits."""
    return AGE.sub("", rewrite(text, folder, lambda result: None)) != AGE.sub("", text)


def block(spec: str, folder: Path, age: Age) -> str:
    """The text between the markers of a block."""
    name, *shown = shlex.split(spec)
    if ":" in name:
        return mixed_table([name, *shown], folder, age)
    result = published(name, folder)
    result = replace(result, goals={**known_goals(name), **result.goals})
    if shown and shown[0].startswith("by="):
        table = pivot_table(result, shown[0].removeprefix("by="), shown[1:])
    else:
        table = flat_table(result, shown)
    return f"{table}\n\n{origin(result, age(result) if result.figures else None)}"


def known_figures(name: str) -> list[str]:
    """The figures that a benchmark promises, for a table that has none of them yet."""
    if name == "gpu":
        from benchmarks.gpu.figures import EXPECTED
        from benchmarks.gpu.sizes import SIZES

        return [figure for figures in EXPECTED.values() for figure in figures(SIZES["llama-8b"])]
    if name not in BY_NAME:
        raise ValueError(f"There is no benchmark {name}; benchmarks/catalog.py has {', '.join(BY_NAME)}.")
    return list(BY_NAME[name].promised)


def known_goals(name: str) -> dict[str, Goal]:
    """The goals of figures that the catalogue has."""
    if name != "gpu":
        return {}
    from benchmarks.gpu.figures import goals
    from benchmarks.gpu.sizes import SIZES

    return goals(SIZES["llama-8b"])


def flat_table(result: Result, shown: Sequence[str]) -> str:
    """A row per figure, in the order of the patterns, then of the result."""
    named = (result.figures, known_figures(result.name))
    # A GPU's figures come from several runs, so their order is the catalogue's.
    names = list(dict.fromkeys(itertools.chain(*(reversed(named) if result.name == "gpu" else named))))
    picked = [name for pattern in shown or ("*",) for name in names if fnmatchcase(name, pattern)]
    unknown = [pattern for pattern in shown if "*" not in pattern and pattern not in names]
    if unknown:
        raise ValueError(f"benchmarks/results/{result.name}.json has no figure {', '.join(unknown)}.")
    rows = [row(f"`{name}`", name, result) for name in dict.fromkeys(picked)]
    return markdown(("figure", "value", "goal", ""), rows)


def row(title: str, figure: str, result: Result) -> tuple[str, ...]:
    """(title, value, goal, verdict)."""
    value, goal = result.figures.get(figure), result.goals.get(figure)
    return (title, MISSING if value is None else number(value), str(goal or ""), verdict(value, goal))


def verdict(value: float | None, goal: Goal | None) -> str:
    """ "met", "**missed**", or "" without a value or a goal."""
    if value is None or goal is None:
        return ""
    return "met" if goal.met(value) else "**missed**"


def _texts(pattern: str, names: Iterable[str]) -> list[str]:
    """What stands in place of {} in each name that matches."""
    wanted = re.escape(pattern).replace(r"\{\}", "(.+)").replace(r"\{n\}", r"(\d+)")
    return [match[1] for name in names if (match := re.fullmatch(wanted, name))]


def pivot_table(result: Result, by: str, patterns: Sequence[str]) -> str:
    """A row for each text in place of {}, numbers in numerical order; a column per pattern.

    The texts are those of the first pattern that any figure matches.
    """
    names = dict.fromkeys((*result.figures, *known_figures(result.name)))
    matching = (_texts(pattern, names) for pattern in patterns)
    values = list(dict.fromkeys(next(filter(None, matching), ())))
    if all(re.fullmatch(r"[\d.]+", value) for value in values):
        values.sort(key=float)
    if not values:
        raise ValueError(f"benchmarks/results/{result.name}.json has no figure {patterns[0]}.")
    heads = (by, *(f"`{PLACE.sub('…', pattern)}`" for pattern in patterns))
    rows = [(value, *(cell(PLACE.sub(value, pattern), result) for pattern in patterns)) for value in values]
    return markdown(heads, rows)


def cell(figure: str, result: Result) -> str:
    """A figure's value, with its goal and verdict if it has a goal."""
    value, goal = result.figures.get(figure), result.goals.get(figure)
    if value is None:
        return "" if result.figures else MISSING
    return number(value) if goal is None else f"{number(value)} ({goal}, {verdict(value, goal)})"


def mixed_table(named: Sequence[str], folder: Path, age: Age) -> str:
    """Figures of several benchmarks, each with the day of its measurement and the command."""
    rows = []
    for one in named:
        name, _, told = one.partition(":")
        figure, _, words = told.partition("=")
        known_figures(name)
        result = published(name, folder)
        title = f"{words} (`{figure}`)" if words else f"`{figure}`"
        measured = result.date + since(age(result) if result.figures else None)
        module = "benchmarks.gpu" if name == "gpu" else BY_NAME[name].module_name
        command = result.command or f"python -m {module}"
        rows.append((*row(title, figure, result), measured, f"`{command}`"))
    return markdown(("figure", "value", "goal", "", "measured", "command"), rows)


def number(value: float) -> str:
    """Three significant digits, or all digits of a large number."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def since(commits: int | None) -> str:
    """The mark of figures whose code has changed, which `AGE` matches."""
    return f", {commits} commit{'' if commits == 1 else 's'} to its code since" if commits else ""


def origin(result: Result, commits: int | None) -> str:
    """The provenance of the figures, in one line."""
    if not result.figures:
        return f"_{MISSING.capitalize()}._"
    at = f"{result.date}, commit {result.commit[:10]}{' with changes' if result.dirty else ''}{since(commits)}"
    facts = [f"{'Taken over from notes of' if result.source == TRANSCRIBED else 'Measured'} {at}"]
    machine = result.machine
    if machine:
        gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
        facts.append(f"{gpu}{machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('memory_gib')} GiB")
    if result.load_average:
        facts.append(f"load average {result.load_average['before']:g} before, {result.load_average['after']:g} after")
    if result.wall_s is not None:
        facts.append(f"{result.wall_s:.0f} s")
    return f"_{'; '.join(facts)}._" + (f" `{result.command}`" if result.command else "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a block is out of date")
    options = parser.parse_args(arguments)
    code = 0
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text()
        if options.check:
            if differs(text):
                print(f"{name} differs from benchmarks/results; run `python -m benchmarks.tables`.")
                code = 1
        elif (fresh := rewrite(text)) != text:
            path.write_text(fresh)
            print(f"{name}: rewritten")
    return code


if __name__ == "__main__":
    sys.exit(main())
