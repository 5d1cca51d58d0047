"""The language of a text."""

import importlib
from collections.abc import Collection
from typing import Any

from gecko.core.errors import CorpusError

LANGUAGE_CHARS = 2000


def language_of(text: str, setting: str) -> str:
    """The language of a text as two or three letters (ISO 639); only its beginning is looked at.

    A few words, or code, are told badly. Raises CorpusError: the package that tells is missing, which ``setting`` needs.
    """
    return str(needed("py3langid", setting).classify(text[:LANGUAGE_CHARS])[0])


def likeliest_of(languages: Collection[str], text: str, setting: str) -> str:
    """The likeliest of a few languages that a text may be in, which is told far better; empty: none of them is known.

    Raises CorpusError: as for :func:`language_of`.
    """
    ranked = needed("py3langid", setting).rank(text[:LANGUAGE_CHARS])
    return next((str(name) for name, _ in ranked if name in languages), "")


def needed(package: str, setting: str) -> Any:
    """A package that not everyone has. Raises CorpusError: it is missing, and ``setting`` needs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise CorpusError(
            f"{setting} needs the package {package}; install it with: pip install 'gecko-embed[corpus]'"
        ) from error
