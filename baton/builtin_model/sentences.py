"""Plain English sentences from a grammar: subject, verb, object, manner, place, time and reason."""

from __future__ import annotations

import random
from collections.abc import Iterator

_WORDS = {
    "determiner": "the every this that my our your one",
    "creature": (
        "bear bird cat cow crow deer dog dove duck eagle fox frog goat goose horse lion monkey mouse owl rabbit "
        "baker king pilot queen tailor farmer sailor teacher painter doctor child neighbor stranger singer captain"
    ),
    "thing": (
        "apple basket bell book bottle box bread bridge candle chair clock coat cup door drum flag flute guitar hat "
        "jar kettle key kite ladder lamp letter map mirror pen piano ring rope stone table wagon window"
    ),
    "trait": (
        "old young small tall quiet clever happy tired hungry gentle brave proud lonely friendly patient curious "
        "sleepy careful famous honest"
    ),
    "look": "red blue green yellow white black golden wooden broken heavy tiny round warm cold new pretty",
    "acts": "sleeps waits sings rests walks runs hides dreams laughs works dances listens arrives smiles",
    "does": "sees finds carries watches wants keeps likes hears paints follows remembers loses brings needs",
    "place": "forest garden harbor market meadow mountain river valley village castle school station library field",
    "where": "in near behind beyond beside outside",
    "manner": "slowly quickly quietly often always sometimes never again today gladly",
    "link": "and but while because so when until",
}
_LISTS = {kind: words.split() for kind, words in _WORDS.items()}
_TIMES = ["in the morning", "at night", "every day", "before dawn", "after the storm", "in winter", "for a long time"]
_MODIFIER = {"creature": "trait", "thing": "look"}


def vocabulary() -> Iterator[str]:
    """Every word of the grammar."""
    for words in _LISTS.values():
        yield from words
    for time in _TIMES:
        yield from time.split()


def sentence(rng: random.Random) -> str:
    """One sentence of the grammar; one space separates its words and the full stop."""
    words = _clause(rng)
    if rng.random() < 0.3:
        words += [rng.choice(_LISTS["link"]), *_clause(rng)]
    return " ".join([*words, "."])


def is_sentence(text: str) -> bool:
    """Whether the grammar can produce a text."""
    if not text.endswith(" ."):
        return False
    words = text[:-2].split(" ")
    ends = _after_clause(words, {0})
    linked = {end + 1 for end in ends if end < len(words) and words[end] in _LISTS["link"]}
    return len(words) in ends | _after_clause(words, linked)


def _clause(rng: random.Random) -> list[str]:
    words = _noun_phrase(rng, "creature")
    if rng.random() < 0.45:
        words.append(rng.choice(_LISTS["acts"]))
    else:
        words += [rng.choice(_LISTS["does"]), *_noun_phrase(rng, rng.choice(["creature", "thing"]))]
    if rng.random() < 0.25:
        words.append(rng.choice(_LISTS["manner"]))
    if rng.random() < 0.5:
        words += [rng.choice(_LISTS["where"]), "the", rng.choice(_LISTS["place"])]
    if rng.random() < 0.3:
        words += rng.choice(_TIMES).split()
    return words


def _noun_phrase(rng: random.Random, kind: str) -> list[str]:
    modifier = [rng.choice(_LISTS[_MODIFIER[kind]])] if rng.random() < 0.5 else []
    return [rng.choice(_LISTS["determiner"]), *modifier, rng.choice(_LISTS[kind])]


def _after_clause(words: list[str], starts: set[int]) -> set[int]:
    """The positions where a clause that begins at one of `starts` can end."""
    subjects = _after_noun_phrase(words, starts, "creature")
    verbs = _after_word(words, subjects, "does")
    ends = _after_word(words, subjects, "acts")
    ends |= _after_noun_phrase(words, verbs, "creature") | _after_noun_phrase(words, verbs, "thing")
    ends |= _after_word(words, ends, "manner")
    places = {at + 1 for at in _after_word(words, ends, "where") if words[at : at + 1] == ["the"]}
    ends |= _after_word(words, places, "place")
    for time in _TIMES:
        parts = time.split()
        ends |= {at + len(parts) for at in ends if words[at : at + len(parts)] == parts}
    return ends


def _after_noun_phrase(words: list[str], starts: set[int], kind: str) -> set[int]:
    begun = _after_word(words, starts, "determiner")
    return _after_word(words, begun | _after_word(words, begun, _MODIFIER[kind]), kind)


def _after_word(words: list[str], starts: set[int], kind: str) -> set[int]:
    return {at + 1 for at in starts if at < len(words) and words[at] in _LISTS[kind]}
