"""Generates files from the configuration's schema. Both commands name the files that differ.

python -m baton.deploy.config_files            # write deploy/cluster.toml and the tables of docs/configuration.md
python -m baton.deploy.config_files --check    # write nothing; exit code 1 when one differs
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from baton.config.reference import cluster_toml, with_tables

COMMAND = "baton.deploy.config_files"
ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "deploy" / "cluster.toml"
DOCUMENT = ROOT / "docs" / "configuration.md"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {COMMAND}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a file differs")
    check = parser.parse_args(arguments).check
    if not DOCUMENT.is_file():
        print(f"{DOCUMENT} not found: run this in a checkout of Baton.", file=sys.stderr)
        return 2
    made = {EXAMPLE: cluster_toml(), DOCUMENT: with_tables(DOCUMENT.read_text())}
    changed = [path for path, text in made.items() if not path.is_file() or path.read_text() != text]
    for path in changed:
        if not check:
            path.write_text(made[path])
        print(f"{path.relative_to(ROOT)} {f'differs: run python -m {COMMAND}' if check else 'written'}")
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
