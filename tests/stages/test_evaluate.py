"""The stage ``evaluate``: what it embeds of test sets whose passages the run has embedded."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gecko.core.files import read_json, write_json
from gecko.encoder import Encoder
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.cache import KeptEmbeddings
from gecko.run.folder import Run
from gecko.stages import evaluate
from gecko.stages.context import Context
from gecko.stages.embed import INDEX, known_rows, vectors
from gecko.stages.runner import Pipeline, distill

from ..conftest import write_corpus
from .test_runner import settings

FURTHER = {"_id": "further", "title": "", "text": "a passage that is in the test set alone"}


@pytest.fixture(scope="module", autouse=True)
def _float32() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gecko.encoder.encoder.has_fast_bfloat16", lambda device: False)
        yield


@pytest.fixture(scope="module")
def finished(words: list[str], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run that was measured on a set of its own passages, of which one is changed, and one more."""
    folder = tmp_path_factory.mktemp("measured")
    corpus = write_corpus(folder / "corpus.jsonl", words)
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    rows[3]["title"] = "another title"
    (folder / "set" / "qrels").mkdir(parents=True)
    (folder / "set" / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows[::-1], FURTHER]))
    asked = [{"_id": f"q{place}", "text": " ".join(row["text"].split()[3:6])} for place, row in enumerate(rows[:20])]
    (folder / "set" / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    judged = "".join(f"q{place}\tp{place}\t1\n" for place in range(20))
    (folder / "set" / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    more = ("corpus.shard_passages=16", "train.formats=['native']", "train.epochs=1")
    with Run(folder / "run", settings(corpus, tiny_model, *more, f'evaluate.sets=["{folder / "set"}"]')) as run:
        distill(run)
    return folder / "run"


def measured(folder: Path, spec: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[str]]:
    """The numbers of a run, and the passages that its start model embedded for them."""
    seen: list[str] = []
    plain = Encoder.passages

    def passages(self: Encoder, items: Sequence[Any], *, progress: bool = False) -> np.ndarray:
        if self.spec == str(spec):
            seen.extend(item.id for item in items)
        return plain(self, items, progress=progress)

    with monkeypatch.context() as patched, Run(folder) as run:
        patched.setattr(Encoder, "passages", passages)
        context = Context(run)
        evaluate.agreement.make(context)
        seen.clear()
        return evaluate.measure_run(context), seen


def test_what_the_run_has_embedded_is_not_embedded_again(
    finished: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, seen = measured(finished, tiny_model, monkeypatch)
    assert sorted(seen) == ["further", "p3"]
    monkeypatch.setattr(evaluate, "known_rows", lambda context: {})
    plain, all_seen = measured(finished, tiny_model, monkeypatch)
    assert len(all_seen) == 61
    assert found == plain == read_json(finished / "evaluate" / "results.json")
    assert found["sets"]["set"]["widths"]
    assert 0 < found["sets"]["set"]["measures"]["ndcg@10"]["start"]["mean"] < 1


def test_in_bfloat16_other_batches_are_embedded_anew(
    words: list[str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run(tmp_path / "run", settings(write_corpus(tmp_path / "corpus.jsonl", words), tiny_model)) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        expected, start, passages = vectors(pipeline), pipeline.models.start, pipeline.passages
        monkeypatch.setattr(Encoder, "in_bf16", True)
        kept = KeptEmbeddings(start, tmp_path / "kept")
        whole = RetrievalSet("whole", "test", passages, [], {})
        evaluate._reuse(pipeline, [replace(whole, passages=passages[1:])], start, kept)
        assert not (tmp_path / "kept").exists()
        evaluate._reuse(pipeline, [whole], start, kept)
        monkeypatch.setattr(Encoder, "passages", None)
        np.testing.assert_array_equal(kept.passages(passages), expected)


def test_vectors_of_another_precision_or_of_an_unknown_one_are_left_alone(finished: Path) -> None:
    index = finished / "embed" / INDEX
    rows = read_json(index)
    try:
        with Run(finished) as run:
            assert len(known_rows(Context(run))) == 60
            for precision in (["cuda None True"], [""], []):
                write_json(index, [*([sha, count, *precision] for sha, count, _ in rows[:2]), *rows[2:]])
                assert len(known_rows(Context(run))) == sum(count for _, count, _ in rows[2:])
            index.unlink()
            assert not known_rows(Context(run))
    finally:
        write_json(index, rows)
