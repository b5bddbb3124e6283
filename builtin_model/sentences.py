"""Plain English sentences from a grammar: a subject, what it does, where and when."""

from __future__ import annotations

import random

from builtin_model.words import NOUNS

_ANIMALS = [
    "bear",
    "bird",
    "cat",
    "cow",
    "crab",
    "crow",
    "deer",
    "dog",
    "dove",
    "duck",
    "eagle",
    "fox",
    "frog",
    "goat",
    "goose",
    "horse",
    "lion",
    "monkey",
    "mouse",
    "owl",
]
_PEOPLE = ["baker", "king", "pilot", "queen", "tailor"]
_ADJECTIVES = [
    "old",
    "young",
    "small",
    "tall",
    "quiet",
    "clever",
    "happy",
    "tired",
    "hungry",
    "gentle",
    "brave",
    "proud",
]
_INTRANSITIVE = ["sleeps", "waits", "sings", "rests", "walks", "runs", "hides", "dreams"]
_TRANSITIVE = ["sees", "finds", "carries", "watches", "wants", "keeps", "likes", "hears"]
_PLACES = ["forest", "garden", "harbor", "market", "meadow", "mountain", "river", "valley", "village", "castle"]
_PREPOSITIONS = ["in", "near", "behind", "beyond"]
_TIMES = ["in the morning", "at night", "every day", "before dawn", "after the storm"]

assert set(_ANIMALS + _PEOPLE + _PLACES) <= set(NOUNS)


def _noun_phrase(rng: random.Random) -> str:
    noun = rng.choice(_ANIMALS + _PEOPLE)
    return f"the {rng.choice(_ADJECTIVES)} {noun}" if rng.random() < 0.6 else f"the {noun}"


def sentence(rng: random.Random) -> str:
    """One sentence of the grammar, words apart by one space, ending in " ."."""
    parts = [_noun_phrase(rng)]
    if rng.random() < 0.5:
        parts.append(rng.choice(_INTRANSITIVE))
    else:
        parts += [rng.choice(_TRANSITIVE), _noun_phrase(rng)]
    if rng.random() < 0.7:
        parts.append(f"{rng.choice(_PREPOSITIONS)} the {rng.choice(_PLACES)}")
    if rng.random() < 0.5:
        parts.append(rng.choice(_TIMES))
    return " ".join(parts) + " ."


def is_sentence(text: str) -> bool:
    """Whether a text is one sentence of the grammar (its words, in an order the grammar allows)."""
    if not text.endswith(" ."):
        return False
    rest = _eat_noun_phrase(text[:-2].split())
    if rest is None or not rest:
        return False
    verb, rest = rest[0], rest[1:]
    if verb in _TRANSITIVE:
        after = _eat_noun_phrase(rest)
        if after is None:
            return False
        rest = after
    elif verb not in _INTRANSITIVE:
        return False
    if len(rest) >= 3 and rest[0] in _PREPOSITIONS and rest[1] == "the" and rest[2] in _PLACES:
        rest = rest[3:]
    return not rest or " ".join(rest) in _TIMES


def _eat_noun_phrase(words: list[str]) -> list[str] | None:
    if words[:1] != ["the"]:
        return None
    rest = words[1:]
    if rest and rest[0] in _ADJECTIVES:
        rest = rest[1:]
    return rest[1:] if rest and rest[0] in _ANIMALS + _PEOPLE else None
