import json

import numpy as np
import pytest

from gecko.config.run import RunConfig
from gecko.core.files import digest, read_json
from gecko.core.records import Passage
from gecko.corpus import ingest_shards
from gecko.run.folder import Run
from gecko.run.shards import build_file, run_stream
from gecko.stages.embed import FILE, INDEX, write_vectors


class Counting:
    """An encoder whose vectors follow from the text, and from its place in the batch by no means."""

    precision = "by hand"

    def __init__(self, dies_after: int | None = None) -> None:
        self.seen: list[str] = []
        self.dies_after = dies_after

    def passages(self, passages: list[Passage], progress: bool = False) -> np.ndarray:
        if self.dies_after is not None and len(self.seen) >= self.dies_after:
            raise KeyboardInterrupt
        self.seen += [passage.id for passage in passages]
        return np.array([[int(digest(p.content)[:4], 16), len(p.text)] for p in passages], dtype=np.float32)


def vectors(folder, rows, encoder):
    source = folder.parent / "corpus.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows))
    config = RunConfig(budget="1m", corpus={"sources": [str(source)], "shard_passages": 20})
    with Run(folder, config, force=True) as run:
        content = digest(source.read_text())
        run_stream(run, "ingest", Passage, {"sources": content}, lambda: ingest_shards(config.corpus))
        parts = {"passages": run.finished("ingest").identity, "model": "m"}
        path = build_file(
            run, "embed", parts, FILE, lambda p: write_vectors(run, "embed", parts, p, lambda: encoder, str)
        )
        passages = run.read("ingest", Passage)
        return np.load(path), passages


ROWS = [{"id": f"p{number}", "text": f"passage {number}"} for number in range(300)]


def test_the_file_is_the_plain_encoding(tmp_path):
    found, passages = vectors(tmp_path / "run", ROWS, Counting())
    assert len(found) == 300
    np.testing.assert_array_equal(found, Counting().passages(passages))
    assert not (tmp_path / "run/embed/pieces").exists()


def test_a_grown_corpus_costs_its_new_passages_and_their_shards(tmp_path):
    vectors(tmp_path / "run", ROWS, Counting())
    grown = [*ROWS[:100], {"id": "new", "text": "a new one"}, *ROWS[100:], {"id": "last", "text": "one more"}]
    encoder = Counting()
    found, passages = vectors(tmp_path / "run", grown, encoder)
    np.testing.assert_array_equal(found, Counting().passages(passages))
    assert {"new", "last"} <= set(encoder.seen)
    assert len(encoder.seen) <= 4 * 40
    assert {precision for *_, precision in read_json(tmp_path / "run" / "embed" / INDEX)} == {"by hand"}


def test_an_interrupted_file_is_continued(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        vectors(tmp_path / "run", ROWS, Counting(dies_after=100))
    encoder = Counting()
    found, passages = vectors(tmp_path / "run", ROWS, encoder)
    np.testing.assert_array_equal(found, Counting().passages(passages))
    assert 100 <= len(encoder.seen) <= 200
    index = read_json(tmp_path / "run" / "embed" / INDEX)
    assert sum(rows for _, rows, precision in index if not precision) == 300 - len(encoder.seen)  # not known of those
