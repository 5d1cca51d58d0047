"""A run that adds released rows to its own."""

import inspect
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, HfApi, ModelCard
from sentence_transformers import SentenceTransformer

from gecko.config.load import change_config, load_config
from gecko.config.run import RunConfig
from gecko.core.errors import ConfigError, PublishError, RunError
from gecko.core.progress import Silent
from gecko.core.records import Example, Query, Score
from gecko.encoder import load_encoder
from gecko.evaluation import evaluate_retrieval, load_beir
from gecko.fret.release import COLUMNS, FILE, load_release, read_release, write_release
from gecko.prompts import load_prompt
from gecko.report.cards import dataset_card, licenses, model_card, public_name
from gecko.report.closing import closing_lines, summary
from gecko.report.table import origins
from gecko.run.folder import Run
from gecko.run.manifest import Shard
from gecko.stages.choose import chosen_format
from gecko.stages.dataset import released_rows
from gecko.stages.publish import push, write_cards
from gecko.stages.runner import Pipeline, distill

from ..conftest import write_corpus

SHARED = (
    "generate.batch=8",
    "generate.neighbourhood=4",
    "generate.min_seed_chars=10",
    "generate.heldout=0.25",
    "mine.n=5",
    "relabel.shard_passages=8",
    "select.min_rc=null",
    "train.epochs=1",
    "train.min_steps=0",
    "train.batch=16",
    "train.max_tokens=32",
    'train.formats=["native"]',
    "evaluate.resamples=100",
    "check.enabled=false",
)


