"""Runs whose queries are asked to differ: drawn the same however the run goes."""

from collections import Counter
from pathlib import Path

import pytest

from gecko.config.load import load_config
from gecko.config.run import RunConfig
from gecko.core.errors import ConfigError
from gecko.core.records import Example, Query, Score
from gecko.fret.variables import draw
from gecko.report import write_report
from gecko.report.inspect import statistics
from gecko.run.folder import Run
from gecko.stages.graph import history
from gecko.stages.runner import Pipeline

from ..conftest import write_corpus

VARIABLES = (
    "prompts.generate=generate_varied",
    "generate.variables.language={en=2, de=1}",
    'generate.variables.persona=["a nurse", "a pilot"]',
)
KIND_SETTINGS = ("prompts.generate=generate_kinds", "generate.variables.kind={claim=1, question=2}")


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


def through_select(folder: Path, config: RunConfig, *, force: bool = False) -> None:
    with Run(folder, config, force=force) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("select")


def made(folder: Path) -> dict[str, list]:
    with Run(folder) as run:
        kinds = {"generate": Query, "relabel": Score, "select": Example}
        return {stage: run.read(stage, kind) for stage, kind in kinds.items()}


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


def test_pages_show_what_was_asked(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    through_select(tmp_path / "run", settings(corpus, tiny_model, *VARIABLES))
    with Run(tmp_path / "run") as run:
        pipeline = Pipeline(run)
        found = statistics(pipeline)
        write_report(pipeline, history(pipeline.run), tmp_path / "report.html")
    report = (tmp_path / "report.html").read_text()
    assert report.count("persona: <bdi>a ") == found["rows"] > 0
    assert "What was asked of the queries" in report and "a pilot" in report


def test_variables_need_a_prompt_that_has_them(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = settings(corpus, tiny_model, "generate.variables.language={de=1}")
    with (
        Run(tmp_path / "run", config) as run,
        pytest.raises(ConfigError, match=r"language: the prompt 'generate' has no variables; set .*'generate_varied'"),
    ):
        Pipeline(run).make("generate")


def test_a_run_of_kinds(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    kinds = settings(corpus, tiny_model, *KIND_SETTINGS)
    through_select(tmp_path / "grown", settings(corpus, tiny_model, *KIND_SETTINGS, "generate.queries=9"))
    through_select(tmp_path / "grown", kinds)
    through_select(tmp_path / "whole", kinds)
    assert made(tmp_path / "grown") == made(tmp_path / "whole")
    through_select(tmp_path / "other", settings(corpus, tiny_model, "prompts.generate=generate_kinds"))
    parts = []
    for name in ("whole", "other"):
        with Run(tmp_path / name) as run:
            pipeline = Pipeline(run)
            counted = statistics(pipeline)["variables"]["kind"]
            drawn = Counter(draw(pipeline.prompts["generate"], query.id)["kind"] for query in pipeline.queries)
            assert {kind: count["queries"] for kind, count in counted.items() if count["queries"]} == drawn
            parts.append(run.finished("generate").parts)
            write_report(pipeline, history(pipeline.run), tmp_path / "report.html")
            assert "kind: <bdi>question" in (tmp_path / "report.html").read_text()
    assert parts[0].keys() == parts[1].keys() and parts[0]["schema"] == parts[1]["schema"]
    assert {name for name, value in parts[0].items() if value != parts[1][name]} == {"prompt generate"}
