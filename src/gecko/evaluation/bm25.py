"""BM25, the ranking that needs no model: Lucene's form, English stop words and the Snowball stemmer.

Of scripts without spaces (Chinese, Japanese, Thai and their like) the characters and their pairs are the words.
"""

from collections.abc import Sequence

import numpy as np

from gecko.core.records import Passage
from gecko.core.text import CHARACTER, MARKS, spaced
from gecko.encoder.nearest import largest, pack, unpack

_WORD = rf"[\w{MARKS}]{{2,}}|{CHARACTER}"  # of one character only where that can be a word


class Bm25:
    """An index of passages, title and text as one string."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        import bm25s

        self._ids = [passage.id for passage in passages]
        corpus = _words([passage.content for passage in passages])
        self._vocabulary = {word for tokens in corpus for word in tokens if word}
        self._index = bm25s.BM25()
        if self._vocabulary:
            self._index.index(corpus, show_progress=False)

    def ranked(self, queries: Sequence[tuple[str, str]], k: int) -> dict[str, dict[str, float]]:
        """At most ``k`` passages for each query of (id, text).

        Returns score by query id and passage id, best first, ties in passage order; a passage that shares no word with the
        query is never listed.
        """
        run: dict[str, dict[str, float]] = {}
        order = np.arange(len(self._ids))
        for (key, _), tokens in zip(queries, _words([text for _, text in queries]), strict=True):
            run[key] = {}
            if known := [word for word in tokens if word in self._vocabulary]:
                places, scores = unpack(largest(pack(self._index.get_scores(known)[None, :], order), k))
                found = zip(places[0].tolist(), scores[0].tolist(), strict=True)
                run[key] = {self._ids[place]: score for place, score in found if score > 0}
        return run


def bm25_run(passages: Sequence[Passage], queries: Sequence[tuple[str, str]], k: int) -> dict[str, dict[str, float]]:
    """:meth:`Bm25.ranked` of passages that are asked once."""
    return Bm25(passages).ranked(queries, k)


def _words(texts: list[str]) -> list[list[str]]:
    import bm25s
    import snowballstemmer

    tokens: list[list[str]] = bm25s.tokenize(
        [spaced(text) for text in texts],
        token_pattern=_WORD,
        stopwords="en",
        stemmer=snowballstemmer.stemmer("english"),
        return_ids=False,
        show_progress=False,
    )
    return tokens
