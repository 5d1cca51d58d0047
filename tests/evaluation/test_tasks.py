import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from gecko.cli.main import app
from gecko.core.errors import EvaluationError
from gecko.encoder import Encoder, load_encoder
from gecko.evaluation import sets, task_scores, tasks
from gecko.evaluation.cache import KeptEmbeddings
from gecko.evaluation.evaluate import dense_run
from gecko.evaluation.metrics import bootstrap_ci, per_query
from gecko.evaluation.task_scores import Means, Measured, Pairs
from gecko.evaluation.tasks import Skipped

ANIMALS, THINGS = ["cat", "dog", "fish", "bird"], ["house", "tree", "river", "car"]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> KeptEmbeddings:
    return KeptEmbeddings(load_encoder(str(tiny_model), bf16=False), None)


@pytest.fixture(scope="module")
def other(tiny_model: Path) -> KeptEmbeddings:
    return KeptEmbeddings(load_encoder(str(tiny_model), bf16=False).truncated(6), None)


def write(folder: Path, **splits: list[dict[str, Any]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


def pairs(count: int = 30) -> list[tuple[str, str]]:
    generator = random.Random(0)
    words = [*ANIMALS, *THINGS, "red", "big", "runs", "sleeps"]
    return [(" ".join(generator.choices(words, k=3)), " ".join(generator.choices(words, k=3))) for _ in range(count)]


def cosines(model: KeptEmbeddings, left: list[str], right: list[str]) -> np.ndarray:
    return (model.symmetric(left, "") * model.symmetric(right, "")).sum(axis=1)


def labelled(count: int) -> list[dict[str, str]]:
    generator = random.Random(1)
    return [
        {
            "text": f"the {generator.choice(words)} {generator.choice(['runs', 'sleeps', 'old', 'small'])}",
            "label": label,
        }
        for _ in range(count)
        for label, words in (("animal", ANIMALS), ("thing", THINGS))
    ]


def test_similarity_is_the_rank_correlation_of_cosines(model: KeptEmbeddings, tmp_path: Path) -> None:
    truth = [round(random.Random(place).random() * 5, 1) for place in range(30)]
    # a label beside the score is not read
    rows = [
        {"sentence1": a, "sentence2": b, "score": s, "label": "x"} for (a, b), s in zip(pairs(), truth, strict=True)
    ]
    data = tasks.load_folder(write(tmp_path / "near", dev=rows) + "@dev")
    assert (data.kind, data.metric, data.prompt, data.splits) == (
        "STS",
        "cosine_spearman",
        "semantic similarity",
        ("dev",),
    )
    got = task_scores.measure(data, model)
    expected = cosines(model, [a for a, _ in pairs()], [b for _, b in pairs()])
    assert got.score == pytest.approx(spearmanr(expected, truth).statistic)
    assert task_scores.items(got) == 30
    low, high = task_scores.interval(got, got, 50) or (1.0, 1.0)
    assert low == high == 0


def test_pair_classification_is_the_average_precision_of_cosines(
    model: KeptEmbeddings, other: KeptEmbeddings, tmp_path: Path
) -> None:
    truth = [place % 3 == 0 for place in range(30)]
    rows = [{"sentence1": a, "sentence2": b, "label": str(int(y))} for (a, b), y in zip(pairs(), truth, strict=True)]
    data = tasks.load_folder(write(tmp_path / "same", test=rows))
    got, less = task_scores.measure(data, model), task_scores.measure(data, other)
    expected = cosines(model, [a for a, _ in pairs()], [b for _, b in pairs()])
    assert got.score == pytest.approx(average_precision_score(truth, expected))
    low, high = task_scores.interval(got, less, 200) or (0.0, 0.0)
    assert low < got.score - less.score < high


def test_classification_and_clustering_have_evidence_whose_mean_is_the_score(
    model: KeptEmbeddings, tmp_path: Path
) -> None:
    classified = tasks.load_folder(write(tmp_path / "kinds", train=labelled(20), test=labelled(12)))
    clustered = tasks.load_folder(write(tmp_path / "groups", test=labelled(20)))
    assert (classified.kind, clustered.kind) == ("Classification", "Clustering")
    for data, count in ((classified, 24), (clustered, 10)):
        got, again = task_scores.measure(data, model), task_scores.measure(data, model)
        assert got.evidence is not None
        assert got.score == again.score == pytest.approx(float(got.evidence[0].values.mean()))
        assert 0 < got.score <= 1
        assert task_scores.items(got) == count


def test_reranking_is_the_mean_average_precision_of_each_list(model: KeptEmbeddings, tmp_path: Path) -> None:
    rows = [
        {"query": "the red cat", "positive": ["a cat sleeps"], "negative": ["old house", "fast car", "big tree"]},
        {"query": "river", "positive": ["blue river", "fish"], "negative": ["old house", "car", "tree runs"]},
    ]
    got = task_scores.measure(tasks.load_folder(write(tmp_path / "lists", test=rows)), model)
    run, qrels = {}, {}
    for number, row in enumerate(rows):
        texts = [*row["positive"], *row["negative"]]
        asked = model.queries([row["query"]])[0]
        found = model.passages([task_scores.Text("", "", text) for text in texts]) @ asked
        run[str(number)] = dict(zip(texts, found.tolist(), strict=True))
        qrels[str(number)] = dict.fromkeys(row["positive"], 1)
    assert got.score == pytest.approx(per_query(run, qrels, ("map@1000",))["map@1000"].mean(), abs=1e-5)


def test_the_global_random_state_is_left_alone(model: KeptEmbeddings, tmp_path: Path) -> None:
    random.seed(5)
    np.random.seed(5)
    expected = random.Random(5).random(), np.random.RandomState(5).random()
    task_scores.measure(tasks.load_folder(write(tmp_path / "groups", test=labelled(5))), model)
    assert (random.random(), np.random.random()) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence1": "a", "sentence2": "b", "score": "high"}, r'test\.jsonl:1: "score" must be a number'),
        ({"sentence1": "a", "sentence2": "b", "label": 2}, r'test\.jsonl:1: "label" must be 0 or 1, not 2'),
        ({"text": None, "label": "x"}, r'test\.jsonl:1: "text" must be a string'),
        ({"query": "q", "positive": [], "negative": []}, r'"positive" must be a list of texts'),
        ({"premise": "a"}, r"rows with premise are of no known kind; known: sentence1, sentence2, score: sts"),
    ],
)
def test_what_cannot_be_used_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=message):
        tasks.load_folder(write(tmp_path / "bad", test=[row]))


