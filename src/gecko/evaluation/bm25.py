"""BM25, the ranking that needs no model: Lucene's form, English stop words and the Snowball stemmer.

Of scripts without spaces (Chinese, Japanese, Thai and their like) the characters and their pairs are the words.
"""

from collections.abc import Sequence

import numpy as np

from gecko.core.records import Passage
from gecko.core.text import CHARACTER, MARKS, spaced
from gecko.encoder.nearest import largest, pack, unpack

_WORD = rf"[\w{MARKS}]{{2,}}|{CHARACTER}"  # of one character only where that can be a word


def bm25_run(passages: Sequence[Passage], queries: Sequence[tuple[str, str]], k: int) -> dict[str, dict[str, float]]:
    """Rank passages, title and text as one string, for queries of (id, text): at most ``k`` a query.

    Returns score by query id and passage id, best first, ties in passage order; a passage that shares no word with the
    query is never listed.
    """
    import bm25s
    import snowballstemmer

    stemmer = snowballstemmer.stemmer("english")

    def words(texts: list[str]) -> list[list[str]]:
        tokens: list[list[str]] = bm25s.tokenize(
            [spaced(text) for text in texts],
            token_pattern=_WORD,
            stopwords="en",
            stemmer=stemmer,
            return_ids=False,
            show_progress=False,
        )
        return tokens

    corpus = words([passage.content for passage in passages])
    vocabulary = {word for tokens in corpus for word in tokens if word}
    run: dict[str, dict[str, float]] = {key: {} for key, _ in queries}
    if not vocabulary:
        return run
    order = np.arange(len(corpus))
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    for (key, _), tokens in zip(queries, words([text for _, text in queries]), strict=True):
        known = [word for word in tokens if word in vocabulary]
        if known:
            places, scores = unpack(largest(pack(index.get_scores(known)[None, :], order), k))
            found = zip(places[0].tolist(), scores[0].tolist(), strict=True)
            run[key] = {passages[place].id: score for place, score in found if score > 0}
    return run
