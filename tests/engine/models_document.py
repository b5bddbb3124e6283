"""Generates the tables of docs/models.md from the families and from the forms that are compared with transformers.

python -m tests.engine.models_document            # write them
python -m tests.engine.models_document --check    # write nothing; exit code 1 when they differ
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import sys
from pathlib import Path

from baton.engine import families
from baton.engine.families.family import ROPES, Family, no_window
from baton.engine.families.table import FAMILIES as SUPPORTED
from tests.checkpoints import FAMILIES
from tests.engine.fp8_checkpoints import FORMS as FP8_FORMS
from tests.engine.model_variants import VARIANTS, Variant, every_rope
from tests.engine.test_several_ranks import MODELS

COMMAND = "tests.engine.models_document"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
BLOCK = re.compile(r"(?P<head><!-- table: (?P<name>\w+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
TESTED, SAME_CODE, REFUSED = "tested", "same code", "refused"


def descriptions() -> dict[str, tuple[str, str]]:
    """Of each architecture, the name and the differences that its file states."""
    found = {}
    for info in pkgutil.iter_modules(families.__path__):
        module = importlib.import_module(f"{families.__name__}.{info.name}")
        for architecture, family in SUPPORTED.items():
            if getattr(module, "FAMILY", None) is family:
                name, _, differences = (module.__doc__ or "").partition("\n")[0].partition(": ")
                found[architecture] = (name, differences.removesuffix("."))
    return dict(sorted(found.items()))


def architecture_of(family: str) -> str:
    """The architecture of a family of `tests.checkpoints`."""
    return f"{FAMILIES[family][0]}ForCausalLM"


def forms_of(architecture: str) -> list[Variant]:
    """What is compared with transformers, the plain forms of `tests.checkpoints` among it."""
    plain = [
        Variant(family, options.get("rope_parameters", {}).get("rope_type", "default"), options=options)
        for family, (_, options) in FAMILIES.items()
    ]
    return [
        form for form in (*plain, *every_rope(), *VARIANTS.values()) if architecture_of(form.family) == architecture
    ]


def cell(accepted: bool, tested: bool) -> str:
    """Support of a form, as a word of the tables."""
    if accepted:
        return TESTED if tested else SAME_CODE
    assert not tested
    return REFUSED


def rope_cells(architecture: str, family: Family) -> list[str]:
    kinds = {form.rope for form in forms_of(architecture)}
    return [cell(kind in family.rope_kinds.values(), kind in kinds) for kind in ROPES]


def option_cells(architecture: str, family: Family) -> list[str]:
    """Biases, partial rotation, sliding windows, and several ranks."""
    forms = forms_of(architecture)
    biases = [
        cell(getattr(family, key), any(form.options.get(key) for form in forms))
        for key in ("attention_bias", "mlp_bias")
    ]
    partial = any("partial_rotary_factor" in form.settings for form in forms)
    window = "ignored, as in transformers" if family.window is no_window else "up to the window"
    ranks = cell(True, any(architecture_of(name) == architecture for name in MODELS))
    return [*biases, cell(family.partial_rotary, partial), window, ranks]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables() -> dict[str, str]:
    """The tables of the document by their names in it."""
    words = descriptions()
    named = {architecture: name for architecture, (name, _) in words.items()}
    return {
        "families": table(
            ["family", "architecture", "differences"], [[name, f"`{key}`", more] for key, (name, more) in words.items()]
        ),
        "ropes": table(["family", *ROPES], [[name, *rope_cells(key, SUPPORTED[key])] for key, name in named.items()]),
        "options": table(
            ["family", "`attention_bias`", "`mlp_bias`", "`partial_rotary_factor`", "sliding window", "2 and 4 ranks"],
            [[name, *option_cells(key, SUPPORTED[key])] for key, name in named.items()],
        ),
        "quantisation": table(
            ["`quant_method`", "scales", "their tensors", "one rank and two"],
            [[f"`{form.method}`", form.scales, f"`{form.scale}`", TESTED] for form in FP8_FORMS.values()],
        ),
    }


def with_tables(text: str) -> str:
    """The document with every table generated."""
    made = tables()
    return BLOCK.sub(lambda found: f"{found['head']}{made[found['name']]}{found['end']}", text)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {COMMAND}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a table differs")
    check = parser.parse_args(arguments).check
    text = DOCUMENT.read_text()
    made = with_tables(text)
    if made == text:
        return 0
    if not check:
        DOCUMENT.write_text(made)
    print(f"docs/models.md {f'differs: run python -m {COMMAND}' if check else 'written'}")
    return int(check)


if __name__ == "__main__":
    sys.exit(main())