def test_a_missing_split_lists_those_present(tmp_path: Path) -> None:
    folder = write(tmp_path / "kinds", train=labelled(2), dev=labelled(2))
    with pytest.raises(EvaluationError, match="has no split 'test'; it has: dev, train"):
        tasks.load_folder(folder)


def test_without_mteb_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(EvaluationError, match=r"pip install 'gecko-embed\[mteb\]'"):
        tasks.load_folder(write(tmp_path / "groups", test=labelled(2)))


def test_tasks_by_name(model: KeptEmbeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    import mteb
    from datasets import Dataset, DatasetDict

    def similarity(self: Any, **_: Any) -> None:
        left, right = zip(*pairs(), strict=True)
        rows = {"sentence1": list(left), "sentence2": list(right), "score": [float(place) for place in range(30)]}
        self.dataset, self.data_loaded = DatasetDict({"test": Dataset.from_dict(rows)}), True

    monkeypatch.setattr(type(mteb.get_task("STSBenchmark")), "load_data", similarity)
    (data,) = tasks.load_named("mteb:STSBenchmark")
    assert isinstance(data, tasks.TaskSet)
    assert data.prompt == "semantic similarity"
    got = task_scores.measure(data, model)
    expected = cosines(model, [a for a, _ in pairs()], [b for _, b in pairs()])
    assert got.score == pytest.approx(spearmanr(expected, range(30)).statistic)

    with pytest.raises(EvaluationError, match="neither a task nor a benchmark.*STSBenchmark"):
        tasks.load_named("mteb:STSBenchmrk")


def test_a_retrieval_task_by_name_is_a_set_like_any_other(
    model: KeptEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mteb
    from datasets import Dataset

    def loaded(self: Any, **_: Any) -> None:
        corpus = [{"id": f"d{n}", "title": "", "text": f"the {word} runs"} for n, word in enumerate(ANIMALS)]
        queries = [{"id": "d0", "text": "the cat runs"}, {"id": "d1", "text": "the dog runs"}, {"id": "u", "text": "x"}]
        split = {
            "corpus": Dataset.from_list(corpus),
            "queries": Dataset.from_list(queries),
            "relevant_docs": {"d0": {"d0": 1}, "d1": {"d2": 2, "gone": 1}},
            "top_ranked": None,
        }
        self.dataset, self.data_loaded = {"default": {"test": split}}, True

    for name in ("SciFact", "ArguAna"):
        monkeypatch.setattr(type(mteb.get_task(name)), "load_data", loaded)
    (plain,), (argument,) = tasks.load_named("mteb:SciFact"), tasks.load_named("mteb:ArguAna")
    assert isinstance(plain, tasks.RetrievalSet)
    assert isinstance(argument, tasks.RetrievalSet)
    assert (plain.task, [key for key, _ in plain.queries], plain.unknown_documents) == (
        "fact checking",
        ["d0", "d1"],
        1,
    )
    assert plain.qrels == {"d0": {"d0": 1}, "d1": {"d2": 2, "gone": 1}}
    assert next(iter(dense_run(plain, model, 4)["d0"])) == "d0"
    own = dense_run(argument, model, 3)
    assert all(key not in row and len(row) == 3 for key, row in own.items())


def test_data_that_cannot_be_loaded_is_skipped_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    import mteb

    def refuse(self: Any, **_: Any) -> None:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(type(mteb.get_task("SciFact")), "load_data", refuse)
    assert tasks.load_named("mteb:SciFact") == [Skipped("SciFact", "its data cannot be loaded: Couldn't reach the hub")]
    loaded = sets.load_sets(["mteb:SciFact"])
    assert sets.evaluate_sets(loaded, {}) == {
        "sets": {},
        "skipped": {"SciFact": "its data cannot be loaded: Couldn't reach the hub"},
    }


def test_a_task_that_fails_loses_nothing(
    model: KeptEmbeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = write(tmp_path / "near", test=[{"sentence1": a, "sentence2": b, "score": len(a)} for a, b in pairs()])
    loaded = sets.load_sets([near, write(tmp_path / "groups", test=labelled(5))])

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no clusters today")

    monkeypatch.setattr(loaded.tasks[1].task, "_evaluate_subset", fail)
    result = sets.evaluate_sets(loaded, {"model": model})
    assert list(result["tasks"]) == ["near"]
    assert result["skipped"] == {"groups": "mteb cannot measure groups: no clusters today"}
    with pytest.raises(EvaluationError, match="no clusters today"):
        sets.evaluate_sets(sets.Sets([], loaded.tasks[1:], []), {"model": model})


def test_on_the_command_line(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GECKO_CACHE", str(tmp_path / "cache"))
    near = write(tmp_path / "near", test=[{"sentence1": a, "sentence2": b, "score": len(a)} for a, b in pairs()])
    arguments = ["eval", str(tiny_model), near, "--baseline", str(tiny_model), "--dim", "8"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)["tasks"]["near"]
    assert row["ci95"][0] <= row["delta"] <= row["ci95"][1] and row["delta"] != 0
    assert len(list((tmp_path / "cache" / "embeddings").glob("*.npy"))) == 2  # both widths are cut from the same two
    monkeypatch.setattr(Encoder, "symmetric", None)
    table = CliRunner().invoke(app, arguments)
    assert table.exit_code == 0, table.output
    assert "cosine_spearman" in table.stdout and f"{100 * row['score']:.1f}" in table.stdout


def test_intervals() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = generator.random(200), generator.random(200)
    got = task_scores.interval(Measured(0, [Means(ours)]), Measured(0, [Means(theirs)]), 500, 3)
    assert got == pytest.approx(bootstrap_ci(ours - theirs, 500, 3)[1:])
    truth = generator.random(60)
    good, bad = (Measured(0, [Pairs(values, truth, "spearman")]) for values in (truth, generator.random(60)))
    low, high = task_scores.interval(good, bad, 300) or (0.0, 0.0)
    assert 0.5 < low < high < 1.5
    alone = Pairs(truth[:2], np.array([0.0, 1.0]), "average precision")  # half of its resamples have one class
    assert task_scores.interval(Measured(0, [alone]), Measured(0, [alone]), 100) == (0, 0)
    assert task_scores.interval(Measured(0, None), good) is None


def test_everything_in_one_table(model: KeptEmbeddings, other: KeptEmbeddings, tmp_path: Path) -> None:
    near = write(tmp_path / "near", test=[{"sentence1": a, "sentence2": b, "score": len(a)} for a, b in pairs()])
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    write(beir, corpus=[{"_id": str(n), "text": word} for n, word in enumerate(ANIMALS)])
    write(beir, queries=[{"_id": str(n), "text": word} for n, word in enumerate(ANIMALS)])
    (beir / "qrels" / "test.tsv").write_text("".join(f"{n}\t{n}\t1\n" for n in range(4)))
    loaded = sets.load_sets([str(beir), near], None, ["near=search result", "beir=fact checking"])
    assert (loaded.retrieval[0].task, loaded.tasks[0].prompt) == ("fact checking", "search result")
    result = json.loads(json.dumps(sets.evaluate_sets(loaded, {"model": model, "baseline": other}, resamples=100)))
    assert list(result["sets"]["beir"])[:6] == ["queries", "ndcg@10", "baseline", "delta", "ci95", "bm25"]
    row = result["tasks"]["near"]
    assert row["delta"] == pytest.approx(row["score"] - row["baseline"])
    assert row["ci95"][0] <= row["ci95"][1]
    table = sets.eval_table(result)
    assert [row[0] for row in table] == ["set", "beir", "near"]
    assert all(len(row) == len(table[0]) for row in table)
    for line, score in zip(table[1:], (result["sets"]["beir"]["ndcg@10"], row["score"]), strict=True):
        assert line[3] == f"{100 * score:.1f}"
    with pytest.raises(EvaluationError, match="the sets are: beir, near"):
        sets.load_sets([str(beir), near], None, ["far=x"])
    with pytest.raises(EvaluationError, match="several test sets are named near"):
        sets.load_sets([near, near])
