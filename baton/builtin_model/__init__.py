"""A small model that is there without a download, so that everything can be tried at once."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
