"""The built-in model's tokenizer: byte-level BPE trained on the model's own texts. Each digit is a token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from baton.builtin_model.sentences import vocabulary
from baton.builtin_model.tasks import TASK_WORDS
from baton.builtin_model.words import NOUNS

EOS, PAD = "<eos>", "<pad>"
VOCAB_SIZE = 2560
CONTEXT = 4096

# A digit includes the space before it, as a word does, and a name the " =" after it. A line `name = 4821` is 6 tokens,
# and a name is directly followed by its value.
_PIECES = r" ?\d|[^\W\d]+ =| ?[^\W\d]+| ?[^\s\w]+|\s"

# Messages are joined unchanged; answers end as in training, so a list can be asked about several times.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def _texts() -> Iterator[str]:
    """Every word of the tasks, often enough to become one token."""
    for word in NOUNS:
        yield f"{word} = {word}\n" * 40
    for word in [*vocabulary(), *TASK_WORDS]:
        yield f"{word} {word}\n" * 40


def train_tokenizer() -> Tokenizer:
    """A tokenizer in which every word of the tasks is one token, and so is a name with its " ="."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and the files that transformers needs beside it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
