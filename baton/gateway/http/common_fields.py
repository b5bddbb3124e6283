"""The fields that bodies of completions and of chats have in common. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baton.gateway.http.ask import HttpModel
from baton.gateway.http.parameters import Fields, short
from baton.http.errors import InvalidField, ModelNotFound
from baton.protocol.errors import InvalidRequest
from baton.protocol.request import MAX_BIASES, MAX_LOGPROBS, MAX_OBJECTIVE_S, Objectives
from baton.protocol.sampling import with_defaults

MAX_SEQUENCES = 256  # Of one body
MAX_STOP_ITEMS = 1024
_BOUND = 1e300  # `SamplingParams` has narrower ones
TEMPERATURE = 1.0  # OpenAI's default
_INT32, _INT64 = 2**31, 2**63
_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
OBJECTIVE_HEADERS = {"ttft_ms": "x-baton-ttft-ms", "tpot_ms": "x-baton-tpot-ms"}

# Fields that would change the answer if they were supported, with the values that change nothing.
REFUSED: dict[str, tuple[object, ...]] = {
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "truncate_prompt_tokens": (),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "logits_processors": ([],),
    "prompt_embeds": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structural_tag"), ()),
    **dict.fromkeys(("regex", "ebnf", "json_schema", "grammar"), ()),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "kv_transfer_params": (),
}
# Fields of OpenAI and others that change nothing here.
HARMLESS = (
    *("user", "service_tier", "store", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "request_id"),
)


def check_known(fields: Fields, refused: Mapping[str, tuple[object, ...]]) -> None:
    """Raise `InvalidField` for a field that is not supported."""
    for name in filter(HARMLESS.__contains__, fields.values):
        fields.get(name)
    fields.refuse(refused)


def read_model(fields: Fields, model: HttpModel) -> str:
    """The served model's name; raises `ModelNotFound` for another one."""
    name = fields.text("model")
    if name not in (None, model.name):
        raise ModelNotFound(f"The model `{short(name or '')}` does not exist; this cluster serves `{model.name}`.")
    return model.name


def read_sampling(fields: Fields, model: HttpModel, decided: Mapping[str, int | None]) -> dict[str, Any]:
    """Fields of `SamplingParams` that are given, and those that the kind of body has `decided`; raises `InvalidField`.

    A temperature is always among them: the body's, that of generation_config.json, or OpenAI's default.
    """
    top_k = fields.whole("top_k", -1, _INT32 - 1)
    values: dict[str, Any] = {
        **decided,
        **{name: fields.number(name, -_BOUND, _BOUND) for name in _FLOATS},
        "top_k": None if top_k is None else max(0, top_k),
        "seed": fields.whole("seed", -_INT64, _INT64 - 1),
        "min_tokens": fields.whole("min_tokens", 0, _INT32 - 1),
        "stop": _stop(fields),
        "stop_token_ids": tuple(fields.list_of("stop_token_ids", int, "token ids", MAX_STOP_ITEMS) or ()),
        "ignore_eos": fields.flag("ignore_eos", False),
        "include_stop_str_in_output": fields.flag("include_stop_str_in_output", False),
        "logit_bias": _logit_bias(fields),
    }
    given = {name: value for name, value in values.items() if not (value is None or value is False or value == ())}
    given.setdefault("temperature", model.sampling_defaults.get("temperature", TEMPERATURE))
    _check(given, model)
    return given


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    """Pairs of token id and addend, ascending; the object's names are the ids in digits."""
    biases = fields.inner("logit_bias")
    if len(biases.values) > MAX_BIASES:
        raise InvalidField(f"logit_bias has {len(biases.values)} entries; {MAX_BIASES} are accepted.", "logit_bias")
    pairs: dict[int, float] = {}
    for name in biases.values:
        bias = biases.number(name, -100.0, 100.0)
        if not (name.isascii() and name.isdigit() and len(name) <= 10):
            raise InvalidField(f"logit_bias has the name {short(name)!r}: it must be a token id.", "logit_bias")
        pairs[int(name)] = bias or 0.0
    return tuple(sorted(pairs.items()))


def _stop(fields: Fields) -> tuple[str, ...]:
    if type(fields.get("stop")) is str:
        return (fields.get("stop"),)
    return tuple(fields.list_of("stop", str, "texts, or a text", MAX_STOP_ITEMS) or ())


def _check(given: Mapping[str, Any], model: HttpModel) -> None:
    """Raise `InvalidField` for a value out of range."""
    try:
        with_defaults(given, model.sampling_defaults).validate(model.vocab_size)
    except InvalidRequest as error:
        first = error.message.partition(" ")[0]  # A field's name, but for stop strings and stop token ids
        stop = "stop_token_ids" if "Stop token id" in error.message else "stop"
        raise InvalidField(error.message, first if first in given else stop) from None


def read_counts(fields: Fields, num_prompts: int, stream: bool) -> tuple[int, int]:
    """`n` and `best_of`; raises `InvalidField`."""
    n = fields.whole("n", 1, MAX_SEQUENCES) or 1
    best_of = fields.whole("best_of", 1, MAX_SEQUENCES) or n
    if best_of < n:
        raise fields.error("best_of", f"at least n, which is {n}")
    if best_of > n and stream:
        raise fields.error("best_of", "equal to n in a stream")
    if num_prompts * best_of > MAX_SEQUENCES:
        raise InvalidField(
            f"{num_prompts} prompts with {best_of} answers each are more than {MAX_SEQUENCES} sequences.", "n"
        )
    return n, best_of


def read_stream(fields: Fields) -> tuple[bool, bool, bool]:
    """`stream`, `include_usage` and `continuous_usage_stats`."""
    stream, options = fields.flag("stream", False), fields.inner("stream_options")
    continuous = options.flag("continuous_usage_stats", False)
    return stream, stream and options.flag("include_usage", False), stream and continuous


def read_prompt_logprobs(fields: Fields, stream: bool) -> int | None:
    """`prompt_logprobs`; raises `InvalidField`."""
    count = fields.whole("prompt_logprobs", 0, MAX_LOGPROBS)
    if count is not None and stream:
        raise InvalidField("prompt_logprobs are not available in a stream.", "prompt_logprobs")
    return count


def most(*counts: int | None) -> int | None:
    """The largest count; None if there is none."""
    return max((count for count in counts if count is not None), default=None)


def read_objectives(fields: Fields, headers: Mapping[str, str]) -> tuple[int, Objectives]:
    """The priority, and the objectives of the object `baton` or else of the headers; raises `InvalidField`."""
    own = fields.inner("baton")
    priority = own.whole("priority", -_INT32, _INT32 - 1)
    if priority is None:
        priority = fields.whole("priority", -_INT32, _INT32 - 1) or 0
    found: dict[str, float | None] = {}
    for name, header in OBJECTIVE_HEADERS.items():
        value_ms = own.number(name, 1e-3, MAX_OBJECTIVE_S * 1e3)
        if value_ms is None and header in headers:
            value_ms = _header_number(header, headers[header])
        found[name] = None if value_ms is None else value_ms / 1e3
    return priority, Objectives(found["ttft_ms"], found["tpot_ms"])


def _header_number(header: str, text: str) -> float:
    high = MAX_OBJECTIVE_S * 1e3
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-3 <= value <= high:
        raise InvalidField(
            f"The header {header} is {short(text)!r}: it must be a number of milliseconds up to {high:g}.", header
        )
    return value
