"""A small model that ships with Baton, so that everything can be tried without a download."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
