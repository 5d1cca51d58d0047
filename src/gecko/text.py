"""Texts as people and servers write them: their words, and characters that are whole."""

import re

# Scripts that are written without spaces: Chinese, Japanese and their like, Thai, Lao, Burmese, Khmer. There each
# character is taken for a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Control characters, directional embeddings, overrides and isolates, and halves of surrogate pairs. Tab, newline and the
# marks that scripts need for joining stay.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """Lower-case words, in order."""
    return _WORD.findall(text.lower())


def whole_characters(text: str) -> str:
    """The text with halves of surrogate pairs, which parsers and JSON let through, joined or replaced: UTF-8 has none."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
