"""The files that are made from the configuration's schema.

python -m baton.config            # write deploy/cluster.toml and the tables of docs/configuration.md
python -m baton.config --check    # only say which of them differ (exit code 1)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from baton.config.reference import cluster_toml, with_tables

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "deploy" / "cluster.toml"
DOCUMENT = ROOT / "docs" / "configuration.md"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m baton.config", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a file differs")
    check = parser.parse_args(arguments).check
    if not DOCUMENT.is_file():
        print(f"{DOCUMENT} is not there: run this in a checkout of Baton.", file=sys.stderr)
        return 2
    made = {EXAMPLE: cluster_toml(), DOCUMENT: with_tables(DOCUMENT.read_text())}
    changed = [path for path, text in made.items() if not path.is_file() or path.read_text() != text]
    for path in changed:
        if not check:
            path.write_text(made[path])
        print(f"{path.relative_to(ROOT)} {'differs: run python -m baton.config' if check else 'written'}")
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
