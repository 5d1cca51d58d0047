"""Split a labelled set's queries: one half as queries without labels (``asked.sources``), the other to measure on.

For measuring what queries that people ask are worth, beside those that a teacher writes (docs/research/queries.md):

    python benchmarks/halves.py SET OUT
    gecko distill CORPUS -o RUN --queries OUT/asked.txt --set generate.queries=0 --eval OUT/measured

Which half a query is in is decided by its text. ``SET`` is a BEIR folder, as DIR or DIR@SPLIT, or ``stdlib-questions``.
Written: ``OUT/asked.txt``, a query a line, and ``OUT/measured``, a BEIR folder with all passages.
"""

import argparse
import json
from pathlib import Path

from gecko.core.files import digest, write_bytes
from gecko.evaluation.sets import load_set


def main() -> None:
    """Read the options, split, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", metavar="SET")
    parser.add_argument("out", type=Path, metavar="OUT")
    given = parser.parse_args()
    data = load_set(given.set)
    odd = {key for key, text in data.queries if int(digest(text)[:8], 16) % 2}
    asked = [text for key, text in data.queries if key in odd]
    rest = [(key, text) for key, text in data.queries if key not in odd]
    write_bytes(given.out / "asked.txt", _lines(" ".join(text.split()) for text in asked))
    folder = given.out / "measured"
    passages = ({"_id": one.id, "title": one.title, "text": one.text} for one in data.passages)
    write_bytes(folder / "corpus.jsonl", _lines(json.dumps(row, ensure_ascii=False) for row in passages))
    write_bytes(folder / "queries.jsonl", _lines(json.dumps({"_id": key, "text": text}) for key, text in rest))
    judged = [f"{key}\t{passage}\t{grade}" for key, _ in rest for passage, grade in data.qrels[key].items()]
    write_bytes(folder / "qrels" / "test.tsv", _lines(["query-id\tcorpus-id\tscore", *judged]))
    print(
        f"{given.out / 'asked.txt'}: {len(asked):,} queries; {folder}: {len(rest):,} queries, {len(data.passages):,} passages"
    )


def _lines(texts) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode("utf-8")


if __name__ == "__main__":
    main()
