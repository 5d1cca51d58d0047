import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gecko.config.stages import CorpusConfig, SelectConfig
from gecko.core.counts import Counts
from gecko.core.errors import ConfigError, RunError
from gecko.core.records import Candidate, Passage, Query, Score
from gecko.corpus import ingest
from gecko.fret.release import (
    FILE,
    SCHEMA,
    STDLIB,
    STDLIB_LOG,
    content_hash,
    heldout_seeds,
    load_release,
    read_release,
    release_identity,
    release_path,
    shipped,
    write_release,
)
from gecko.fret.select import group_labels, select

PASSAGES = {name: Passage(name, name.upper(), f"text of {name}", "a file") for name in "abcdef"}
CONFIG = SelectConfig()
# By query: the seed, and the candidates with (QL sum, RC), nearest first.
JUDGED = {
    "q0": ("a", "train", {"a": (-4.0, 2.0), "b": (-5.0, 1.0), "c": (-6.0, -1.0), "d": (-9.0, -3.0)}),
    "q1": ("b", "train", {"e": (-3.0, 4.0), "b": (-5.0, 1.0), "c": (-6.0, 2.0), "d": (-9.0, -3.0)}),
    "q2": ("c", "heldout", {"c": (-3.0, 4.0), "b": (-5.0, 1.0), "f": (-6.0, 2.0), "d": (-9.0, -3.0)}),
    "q3": ("f", "train", {"c": (-3.0, 4.0), "f": (-5.0, 1.0), "a": (-6.0, 2.0), "e": (-9.0, -3.0)}),
}


