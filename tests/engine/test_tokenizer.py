"""A checkpoint's tokenizer: its special tokens, the older file format, and the errors when it cannot be read."""

from __future__ import annotations

import itertools
import json
import threading
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import processors

from baton.engine.tokenizer import Tokenizer, check_tokenizer
from baton.gateway.core.detokenizer import Detokenizer
from baton.protocol.errors import ModelError
from tests.checkpoints import byte_tokenizer
from tests.gateway.vocabularies import KINDS, token_id, vocabulary

LLAMA = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>"}
WORDS = ("once", "upon", "a", "time", "there", "was", "größe", "中文", "in", "the", "town", "and")

_read = cache(Tokenizer)


def _save(fast: FastTokenizer, folder: Path) -> Tokenizer:
    fast.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def _with_template(template: str) -> FastTokenizer:
    fast = byte_tokenizer()
    fast.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<pad>", fast.token_to_id("<pad>")), ("<eos>", fast.token_to_id("<eos>"))]
    )
    return fast


def test_a_bos_token_in_the_text_is_not_added_again(tmp_path: Path) -> None:
    tokenizer = _save(_with_template("<pad> $A <eos>"), tmp_path)
    hi = tokenizer.encode("hi", add_special_tokens=False)
    assert tokenizer.encode("hi") == [2, *hi, 1]
    assert tokenizer.encode("<pad>hi") == [2, *hi, 1]
    assert tokenizer.encode("<pad>hi", add_special_tokens=False) == [2, *hi]
    assert tokenizer.encode("<pad><pad>hi") == [2, 2, *hi, 1]  # as the text has it
    assert tokenizer.encode("<eos>hi") == [2, 1, *hi, 1]
    assert tokenizer.encode("") == [2, 1]


def test_a_prefix_of_two_tokens_is_added_unless_the_text_has_both(tmp_path: Path) -> None:
    tokenizer = _save(_with_template("<pad> <eos> $A"), tmp_path)
    assert tokenizer.encode("<pad><eos>") == [2, 1]
    assert tokenizer.encode("<pad>") == [2, 1, 2]


def test_only_special_tokens_are_found_by_their_text(tmp_path: Path) -> None:
    fast = byte_tokenizer()
    fast.add_tokens(["<tool>"])
    tokenizer = _save(fast, tmp_path)
    assert tokenizer.special_ids(["<eos>", "<tool>", "eos", "a"]) == (1,)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.sampled_from("time größer中 a.b€🙂e\u0301"), min_size=1))
@settings(deadline=None, max_examples=60)
def test_the_bytes_of_a_texts_tokens_are_its_bytes(kind: str, text: str) -> None:
    tokenizer = vocabulary(kind)
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    data = b"".join(map(tokenizer.token_bytes, token_ids))
    if 0 in token_ids and kind != "byte level":  # Unknown: a token without the text's bytes
        assert b"<unk>" in data
    else:
        assert data.decode() in (text, f" {text}")  # Some tokenizers begin a text with a space


def test_a_special_token_has_the_bytes_of_its_name_and_an_id_without_a_token_none() -> None:
    for kind in KINDS[1:]:
        assert vocabulary(kind).token_bytes(3) == b"<|im_end|>"
    assert vocabulary(KINDS[0]).token_bytes(10**6) == b""
    assert vocabulary(KINDS[0]).token_bytes(token_id(vocabulary(KINDS[0]), "größer 中")) == "größer 中".encode()


def test_other_threads_run_while_a_text_is_encoded(tmp_path: Path) -> None:
    """If encoding held Python's lock, every thread switch would come after the text."""
    tokenizer = _save(byte_tokenizer(), tmp_path)
    ended = threading.Event()

    def encode() -> None:
        tokenizer.encode("time " * 200_000)
        ended.set()

    thread = threading.Thread(target=encode)
    thread.start()
    turns = 0
    while not ended.wait(0.001):
        turns += 1
    thread.join()
    assert turns >= 10


def _train(folder: Path, model_type: str, settings: dict[str, Any] | None = None) -> Path:
    """A checkpoint with only the file written by sentencepiece, trained like that of Llama 2."""
    lines = (" ".join(order) for order in itertools.islice(itertools.permutations(WORDS, 6), 0, 200_000, 97))
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=lines,
        model_prefix=str(folder / "tokenizer"),
        model_type=model_type,
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def older(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a tokenizer class transformers uses the model file."""
    settings = LLAMA if request.param == "bpe" else None
    return _train(tmp_path_factory.mktemp(request.param), request.param, settings)


def test_tokenizer_model_alone_gives_the_ids_that_transformers_and_sentencepiece_give(older: Path) -> None:
    check_tokenizer(older)
    tokenizer = Tokenizer(older)
    theirs = transformers.AutoTokenizer.from_pretrained(older)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(older / "tokenizer.model"))
    for text in ("once upon a time", "there  was", "größe 中文 🙂", "a\nb", "x", "the town and the time "):
        assert tokenizer.encode(text) == theirs(text).input_ids
        assert tokenizer.encode(text, add_special_tokens=False) == pieces.encode(text)
    for text in (" there", "  once"):  # transformers differs from sentencepiece for these texts
        assert tokenizer.encode(text) == theirs(text).input_ids
    for text in ("once upon", ""):
        assert tokenizer.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False).input_ids
    assert tokenizer.encode("<s>once") == theirs("<s>once", add_special_tokens=False).input_ids
    assert len(tokenizer.byte_ids) == 256


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_streamed_text_is_the_text_of_sentencepiece_after_the_prompt(older: Path, data: st.DataObject) -> None:
    tokenizer = _read(older)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(older / "tokenizer.model"))
    ids = st.lists(st.integers(3, tokenizer.vocab_size - 1), min_size=1, max_size=12)
    prompt = [*data.draw(ids), token_id(tokenizer, "▁")]  # ends with a complete character
    output = data.draw(ids)
    detokenizer = Detokenizer(tokenizer)
    detokenizer.read_prompt(prompt)
    text = "".join(detokenizer.push(token) for token in output) + detokenizer.flush()
    whole, before = pieces.decode([*prompt, *output]), pieces.decode(prompt)
    assert whole.startswith(before)
    assert text == whole[len(before) :]


def test_a_model_file_that_transformers_takes_for_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="other token ids"):
        Tokenizer(_train(tmp_path, "unigram", LLAMA))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, r"no tokenizer\.json and no tokenizer\.model"),
        ({"tekken.json": b"{}"}, r"tekken\.json"),
        ({"tokenizer.json": b"{}"}, r"tokenizer\.json"),
        ({"tokenizer.model": b"nonsense"}, r"tokenizer\.model"),
        ({"tokenizer.model": b""}, r"tokenizer\.model"),
    ],
)
def test_an_unreadable_tokenizer_is_reported_in_one_sentence(
    tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for look in (check_tokenizer, Tokenizer):
        with pytest.raises(ModelError, match=words) as caught:
            look(tmp_path)
        assert "\n" not in caught.value.message
        assert caught.value.message.endswith(".")
