"""Text to token ids and back, with the checkpoint's own tokenizer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from baton.protocol.errors import ModelError

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # Sentencepiece's letter for it
_PROBE = "Once upon a time there were 12 tokens, and all of them came out right."


class Tokenizer:
    """A checkpoint's tokenizer, safe to use from several threads; raises `ModelError` when it cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._fast = _read(folder)
        # Some checkpoints keep training settings that truncate or pad texts. Prompts must be left as they are.
        self._fast.no_truncation()
        self._fast.no_padding()
        vocabulary = self._fast.get_vocab()
        self._max_token_bytes = max(len(token.encode()) for token in vocabulary)
        added = self._fast.get_added_tokens_decoder()
        self._special = {token.content: token_id for token_id, token in added.items() if token.special}
        self._has_text = bytearray(max(vocabulary.values()) + 1)
        for token_id in vocabulary.values():
            self._has_text[token_id] = 1
        for token_id in self._special.values():
            self._has_text[token_id] = 0
        self._added = {token_id: token.content for token_id, token in added.items()}
        decoder = self._fast.decoder
        self._byte_of_letter = _byte_of_letter() if decoder and b'"ByteLevel"' in decoder.__getstate__() else {}
        self._beginning = self._find_beginning()
        self._byte_ids = self._find_byte_ids()
        self._byte_of = {token_id: byte for byte, token_id in enumerate(self._byte_ids)}

    def _find_beginning(self) -> list[int]:
        """The special tokens that the tokenizer puts before every text."""
        encoding = self._fast.encode("a")
        pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        return [token_id for token_id, _ in itertools.takewhile(lambda pair: pair[1], pairs)]

    def _find_byte_ids(self) -> tuple[int, ...]:
        token_ids = [self._fast.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        found = tuple(token_id for token_id in token_ids if token_id is not None)
        if len(found) < 256 or self._fast.decode([found[byte] for byte in "€".encode()]) != "€":
            return ()
        return found

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._fast.get_vocab_size()

    @property
    def max_token_bytes(self) -> int:
        """The most bytes of text that one token can stand for: a bound to refuse long texts without tokenising them."""
        return self._max_token_bytes

    @property
    def byte_ids(self) -> Sequence[int]:
        """The 256 tokens that stand for one byte each (`<0x00>` and so on); empty where the vocabulary has none."""
        return self._byte_ids

    def byte_of(self, token_id: int) -> int | None:
        """The byte that a token of `byte_ids` stands for, None for other tokens."""
        return self._byte_of.get(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for: perhaps part of a character, and of a special token its name.

        Ids that only pad the model's vocabulary have none.
        """
        if token_id in self._byte_of:
            return bytes((self._byte_of[token_id],))
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self._fast.id_to_token(token_id) or ""
        if self._byte_of_letter and self._byte_of_letter.keys() >= set(piece):
            return bytes(self._byte_of_letter[letter] for letter in piece)
        return piece.replace(_SPACE, " ").encode()

    def has_text(self, token_id: int) -> bool:
        """False for special tokens and for ids that only pad the model's vocabulary."""
        return 0 <= token_id < len(self._has_text) and self._has_text[token_id] == 1

    def special_ids(self, texts: Iterable[str]) -> tuple[int, ...]:
        """The ids of those texts that are special tokens, such as `<|im_end|>`."""
        return tuple(self._special[text] for text in texts if text in self._special)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids, with the checkpoint's special tokens around the text unless it already begins with them.

        A rendered chat template begins with them, and a second beginning of sequence would cost quality. Other threads
        can run during the call.
        """
        # Not `encode`, which holds Python's global lock for the whole text.
        token_ids: list[int] = self._fast.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        added = len(self._beginning) if add_special_tokens else 0
        doubled = added and token_ids[:added] == token_ids[added : 2 * added] == self._beginning
        return token_ids[added:] if doubled else token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some tokens; special tokens have none."""
        return self._fast.decode(token_ids, skip_special_tokens=True)


def _byte_of_letter() -> dict[str, int]:
    """The bytes behind the letters of a byte-level vocabulary: bytes that cannot be seen have letters from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = (byte for byte in range(256) if byte not in seen)
    return {chr(byte): byte for byte in seen} | {chr(256 + at): byte for at, byte in enumerate(unseen)}


def check_tokenizer(folder: Path) -> None:
    """Raise `ModelError` when a checkpoint's tokenizer cannot be read; does not import transformers."""
    if (folder / "tokenizer.json").is_file():
        _from_file(folder)
    elif (folder / "tokenizer.model").is_file():
        _pieces(folder)
    elif not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        tekken = ", only tekken.json, which is not supported" if (folder / "tekken.json").is_file() else ""
        raise ModelError(
            f"{folder} has no tokenizer.json and no tokenizer.model{tekken}; "
            "add the tokenizer.json of the same model in Hugging Face's format."
        )


def _read(folder: Path) -> FastTokenizer:
    if (folder / "tokenizer.json").is_file():
        return _from_file(folder)
    check_tokenizer(folder)
    # transformers converts the files of older checkpoints. Importing it takes seconds, so it is imported only here.
    from transformers import AutoTokenizer

    try:
        fast = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    except Exception as error:  # the libraries raise plain Exception
        raise ModelError(f"The tokenizer in {folder} cannot be converted: {_first_line(error)}.") from None
    if (folder / "tokenizer.model").is_file():
        _check_conversion(fast, folder)
    return fast


def _check_conversion(fast: FastTokenizer, folder: Path) -> None:
    """Raise `ModelError` when the class in tokenizer_config.json made transformers convert the tokenizer wrongly."""
    if fast.encode(_PROBE, add_special_tokens=False).ids != _pieces(folder).encode(_PROBE):
        raise ModelError(
            f"The tokenizer in {folder} gives other token ids than its tokenizer.model once converted; "
            "add the tokenizer.json of the same model in Hugging Face's format."
        )


def _from_file(folder: Path) -> FastTokenizer:
    path = folder / "tokenizer.json"
    try:
        return FastTokenizer.from_file(str(path))
    except Exception as error:
        raise ModelError(f"The tokenizer {path} cannot be read: {_first_line(error)}.") from None


def _pieces(folder: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    path = folder / "tokenizer.model"
    try:
        return SentencePieceProcessor(model_file=str(path))
    except Exception as error:
        raise ModelError(
            f"{path} is not a sentencepiece model ({_first_line(error)}); "
            "add the tokenizer.json of the same model in Hugging Face's format."
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