def row(name: str) -> dict[str, object]:
    seed, split, judged = JUDGED[name]
    return {
        "query_id": name,
        "task": "a task",
        "query": f"query {name}",
        "split": split,
        "seed_id": seed,
        "llm": "fake",
        "teacher": "t",
        "prompt_hash": "h",
        "candidates": [
            {
                "passage_id": key,
                "content": content_hash(PASSAGES[key]),
                "cosine": 0.5,
                "ql_sum": ql,
                "ql_tokens": 2,
                "rc": rc,
            }
            for key, (ql, rc) in judged.items()
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_release([row(name) for name in JUDGED], tmp_path / "some" / FILE)
    return tmp_path / "some"


def test_it_says_what_the_scores_say(folder: Path) -> None:
    """Reading a release is grouping the records that it was made of."""
    released = load_release(str(folder), PASSAGES, CONFIG)
    queries = [Query(name, "a task", f"query {name}", seed, "fake", split) for name, (seed, split, _) in JUDGED.items()]
    candidates = [
        Candidate(name, key, rank, 0.5) for name in JUDGED for rank, key in enumerate(JUDGED[name][2], start=1)
    ]
    scores = [Score(name, key, "t", "h", ql, 2, rc) for name in JUDGED for key, (ql, rc) in JUDGED[name][2].items()]
    assert released.queries == queries
    labels = group_labels(queries, candidates, scores, CONFIG)
    assert released.labels == labels
    rows = released.examples(CONFIG)
    assert rows == list(select(queries, labels, PASSAGES, CONFIG, 0, Counts()))
    assert [one.positive.id for one in rows] == ["a", "e", "c"]
    assert released.counts.drops == {"held out": 1}


def test_what_is_missing_or_changed(folder: Path) -> None:
    here = {key: passage for key, passage in PASSAGES.items() if key != "d"} | {"e": replace(PASSAGES["e"], text="new")}
    released = load_release(str(folder), here, CONFIG)
    name = str(folder)
    # q1's p_1 reads otherwise. d is nobody's seed or p_1, so it only leaves the lists, like e in q3.
    assert [query.id for query in released.queries] == ["q0", "q2", "q3"]
    assert released.counts.drops == {f"{name}: seed or positive changed": 1}
    assert released.counts.notes == {f"{name}: candidates missing or changed": 3}
    whole = load_release(name, PASSAGES, CONFIG)
    for query, gone in (("q0", "d"), ("q2", "d"), ("q3", "e")):
        assert released.labels[query] == [label for label in whole.labels[query] if label.passage_id != gone]
        assert len(released.labels[query]) == 3
    without_seed = {key: passage for key, passage in PASSAGES.items() if key != "f"}
    drops = load_release(name, without_seed, CONFIG).counts.drops
    assert drops == {f"{name}: seed or positive missing": 1}
    assert load_release(name, {}, CONFIG).counts.drops.total() == 4


def test_the_title_counts_too(folder: Path) -> None:
    here = PASSAGES | {"e": replace(PASSAGES["e"], title="another", source="elsewhere")}
    assert [query.id for query in load_release(str(folder), here, CONFIG).queries] == ["q0", "q2", "q3"]
    moved = PASSAGES | {"e": replace(PASSAGES["e"], source="elsewhere")}
    assert len(load_release(str(folder), moved, CONFIG).queries) == 4
    assert content_hash(Passage("x", "ab", "c")) != content_hash(Passage("x", "a", "bc"))


def test_nothing_of_a_held_out_neighbourhood(folder: Path) -> None:
    """Neither as the seed nor as the positive of a row for training; what is held out anyway may stay."""
    assert heldout_seeds(str(folder)) == {"c"}
    for held, kept in (("a", ["q1", "q2", "q3"]), ("e", ["q0", "q2", "q3"]), ("c", ["q0", "q1", "q2"]), ("d", None)):
        released = load_release(str(folder), PASSAGES, CONFIG, [held])
        assert [query.id for query in released.queries] == (kept or list(JUDGED))
        assert released.counts.drops == ({f"{folder}: of a held-out neighbourhood": 1} if kept else {})


def test_any_number_of_rows(tmp_path: Path) -> None:
    write_release([], tmp_path / FILE)
    released = load_release(str(tmp_path / FILE), PASSAGES, CONFIG)
    assert (released.queries, released.labels, released.examples(CONFIG)) == ([], {}, [])
    assert heldout_seeds(str(tmp_path)) == set()
    many = [{**row("q0"), "query_id": f"q{number}"} for number in range(3000)]
    write_release(many, tmp_path / FILE)
    assert len(load_release(str(tmp_path), PASSAGES, CONFIG).queries) == 3000
    assert pq.read_schema(tmp_path / FILE).equals(SCHEMA)


def test_equal_rows_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_release([row("q0")], tmp_path / name / FILE)
    write_release([row("q1")], tmp_path / "three" / FILE)
    one, two, three = (release_identity(str(tmp_path / name)) for name in ("one", "two", "three"))
    assert one == two != three


def test_no_such_release(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"released rows 'nowhere': nowhere does not exist; shipped"):
        release_path("nowhere")
    (tmp_path / FILE).write_text("no parquet")
    with pytest.raises(RunError, match="is no release"):
        load_release(str(tmp_path), PASSAGES, CONFIG)
    assert all(release_path(name).is_file() for name in shipped())


def test_most_of_the_shipped_rows_fit_the_documentation_of_the_running_python() -> None:
    rows = list(read_release(STDLIB))
    assert len(rows) > 2000
    assert all(row["seed_id"] in [entry["passage_id"] for entry in row["candidates"]] for row in rows)
    released = load_release()
    assert len(released.queries) + released.counts.drops.total() == len(rows)
    assert len(released.queries) > 0.7 * len(rows)  # all of them where the rows were made
    examples = released.examples(SelectConfig())
    assert len(examples) > 0.8 * len(released.queries)
    held = {query.id for query in released.queries if query.split == "heldout"}
    assert not held & {example.query_id for example in examples}


@pytest.mark.slow
def test_no_question_of_the_shipped_log_is_near_a_test_question() -> None:
    from gecko.encoder import load_encoder
    from gecko.evaluation.builtin import stdlib_questions

    log = [row["query"] for row in read_release(STDLIB_LOG)]
    asked = [text for _, text in stdlib_questions().queries]
    assert len(log) >= 300
    encoder = load_encoder("minilm")
    cosines = encoder.queries(log) @ encoder.queries(asked).T
    assert cosines.max() < 0.71  # 0.7 is what the log was made with; processors differ in the third decimal
    words = [[set(re.findall(r"\w+", text.lower())) for text in texts] for texts in (log, asked)]
    assert max(len(one & other) / len(one | other) for one in words[0] for other in words[1]) < 0.6


def test_the_shipped_rows_load_alike_however_a_run_cuts_its_corpus() -> None:
    from gecko.corpus.chunk import load_tokenizer
    from gecko.encoder.spec import resolve_model

    tokenizer, counts = load_tokenizer(resolve_model("minilm")), Counts()
    plain = list(ingest(CorpusConfig(), Counts()))
    assert list(ingest(CorpusConfig(chunk_tokens="read"), counts, tokenizer=tokenizer, read=254)) == plain
    assert counts.notes["read in part"] > 100  # counted, not cut
    before, after = (load_release(passages=passages) for passages in (None, {one.id: one for one in plain}))
    assert before.queries == after.queries and before.labels == after.labels
    assert before.examples(SelectConfig()) == after.examples(SelectConfig())
