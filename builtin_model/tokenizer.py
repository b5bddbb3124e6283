"""The built-in model's tokenizer: byte-level BPE, trained on the model's own texts; digits stand alone."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from builtin_model.tasks import SMALL_TASKS, look_up
from builtin_model.words import NOUNS

EOS, PAD = "<eos>", "<pad>"
VOCAB_SIZE = 2048
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def _texts(seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for word in NOUNS:
        yield f"{word} {word}\n{word} {word}"
    for _ in range(3000):
        for make in (*SMALL_TASKS, lambda rng: look_up(rng, 20)):
            task = make(rng)
            yield task.prompt + task.answer


def train_tokenizer(seed: int = 0) -> Tokenizer:
    """A tokenizer in which every word of ours, with its leading space, is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json and what transformers wants beside it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
