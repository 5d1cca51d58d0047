"""The language of a text."""

from collections.abc import Collection
from typing import Any

from gecko.core.errors import CorpusError

LANGUAGE_CHARS = 2000


def language_of(text: str, setting: str) -> str:
    """The language of a text as two or three letters (ISO 639); only its beginning is looked at.

    A few words, or code, are told badly. Raises CorpusError: the package that tells is missing, which ``setting`` needs.
    """
    return str(_langid(setting).classify(text[:LANGUAGE_CHARS])[0])


def likeliest_of(languages: Collection[str], text: str, setting: str) -> str:
    """The likeliest of a few languages that a text may be in, which is told far better; empty: none of them is known.

    Raises CorpusError: as for :func:`language_of`.
    """
    ranked = _langid(setting).rank(text[:LANGUAGE_CHARS])
    return next((str(name) for name, _ in ranked if name in languages), "")


def _langid(setting: str) -> Any:
    try:
        import py3langid
    except ImportError as error:
        raise CorpusError(
            f"{setting} needs the package py3langid; install it with: pip install 'gecko-embed[corpus]'"
        ) from error
    return py3langid