@pytest.fixture(scope="module")
def corpus(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", words)
    questions = [{"_id": f"t{number}", "text": f"passage {number} about {words[number]}"} for number in range(12)]
    (path.parent / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (path.parent / "qrels").mkdir()
    judged = "".join(f"t{number}\tp{number}\t1\n" for number in range(12))
    (path.parent / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return path


def settings(corpus: Path, model: Path, *more: str):
    base = {"corpus": {"sources": [str(corpus)]}, "llm": "fake", "backbone": str(model)}
    return load_config(None, (*SHARED, *more), base)


@pytest.fixture(scope="module")
def release(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    with Run(folder / "run", settings(corpus, tiny_model, "generate.queries=40", "seed=5")) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("select")
        write_release(released_rows(run), folder / FILE)
        released = load_release(str(folder), pipeline.by_id, run.config.select)
        # What is read from it is what the run itself selects.
        assert released.queries == run.read("generate", Query)
        assert released.labels.keys() == pipeline.labels.keys()
        for identifier, ranked in pipeline.labels.items():
            assert [label.passage_id for label in released.labels[identifier]] == [one.passage_id for one in ranked]
        assert released.examples(run.config.select, 5) == run.read("select", Example)
    return folder


@pytest.fixture(scope="module")
def both(corpus: Path, tiny_model: Path, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with released rows."""
    folder = tmp_path_factory.mktemp("both") / "run"
    with Run(folder, with_released(corpus, tiny_model, release)) as run:
        distill(run)
    return folder


def with_released(corpus: Path, model: Path, release: Path, *more: str):
    test_set = f'evaluate.sets=["{corpus.parent}"]'
    return settings(corpus, model, "generate.queries=16", f'select.released=["{release}"]', test_set, *more)


def test_a_budget_that_is_used_up_leaves_the_released_rows(
    corpus: Path, tiny_model: Path, release: Path, tmp_path: Path
) -> None:
    class Told(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    said: list[str] = []
    small = ("generate.queries=null", "budget=40tok")
    with Run(tmp_path / "run", with_released(corpus, tiny_model, release, *small)) as run:
        pipeline = Pipeline(run, Told())
        pipeline.ingest()
        pipeline.through("select")
        assert len(run.read("generate", Query)) == 4
        assert {score.query_id for score in run.read("relabel", Score)} == {q.id for q in run.read("generate", Query)}
        assert len(run.read("select", Example)) > 4
    assert any("budget 40tok is too small" in line and "released" in line for line in said)
    with (
        Run(tmp_path / "alone", settings(corpus, tiny_model, *small)) as run,
        pytest.raises(ConfigError, match="too small.*raise the budget"),
    ):
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("select")


def test_rows_of_both(both: Path, release: Path) -> None:
    with Run(both) as run:
        config = run.config
        pipeline = Pipeline(run)
        result = pipeline.evaluate()
        own = run.read("generate", Query)
        rows = run.read("select", Example)
        selected = run.finished("select")
        seconds = sum(run.finished(stage).seconds for stage in ("generate", "relabel"))
        assert result["agreement"]["queries"] == len(pipeline.heldout)
    released = load_release(str(release), pipeline.by_id, config.select)
    mine, theirs = {query.id for query in own}, {query.id for query in released.queries}
    assert not mine & theirs
    ours, added = origins(selected)
    assert ours == sum(row.query_id in mine for row in rows) > 0
    assert added == {str(release): sum(row.query_id in theirs for row in rows)}
    assert ours + added[str(release)] == len(rows)
    # No passage is held out on one side and taught on the other.
    held_here = {query.seed_id for query in own if query.split == "heldout"}
    held_there = {query.seed_id for query in released.queries if query.split == "heldout"}
    assert held_here and held_there
    assert not held_there & {query.seed_id for query in own if query.split == "train"}
    for row in rows:
        assert row.seed_id not in held_here | held_there
        if row.query_id in theirs:
            assert row.positive.id not in held_here
    assert selected.drops[f"{release}: of a held-out neighbourhood"] > 0
    assert {query.id for query in pipeline.heldout} & mine
    assert {query.id for query in pipeline.heldout} & theirs
    said = closing_lines(summary(result | {"sets": measured()}, ours, seconds, added))
    [of_rows] = [line.text for line in said if line.label == "Rows"]
    assert of_rows.startswith(f"{len(rows) - ours} shipped ({release}), {ours} made here in ")
    page = (both / "report.html").read_text()
    assert f"{len(rows)} training rows, {len(rows) - ours} of them from" in page


def measured() -> dict[str, object]:
    one = {"mean": 0.5, "delta": 0.1, "ci95": [0.05, 0.2]}
    return {"set": {"queries": 5, "measures": {"ndcg@10": {"start": one, "native": one}}}}


def test_quality_by_width(both: Path, corpus: Path) -> None:
    result = json.loads((both / "evaluate" / "results.json").read_text())
    (found,) = result["sets"].values()
    assert [entry["dim"] for entry in found["widths"]] == [32, 16, 8]
    data = [load_beir(str(corpus.parent))]
    for label, spec in (
        ("start", json.loads((both / "config.json").read_text())["backbone"]),
        ("native", both / "model"),
    ):
        assert found["widths"][0][label] == pytest.approx(found["measures"]["ndcg@10"][label]["mean"])
        cut = evaluate_retrieval(data, {label: load_encoder(str(spec)).truncated(8)}, bm25=False)
        assert found["widths"][2][label] == pytest.approx(cut[data[0].name].mean(label))
    assert found["widths"][2]["native"] != found["widths"][0]["native"]
    assert "Quality of shortened vectors" in (both / "report.html").read_text()
    assert not (both / ".vectors").exists()


def test_gain_by_rows(both: Path, corpus: Path, tiny_model: Path, release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(both, folder)
    title = "by the number of training rows"
    assert title not in (folder / "report.html").read_text()
    with Run(folder, with_released(corpus, tiny_model, release, "generate.queries=24")) as run:
        first = json.loads((both / "evaluate" / "results.json").read_text())["rows"]
        second = distill(run)["rows"]
    page = (folder / "report.html").read_text()
    assert first < second
    assert title in page
    assert f"{first} rows: " in page and f"{second} rows: " in page
    other = with_released(corpus, tiny_model, release, "generate.queries=24", "train.epochs=2")
    with Run(folder, other, force=True) as run:
        distill(run)
    assert title not in (folder / "report.html").read_text()  # another recipe is not of the same curve


def test_the_same_rows_are_not_taken_twice(corpus: Path, tiny_model: Path, tmp_path: Path, release: Path) -> None:
    more = ("generate.queries=16", "seed=5", f'select.released=["{release}", "{release / FILE}"]')
    with Run(tmp_path / "run", settings(corpus, tiny_model, *more)) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("select")
        rows = run.read("select", Example)
        drops = run.finished("select").drops
    assert len({row.query_id for row in rows}) == len(rows)
    assert drops[f"{release / FILE}: known already"] > 0


def test_an_empty_release_changes_no_row(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    write_release([], folder / FILE)
    with Run(tmp_path / "run", settings(corpus, tiny_model, "generate.queries=16")) as run:
        alone = Pipeline(run)
        alone.ingest()
        alone.through("select")
        without = run.finished("select")
    config = settings(corpus, tiny_model, "generate.queries=16", f'select.released=["{folder}"]')
    with Run(tmp_path / "run", config, force=True) as run:
        empty = Pipeline(run)
        empty.ingest()
        empty.through("select")
        assert run.finished("select").fingerprint != without.fingerprint
        assert run.finished("select").identity == without.identity  # equal rows: what was trained stays


def test_the_packager_takes_each_query_once(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gecko.stages.publish import main

    main([str(release / "run"), str(release / "run"), "-o", str(tmp_path / "out")])
    assert (tmp_path / "out" / FILE).read_bytes() == (release / FILE).read_bytes()
    with Run(release / "run") as run:
        assert f"{len(released_rows(run)):,} rows" in capsys.readouterr().out


def test_a_release_grows_by_another_run(
    release: Path, corpus: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file that was given away is enough: the run that made it need not be there."""
    from gecko.stages.publish import main

    with Run(tmp_path / "more", settings(corpus, tiny_model, "generate.queries=24", "seed=6")) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("relabel")
        added = released_rows(run)
    first = list(read_release(str(release)))
    main([str(release), str(tmp_path / "more"), "-o", str(tmp_path / "out")])
    grown = list(read_release(str(tmp_path / "out")))
    held = {row["seed_id"] for row in [*first, *added] if row["split"] == "heldout"}
    expected = [row for row in [*first, *added] if row["split"] == "heldout" or row["seed_id"] not in held]
    assert [row["query_id"] for row in grown] == [row["query_id"] for row in expected]
    left = len(first) + len(added) - len(grown)
    assert left > 0 and f"{left} rows were left out" in capsys.readouterr().out
    with pytest.raises(RunError, match="add a run"):
        main([str(release), "-o", str(tmp_path / "out")])


def test_a_run_that_was_stopped_gives_the_queries_that_are_judged_in_full(release: Path, tmp_path: Path) -> None:
    from gecko.stages.publish import main

    shutil.copytree(release / "run", tmp_path / "run")
    file = tmp_path / "run" / "relabel" / "manifest.json"
    manifest = json.loads(file.read_text())
    gone = manifest["shards"].pop()
    file.write_text(json.dumps(manifest | {"done": False}))
    with Run(release / "run") as run:
        open_pairs = {score.query_id for score in run.read_shard(run.path / "relabel", Shard(**gone), Score)}
        expected = [row["query_id"] for row in released_rows(run) if row["query_id"] not in open_pairs]
    assert expected
    main([str(tmp_path / "run"), "-o", str(tmp_path / "out")])
    assert [row["query_id"] for row in read_release(str(tmp_path / "out"))] == expected
    manifest["shards"] = []
    file.write_text(json.dumps(manifest))
    with Run(tmp_path / "run") as run, pytest.raises(RunError, match="has made nothing yet; run: gecko relabel"):
        released_rows(run)


# --- cards and a hub


def test_the_dataset_has_a_card_that_a_hub_can_read(both: Path) -> None:
    folder = both / "dataset" / "fret"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", FILE]
    card = DatasetCard((folder / "README.md").read_text())
    assert card.data.license == "unknown"
    assert card.data.size_categories == "n<1K"
    assert card.data.to_dict()["configs"] == [{"config_name": "default", "data_files": FILE}]
    with Run(both) as run:
        rows = released_rows(run)
        prompts = {load_prompt(name).hash for name in ("generate", "relevance")}
    assert f"| queries | {len(rows)}, " in card.text
    for value in (*COLUMNS, *prompts, rows[0]["prompt_hash"], "fake-1", "corpus.jsonl", "temperature 0.5"):
        assert value in card.text
    assert str(both) not in card.content and "/tmp" not in card.content
    assert json.loads(card.text.split("```json")[1].split("```")[0])["query_id"] == rows[0]["query_id"]


def test_the_model_has_a_card_that_a_hub_can_read(both: Path) -> None:
    with Run(both) as run:
        result = {"form": "native", "formats": ["native"], "sets": measured(), "agreement": None}
        text = model_card(Pipeline(run), "native", result)
        before = (both / "model" / "README.md").read_text()
        distill(run)
    assert (both / "model" / "README.md").read_text() == before  # and the model beside it is not copied again
    card = ModelCard(text)
    assert card.data.library_name == "sentence-transformers"
    assert [(one.dataset_name, one.metric_type, one.metric_value) for one in card.data.eval_results] == [
        ("set", "ndcg_at_10", 0.5)
    ]
    assert "| set (5) | student, native format (kept) | 50.0 | +10.0 [+5.0, +20.0] | – |" in text
    own = ModelCard(before)
    assert own.data.to_dict()["pipeline_tag"] == "sentence-similarity"
    assert "agreement with the teacher" in own.text
    assert "/tmp" not in before and str(both) not in before
    assert SentenceTransformer(str(both / "model"), device="cpu").encode("a cat").shape == (32,)


def test_licences_that_are_known(corpus: Path, tiny_model: Path) -> None:
    default = load_config(None, (), {"corpus": {"sources": ["stdlib"]}})
    assert licenses(default) == {"corpus": "psf-2.0", "teacher": "apache-2.0", "start model": "apache-2.0"}
    unknown = settings(corpus, tiny_model, "card.teacher_license=mit")
    assert licenses(unknown) == {"corpus": "unknown", "teacher": "mit", "start model": "unknown"}
    card = DatasetCard(dataset_card([], default, {}))
    assert (card.data.license, card.data.to_dict()["license_name"]) == ("other", "psf-2.0")
    assert public_name("hf:Qwen/Some-Model") == "hf:Qwen/Some-Model"
    assert public_name("gguf:/home/me/secret/x.gguf") == "gguf:x.gguf"
    assert public_name(str(corpus)) == "corpus.jsonl"


class Hub:
    """Takes what huggingface_hub.HfApi takes."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[tuple[str, dict[str, object]]] = []
        self.fails = fails

    def create_repo(self, repo_id: str, **options: object) -> str:
        inspect.signature(HfApi.create_repo).bind(self, repo_id, **options)
        if self.fails:
            raise OSError(self.fails)
        self.calls.append(("create", {"repo_id": repo_id, **options}))
        return repo_id

    def upload_folder(self, **options: object) -> str:
        inspect.signature(HfApi.upload_folder).bind(self, **options)
        files = sorted(
            str(path.relative_to(options["folder_path"])) for path in Path(options["folder_path"]).rglob("*")
        )
        self.calls.append(("upload", {**options, "files": files}))
        return "https://example.org/commit"


def test_push(both: Path) -> None:
    hub, said = Hub(), []
    with Run(both) as run:
        pipeline = Pipeline(run)
        push(pipeline, "me/mine", dry_run=True, api=hub, say=said.append)
        assert hub.calls == []
        listed = {line.split()[-1] for line in said[:-1]}
        assert {"README.md", "model.safetensors", "modules.json"} <= listed
        assert "would go to me/mine" in said[-1]
        push(pipeline, "me/mine", private=True, api=hub, say=said.append)
        push(pipeline, "me/rows", "dataset", api=hub, say=said.append)
    made, sent, made_rows, sent_rows = hub.calls
    assert made == ("create", {"repo_id": "me/mine", "repo_type": "model", "private": True, "exist_ok": True})
    assert (sent[1]["repo_id"], sent[1]["repo_type"]) == ("me/mine", "model")
    assert listed == {file for file in sent[1]["files"] if (both / "model" / file).is_file()}
    assert (made_rows[1]["repo_type"], made_rows[1]["private"]) == ("dataset", False)
    assert sent_rows[1]["files"] == ["README.md", FILE]


def test_a_model_of_other_rows_is_not_pushed(both: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(both, folder)
    with Run(folder) as run:
        config = change_config(run.config, None, ["select.negative=none"])
    with Run(folder, config, force=True) as run:
        pipeline = Pipeline(run)
        pipeline.through("select")
        with pytest.raises(PublishError, match="was made from an earlier select.* run: gecko train .* gecko evaluate "):
            push(pipeline, "me/mine", dry_run=True, api=Hub(), say=lambda _: None)
        push(pipeline, "me/rows", "dataset", dry_run=True, api=Hub(), say=lambda _: None)
        pipeline.evaluate()
        push(pipeline, "me/mine", dry_run=True, api=Hub(), say=lambda _: None)
        manifest = run.finished("train-native")
        manifest.done = False  # a training that was stopped, over the model of an earlier one
        run.save(manifest)
        write_cards(pipeline)
        with pytest.raises(RunError, match="stage train-native is not finished; run: gecko train"):
            push(pipeline, "me/mine", dry_run=True, api=Hub(), say=lambda _: None)


def test_a_hub_that_refuses(both: Path) -> None:
    with Run(both) as run:
        pipeline = Pipeline(run)
        with pytest.raises(
            PublishError, match=r"me/mine: the hub refused: 401 for \(hidden\).*hf auth login"
        ) as caught:
            push(pipeline, "me/mine", api=Hub("401 for hf_abcDEF123456"), say=lambda _: None)
        assert "hf_abc" not in str(caught.value)
        with pytest.raises(PublishError, match="'no such name!' is no name of a repository"):
            push(pipeline, "no such name!", api=Hub(), say=lambda _: None)


def test_a_card_tells_no_address_and_no_query(corpus: Path) -> None:
    for spec, shown in {
        "sqlite:////home/alice/acme.db#SELECT body AS text FROM mail": "an SQL query (sqlite)",
        "postgresql://alice@db.acme.com/crm#SELECT note AS text FROM v": "an SQL query (postgresql)",
        "openai:http://10.0.0.5:8000/v1#qwen": "openai:qwen",
        "drafts/secret/*.md": "*.md",
        "hf:owner/name": "hf:owner/name",
        "minilm": "minilm",
    }.items():
        assert public_name(spec) == shown


def test_the_models_card_names_what_it_was_trained_from_and_how(both: Path, tiny_model: Path) -> None:
    with Run(both) as run:
        pipeline = Pipeline(run)
        text = model_card(pipeline, chosen_format(pipeline), None)
        trained = json.loads((both / f"train-{chosen_format(pipeline)}" / "training.json").read_text())
        assert f"{trained['steps']:,} steps" in text
        sets = [{"name": "nli", "kind": "snli", "source": "hf:stanfordnlp/snli"}]
        more = {"student": "hf:me/stage-one", "lexical": {"sentences": 0}, "mixture": {"sets": sets}}
        values = {**run.config.model_dump(), **more}
        pipeline.config = RunConfig.model_validate(values)
        other = model_card(pipeline, chosen_format(pipeline), None)
    card = ModelCard(other)
    assert card.data.base_model == "me/stage-one"
    assert "distilled into\nhf:me/stage-one" in other
    assert "**Mixed with**: nli (snli)" in other
    assert "| nli | unknown |" in other
