"""Tokenizers of every kind that checkpoints have, small, and what text they say some tokens are."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer

from baton.engine.tokenizer import Tokenizer
from tests.checkpoints import byte_tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]
PIECES = ["▁", "▁▁", "▁time", "time", "▁a", "b", "▁größer", "中", "\N{REPLACEMENT CHARACTER}", "▁.", "e\u0301"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA_DECODER = [
    decoders.Replace("▁", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(content=" ", left=1, right=0),
]


def _byte_level() -> FastTokenizer:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<tool>", "größer 中"])
    return tokenizer


def _llama() -> FastTokenizer:
    vocab = {token: index for index, token in enumerate([*SPECIAL, *BYTES, *PIECES])}
    tokenizer = FastTokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(LLAMA_DECODER)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    return tokenizer


def _unigram(byte_fallback: bool) -> FastTokenizer:
    pieces = [*SPECIAL, *(BYTES if byte_fallback else []), *PIECES]
    vocab = [(piece, -float(index)) for index, piece in enumerate(pieces)]
    tokenizer = FastTokenizer(models.Unigram(vocab, 0, byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    metaspace = decoders.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), metaspace]) if byte_fallback else metaspace
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _read(fast: FastTokenizer) -> Tokenizer:
    with TemporaryDirectory() as folder:
        fast.save(str(Path(folder) / "tokenizer.json"))
        return Tokenizer(Path(folder))


@cache
def vocabulary(kind: str) -> Tokenizer:
    """One of `KINDS`, as Baton reads it from a checkpoint."""
    match kind:
        case "byte level":
            return _read(_byte_level())
        case "byte fallback":
            return _read(_llama())
        case "unigram":
            return _read(_unigram(byte_fallback=False))
        case _:
            return _read(_unigram(byte_fallback=True))


KINDS = ["byte level", "byte fallback", "unigram", "unigram with byte fallback"]


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token by its name in the vocabulary."""
    found = tokenizer._fast.token_to_id(token)
    assert found is not None
    return found


def _one_each(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\N{REPLACEMENT CHARACTER}", error.start + 1


codecs.register_error("one-each", _one_each)


def whole_text(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """The text of a whole sequence; of a run of byte tokens each wrong byte is a replacement character of its own."""
    if not tokenizer.byte_ids:
        return tokenizer.decode(list(token_ids))
    kept = [token_id for token_id in token_ids if tokenizer.has_text(token_id)]
    spelt: list[int] = []
    for is_byte, run in itertools.groupby(kept, lambda token_id: tokenizer.byte_of(token_id) is not None):
        if is_byte:
            data = bytes(tokenizer.byte_of(token_id) or 0 for token_id in run)
            spelt += [tokenizer.byte_ids[byte] for byte in data.decode("utf-8", "one-each").encode()]
        else:
            spelt += run
    return tokenizer.decode(spelt)


def output_text(tokenizer: Tokenizer, prompt: Sequence[int], output: Sequence[int]) -> str:
    """What an output says: the text of all, without the beginning that it shares with the prompt's."""
    whole = whole_text(tokenizer, [*prompt, *output])
    prompts = whole_text(tokenizer, prompt)
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(whole, prompts, strict=False))
    return whole[len(list(shared)) :]
