"""Text to token ids and back, with the checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from cluster.errors import ModelError


class Tokenizer:
    """A checkpoint's tokenizer.json. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        try:
            self._fast = FastTokenizer.from_file(str(path)) if path.is_file() else _convert(folder)
        except Exception as error:  # the library raises plain Exception
            raise ModelError(f"The tokenizer in {folder} cannot be read: {error}.") from None
        # Some checkpoints carry the settings of their training: a prompt must stay what it is.
        self._fast.no_truncation()
        self._fast.no_padding()
        self._max_token_bytes = max(len(token.encode()) for token in self._fast.get_vocab())

    @property
    def vocab_size(self) -> int:
        return self._fast.get_vocab_size()

    @property
    def max_token_bytes(self) -> int:
        """The most bytes of text one token can stand for, so that a text can be refused unread."""
        return self._max_token_bytes

    def encode(self, text: str) -> list[int]:
        """Token ids, with the special tokens the checkpoint puts around a text."""
        return self._fast.encode(text).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some tokens; special tokens have none."""
        return self._fast.decode(list(token_ids), skip_special_tokens=True)


def _convert(folder: Path) -> FastTokenizer:
    """Older checkpoints have only tokenizer.model, which transformers converts (a slow import, so only here)."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder).backend_tokenizer
