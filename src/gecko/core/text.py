"""Texts as people and servers write them: their words, and characters that are whole."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from unicodedata import category

# Scripts that are written without spaces: Chinese, Japanese and their like, Thai, Lao, Burmese, Khmer. There each
# character is taken for a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Control characters, directional embeddings, overrides and isolates, and halves of surrogate pairs. Tab, newline and the
# marks that scripts need for joining stay.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
# Vowel and tone marks of Indian and South-East Asian scripts: parts of words, though no letters. The accents that Latin
# letters may carry as characters of their own are none of them.
MARKS = "".join(
    character
    for character in map(chr, [*range(0x0900, 0x1AB0), *range(0x1B00, 0x1DC0), *range(0x3000, 0xABF0)])
    if category(character).startswith("M")
)
# One character that :func:`spaced` takes for a word: a letter, digit or mark of those scripts, with the iteration marks,
# half-width kana and further letters of theirs.
CHARACTER = rf"(?=[\w{MARKS}])[{_UNSPACED}\u3005-\u3007\u31f0-\u31ff\uff66-\uff9f\ua9e0-\ua9ff\uaa60-\uaa7f]"
_RUN = re.compile(rf"(?:{CHARACTER})+")


def words(text: str) -> list[str]:
    """Lower-case words, in order."""
    return _WORD.findall(text.lower())


def spaced(text: str) -> str:
    """The text with spaces in scripts that have none, for who splits at them, in composed characters (NFC).

    A run of such characters becomes its characters and its pairs of neighbours: a pair says more than a character, and a
    word of one character is found, too.
    """
    return text if text.isascii() else _RUN.sub(_taken_apart, unicodedata.normalize("NFC", text))


def _taken_apart(found: re.Match[str]) -> str:
    run = found.group()
    return f" {' '.join([*run, *map(''.join, pairwise(run))])} "


def whole_characters(text: str) -> str:
    """The text with halves of surrogate pairs, which parsers and JSON let through, joined or replaced: UTF-8 has none."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# What is wrong with a text that a caller or a request gives; a file's has its place besides, see :func:`half_of_pair`.
HALF = "half of a surrogate pair, which is no character"


def half_of_pair(text: str) -> str:
    """What makes a text unfit for UTF-8, in words, with its place and the mend; empty: nothing."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            f"half a surrogate pair, {text[error.start]!r} at character {error.start + 1}, which no text can hold; write "
            "the file anew from its origin"
        )
    return ""


def shown(text: str) -> str:
    """``text`` with each character that acts instead of being seen written as its code point, ``‹U+202E›``."""
    return _UNSEEN.sub(lambda match: f"‹U+{ord(match[0]):04X}›", text)


def duration(seconds: float) -> str:
    """``8 s``, ``12.3 minutes`` or ``4.5 hours``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 5970 else f"{seconds / 3600:.1f} hours"


def points(value: float | None) -> str:
    """A measure on 0–1 in points of 100 with one decimal, as everything shows it that people read; a dash for none."""
    return "–" if value is None else f"{100 * value:.1f}"


def difference(delta: float, ends: Sequence[float] | None) -> str:
    """A difference of two measures on 0–1, and the ends of its interval if there is one: ``+1.4 [+0.2, +2.6]`` points."""
    shown = [f"{100 * value:+.1f}" for value in (delta, *(ends or ()))]
    return shown[0] if ends is None else f"{shown[0]} [{', '.join(shown[1:])}]"
