"""Generates `deploy/cluster.toml` and the tables of `docs/configuration.md` from the schema, as text. Pure."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from baton.config.schema import BatonConfig

WIDTH = 120
COMMENT_COLUMN = 30
TABLES = re.compile(r"(?<=<!-- keys -->\n).*(?=<!-- end -->)", re.DOTALL)
HEAD = """\
# Every key with its default:  baton up --config deploy/cluster.toml
# "auto" is resolved at start from the machine and the model, and printed.
# Generated from baton/config/schema.py by `python -m baton.deploy.config_files`.
"""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a section, as its field declares it."""

    name: str
    default: str  # As TOML
    values: str  # The allowed values, as text
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """One table of the file. `same_as` names an earlier table with the same keys; then `keys` is empty."""

    name: str
    text: str
    keys: tuple[Key, ...]
    same_as: str = ""


def sections() -> list[Section]:
    """Every table, in the order of the file."""
    return list(_tables(BatonConfig, "", {}))


def _tables(kind: type[BaseModel], prefix: str, seen: dict[type[BaseModel], str]) -> Iterator[Section]:
    """The tables that are fields of `kind`, each followed by its own; `seen` has the first path of each kind."""
    for name, field in kind.model_fields.items():
        if isinstance(table := field.annotation, type) and issubclass(table, BaseModel):
            path, same_as = prefix + name, seen.setdefault(table, prefix + name)
            first = same_as == path
            yield Section(path, _one_line(table.__doc__), _keys(table) if first else (), "" if first else same_as)
            yield from _tables(table, f"{path}.", seen)


def _keys(section: type[BaseModel]) -> tuple[Key, ...]:
    shapes = section.model_json_schema()["properties"]
    return tuple(
        Key(name, toml_value(field.default), _values(shapes[name]), _one_line(field.description))
        for name, field in section.model_fields.items()
        if not isinstance(field.default, BaseModel)
    )


def toml_value(value: object) -> str:
    """A default as TOML; JSON writes numbers, booleans, plain strings and empty tables in the same way."""
    return json.dumps(value)


def _values(shape: dict[str, Any]) -> str:
    """The values that a JSON schema allows, as text."""
    if "anyOf" in shape:
        return " or ".join(_values(one) for one in shape["anyOf"])
    if "const" in shape or "enum" in shape:
        return ", ".join(toml_value(one) for one in shape.get("enum", [shape.get("const")]))
    words = {"boolean": "true, false", "object": "table"}.get(shape["type"], shape["type"])
    low, high = shape.get("minimum"), shape.get("maximum")
    if low is not None:
        words += f" from {low:g}" if high is None else f" from {low:g} to {high:g}"
    if "exclusiveMinimum" in shape:
        words += f" above {shape['exclusiveMinimum']:g}"
    return str(words)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def cluster_toml() -> str:
    """A configuration file with every key, its default and its description."""
    return "\n".join([HEAD, *(_toml_table(section) for section in sections())])


def _toml_table(section: Section) -> str:
    text = f"The keys of [{section.same_as}]" if section.same_as else section.text
    rows = [(f"[{section.name}]", text), *((f"{key.name} = {key.default}", key.text) for key in section.keys)]
    return "".join(_commented(row, text) for row, text in rows)


def _commented(row: str, text: str) -> str:
    """A row with its comment beside it; a long comment continues below."""
    head = row.ljust(COMMENT_COLUMN - 1)
    first = textwrap.wrap(text, WIDTH - len(head) - 3)[0]
    rest = textwrap.wrap(text[len(first) :].strip(), WIDTH - COMMENT_COLUMN - 2)
    return "".join(f"{line}\n" for line in [f"{head} # {first}", *(" " * COMMENT_COLUMN + f"# {one}" for one in rest)])


def with_tables(document: str) -> str:
    """The document with a table for each section between its markers; raises `ValueError` without markers."""
    made, count = TABLES.subn(lambda _: "\n" + "\n".join(map(_markdown, sections())) + "\n", document)
    if count != 1:
        raise ValueError("The document needs one block between <!-- keys --> and <!-- end -->.")
    return made


def _markdown(section: Section) -> str:
    head = f"## [{section.name}]\n"
    if section.same_as:
        return f"{head}\nThe keys of `[{section.same_as}]`.\n"
    rows = [f"| `{key.name}` | `{key.default}` | {_cell(key.values)} | {_cell(key.text)} |" for key in section.keys]
    return "\n".join(
        [head, f"{section.text}\n", "| key | default | values | meaning |", "| --- | --- | --- | --- |", *rows, ""]
    )


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
