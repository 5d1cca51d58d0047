"""Runs whose queries are asked to differ, and are rated: drawn the same however the run goes, and paid for once."""

from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gecko.cli import app
from gecko.config import RunConfig, load_config
from gecko.errors import ConfigError
from gecko.fret.variables import draw
from gecko.llm.fake import FakeLM
from gecko.pipeline import Pipeline
from gecko.records import Example, Query, Score
from gecko.report import write_report
from gecko.report.inspect import statistics
from gecko.store import Run, digest

from .conftest import write_corpus

VARIABLES = (
    "prompts.generate=generate_varied",
    "generate.variables.language={en=2, de=1}",
    'generate.variables.persona=["a nurse", "a pilot"]',
)
RATED = ("rate.llm=teacher",)


@pytest.fixture(scope="module")
def corpus(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", words)


def settings(corpus: Path, model: Path, *more: str) -> RunConfig:
    overrides = (
        "generate.queries=24",
        "generate.batch=5",
        "generate.neighbourhood=4",
        "generate.min_seed_chars=10",
        "mine.n=6",
        "relabel.shard_passages=7",
        "select.min_rc=null",
        "check.enabled=false",
        *more,
    )
    base = {"corpus": {"sources": [str(corpus)]}, "llm": "fake", "backbone": str(model)}
    return load_config(None, overrides, base)


@pytest.fixture
def rated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The pairs that a rater was asked about: query and passage. It rates them from -4 to 4."""
    asked: list[tuple[str, str]] = []
    kept = FakeLM.label_logprobs

    def recorded(self, prompt, groups):
        if prompt.name != "rating of queries":
            return kept(self, prompt, groups)
        asked.extend((query, group.passage) for group in groups for query in group.queries)
        return [[(0.0, 4.0 - int(digest(query), 16) % 9) for query in group.queries] for group in groups]

    monkeypatch.setattr(FakeLM, "label_logprobs", recorded)
    return asked


def through_select(folder: Path, config: RunConfig, *, force: bool = False) -> None:
    with Run(folder, config, force=force) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("select")


def made(folder: Path) -> dict[str, list]:
    with Run(folder) as run:
        rates = bool(run.config.rate.llm)
        kinds = {"generate": Query, "relabel": Score, **({"rate": Score} if rates else {}), "select": Example}
        return {stage: run.read(stage, kind) for stage, kind in kinds.items()}


def test_nobody_is_rated_unless_asked_for(corpus: Path, tiny_model: Path, tmp_path: Path, rated: list) -> None:
    through_select(tmp_path / "run", settings(corpus, tiny_model))
    assert rated == []
    assert not (tmp_path / "run" / "rate").exists()
    done = CliRunner().invoke(app, ["rate", str(tmp_path / "run")])
    assert done.exit_code != 0 and "add --set rate.llm=teacher" in str(done.exception)
    done = CliRunner().invoke(app, ["rate", str(tmp_path / "run"), "--set", "rate.llm=fake"])
    assert done.exit_code == 0 and f"rate: {len(rated)} rows" in done.output and rated


def test_ratings_are_paid_for_once(corpus: Path, tiny_model: Path, tmp_path: Path, rated: list) -> None:
    folder = tmp_path / "run"
    through_select(folder, settings(corpus, tiny_model, *RATED, "generate.queries=13"))
    first = list(rated)
    through_select(folder, settings(corpus, tiny_model, *RATED))
    grown = made(folder)
    taught = [query for query in grown["generate"] if query.split == "train"]
    with Run(folder) as run:
        by_id = Pipeline(run).by_id
    assert 0 < len(first) < len(taught)
    assert Counter(rated) == Counter((query.text, by_id[query.seed_id].content) for query in taught)
    rated.clear()
    values = sorted(score.rc for score in grown["rate"])
    middle = values[len(values) // 2]
    assert values[0] < middle
    # A threshold costs nobody anything.
    through_select(folder, settings(corpus, tiny_model, *RATED, f"select.min_rating={middle}"), force=True)
    assert rated == []
    chosen = made(folder)
    wanted = {score.query_id for score in grown["rate"] if score.rc >= middle}
    assert {row.query_id for row in chosen["select"]} == wanted & {row.query_id for row in grown["select"]}
    assert 0 < len(chosen["select"]) < len(grown["select"])
    with Run(folder) as run:
        manifest = run.finished("select")
    reason = f"rated below {middle:g}"
    assert manifest.drops[reason] == len(grown["select"]) - len(chosen["select"])
    assert manifest.examples[reason]
    # And as if asked for at once.
    through_select(tmp_path / "at once", settings(corpus, tiny_model, *RATED))
    assert made(tmp_path / "at once") == grown


def test_a_killed_rating_goes_on(
    corpus: Path, tiny_model: Path, tmp_path: Path, rated: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, kept = settings(corpus, tiny_model, *RATED), Run._write_shard

    def write(self, stage, index, *rest):
        if (stage, index) == ("rate", 1):
            raise InterruptedError
        return kept(self, stage, index, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_write_shard", write)
        with pytest.raises(InterruptedError):
            through_select(tmp_path / "run", config)
    through_select(tmp_path / "run", config)
    through_select(tmp_path / "whole", config)
    assert made(tmp_path / "run") == made(tmp_path / "whole")


def test_another_model_may_rate(corpus: Path, tiny_model: Path, tmp_path: Path, rated: list) -> None:
    through_select(tmp_path / "run", settings(corpus, tiny_model, "rate.llm=fake"))
    assert len(rated) == len(made(tmp_path / "run")["rate"]) > 0


def test_a_run_that_grows_draws_the_same(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    varied = settings(corpus, tiny_model, *VARIABLES)
    through_select(tmp_path / "grown", settings(corpus, tiny_model, *VARIABLES, "generate.queries=9"))
    through_select(tmp_path / "grown", varied)
    through_select(tmp_path / "whole", varied)
    assert made(tmp_path / "grown") == made(tmp_path / "whole")
    through_select(tmp_path / "plain", settings(corpus, tiny_model))
    plain = made(tmp_path / "plain")["generate"]
    assert not {query.id for query in plain} & {query.id for query in made(tmp_path / "whole")["generate"]}
    with Run(tmp_path / "whole") as run:
        pipeline = Pipeline(run)
        drawn = [draw(pipeline.prompts["generate"], query.id) for query in pipeline.queries]
        counted = statistics(pipeline)["variables"]
    assert {one["language"] for one in drawn} == {"en", "de"}
    for name, values in counted.items():
        found = Counter(one[name] for one in drawn)
        assert {value: count["queries"] for value, count in values.items()} == found
        assert 0 < sum(count["rows"] for count in values.values()) < len(drawn)


def test_pages_show_what_was_asked_and_how_it_is_rated(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    through_select(tmp_path / "run", settings(corpus, tiny_model, *VARIABLES, *RATED))
    with Run(tmp_path / "run") as run:
        pipeline = Pipeline(run)
        found = statistics(pipeline)
        write_report(pipeline, tmp_path / "report.html")
        assert "rate: " in pipeline.estimate()
    report = (tmp_path / "report.html").read_text()
    assert found["rating"] is not None and 0 < found["rated_above_0"] <= 1
    assert report.count("persona: <bdi>a ") == found["rows"]
    assert "rate: prompt rate" in report
    assert "What was asked of the queries" in report and "a pilot" in report
    assert "How the queries are rated" in report


def test_variables_need_a_prompt_that_has_them(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = settings(corpus, tiny_model, "generate.variables.language={de=1}")
    with (
        Run(tmp_path / "run", config) as run,
        pytest.raises(ConfigError, match=r"language: the prompt 'generate' has no variables; set .*'generate_varied'"),
    ):
        Pipeline(run).generate()
