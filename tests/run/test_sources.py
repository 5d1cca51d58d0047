"""A run means the same from whatever folder its commands are called: absolute sources, and copies of its prompts."""

import json
import os
import shutil
from pathlib import Path

import pytest

from gecko.config.load import load_config
from gecko.config.paths import absolute_paths
from gecko.config.run import RunConfig
from gecko.core.errors import ConfigError, RunError
from gecko.core.files import read_json
from gecko.prompts import load_prompt
from gecko.run.folder import Run
from gecko.stages.runner import Pipeline

from ..conftest import write_corpus

SHOWN = 'form = "completion"\ntemplate = "{examples}Passage: {passage}\\nQuery:"\n'
EXAMPLES = '[[examples]]\npassage = "a"\ntask = "b"\nquery = "c"\n'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, words: list[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a corpus, a start model and a prompt whose examples are in another file; the working folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    write_corpus(folder / "corpus.jsonl", words)
    shutil.copytree(tiny_model, folder / "model")
    write_prompt(folder, "Write one.")
    monkeypatch.chdir(folder)
    return folder


def write_prompt(folder: Path, words: str) -> None:
    (folder / "all.toml").write_text(SHOWN + 'example = "{query}\\n"\n' + EXAMPLES)
    text = SHOWN.replace("{examples}", words + " {examples}")
    (folder / "mine.toml").write_text(text + 'example = "{query}\\n"\nexamples_of = "all.toml"\n')


def settings(*more: str, corpus: str = "corpus.jsonl", model: str = "model", prompt: str = "mine.toml") -> RunConfig:
    overrides = ("generate.queries=6", "generate.min_seed_chars=10", "mine.n=4", "select.min_rc=null", *more)
    base = {"corpus": {"sources": [corpus]}, "llm": "fake", "backbone": model}
    return load_config(None, (*overrides, f"prompts.generate={prompt}", "check.enabled=false"), base)


def selected(run: Run, *, asks: bool = True) -> str:
    pipeline = Pipeline(run, asks=asks)
    pipeline.ingest()
    pipeline.through("select")
    return run.finished("generate").identity


def test_files_are_named_in_full(home: Path) -> None:
    (home / "log@2.txt").write_text("what is it\n")
    (home / "sets").mkdir()
    given = settings(
        'asked.sources=["log@2.txt", "hf:some/log", "sqlite:///log.db?select 1"]',
        'evaluate.sets=["sets@dev", "sets", "stdlib-questions", "not-there"]',
        'select.released=["fret-stdlib"]',
        'relabel.teachers=["hf:model", "hf:no/such", "gguf:none.gguf"]',
        corpus="./*.jsonl",
        model="../home/model/",
    )
    found = absolute_paths(given)
    assert found.corpus.sources == [f"{home}/*.jsonl"]
    assert found.asked.sources == [f"{home}/log@2.txt", "hf:some/log", "sqlite:///log.db?select 1"]
    assert found.evaluate.sets == [f"{home}/sets@dev", f"{home}/sets", "stdlib-questions", "not-there"]
    assert found.select.released == ["fret-stdlib"]
    assert found.relabel.teachers == [f"hf:{home}/model", "hf:no/such", "gguf:none.gguf"]
    assert found.backbone == f"{home}/model"
    assert found.prompts.generate == f"{home}/mine.toml"
    assert found.prompts.relevance == "relevance"
    assert absolute_paths(found) == found
    assert absolute_paths(given, given) == given  # the names that an older run has saved are kept


def test_the_sets_of_a_mixture_are_named_in_full(home: Path) -> None:
    (home / "faq.jsonl").write_text("{}\n")
    faq = {"name": "faq", "kind": "pairs", "source": "faq.jsonl"}
    hub = {"name": "hub", "kind": "pairs", "source": "hf:some/set"}
    given = load_config(None, (), {"mixture": {"sets": [faq, hub]}})
    assert [entry.source for entry in absolute_paths(given).mixture.sets] == [f"{home}/faq.jsonl", "hf:some/set"]
    assert absolute_paths(given, given) == given


def test_the_same_command_from_another_folder_pays_for_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(Path("run"), settings()) as run:
        before = selected(run)
    (home / "below").mkdir()
    monkeypatch.chdir(home / "below")
    monkeypatch.setattr("gecko.llm.registry.load_teacher", None)
    again = settings(corpus=".././corpus.jsonl", model="../model", prompt="../mine.toml")
    with Run(Path("../run"), again) as run:
        assert not run.changed and selected(run) == before
    (home / "run").rename(home / "below" / "moved")
    with Run(Path("moved")) as run:
        assert selected(run, asks=False) == before


def test_a_run_asks_with_its_own_prompts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(Path("run"), settings()) as run:
        selected(run)
        asked = run.prompt("generate")
    assert asked.hash == load_prompt("mine.toml").hash and len(asked.examples) == 1
    (home / "elsewhere").mkdir()
    write_prompt(home, "Write another.")
    write_prompt(home / "elsewhere", "Write a third.")
    for folder in (home, home / "elsewhere"):
        monkeypatch.chdir(folder)
        with Run(home / "run") as run:
            assert run.prompt("generate") == asked
            assert selected(run, asks=False)
    (home / "mine.toml").unlink()
    (home / "all.toml").unlink()
    with Run(home / "run") as run:
        assert run.prompt("generate") == asked


def test_a_prompt_whose_file_has_changed_is_another_setting(home: Path) -> None:
    with Run(Path("run"), settings()) as run:
        before = selected(run)
    write_prompt(home, "Write another.")
    with pytest.raises(RunError, match=r"prompts.generate: .*mine.toml reads otherwise than the run's copy"):
        Run(Path("run"), settings())
    with Run(Path("run"), settings(), force=True, same_prompts=True) as run:
        assert selected(run) == before
    with Run(Path("run"), settings(), force=True) as run:
        assert run.changed and selected(run) != before
    with Run(Path("run")) as run:
        assert run.prompt("generate").text.startswith("Write another.")


def test_a_dry_run_keeps_no_prompt(home: Path) -> None:
    with Run(Path("run"), settings()) as run:
        selected(run)
        asked = run.prompt("generate")
    write_prompt(home, "Write another.")
    with Run(Path("run"), settings(), force=True, keep=False) as run:
        assert run.prompt("generate").text.startswith("Write another.")
    with Run(Path("run")) as run:
        assert run.prompt("generate") == asked


def test_examples_that_go_in_a_circle(home: Path) -> None:
    (home / "all.toml").write_text(SHOWN + 'examples_of = "mine.toml"\n')
    with pytest.raises(ConfigError, match="its examples are its own"):
        load_prompt("mine.toml")


def test_selection_asks_no_teacher() -> None:
    with Run(Path("run"), settings()) as run:
        selected(run)
    with (
        Run(Path("run"), settings("generate.queries=12")) as run,
        pytest.raises(RunError, match="the stage generate has to ask the teacher .* run: gecko generate run"),
    ):
        selected(run, asks=False)


def test_an_older_run_goes_on_with_the_names_it_has(home: Path) -> None:
    """Relative names of sources and no copies of prompts: as runs were made before."""
    with Run(Path("run"), settings()) as run:
        before = selected(run)
    saved = read_json(home / "run" / "config.json")
    saved["corpus"]["sources"], saved["backbone"] = ["corpus.jsonl"], "model"
    saved["prompts"]["generate"] = "mine.toml"
    (home / "run" / "config.json").write_text(json.dumps(saved))
    shutil.rmtree(home / "run" / "prompts")
    with Run(Path("run"), settings(corpus=os.path.abspath("corpus.jsonl"))) as run:  # noqa: PTH100
        assert selected(run) == before
        assert run.config.corpus.sources == ["corpus.jsonl"]
    assert (home / "run" / "prompts" / "generate.json").exists()


def test_a_prompt_that_cannot_be_read_changes_nothing(home: Path) -> None:
    with Run(Path("run"), settings()) as run:
        before = selected(run)
    with pytest.raises(ConfigError, match=r"prompt .*new.toml: No such file"):
        Run(Path("run"), settings(prompt="new.toml"), force=True)
    write_prompt(home / "run", "Write a third.")
    (home / "run" / "mine.toml").rename(home / "new.toml")
    with Run(Path("run"), same_prompts=True) as run:
        assert run.config.prompts.generate == f"{home}/mine.toml"
        assert selected(run, asks=False) == before
    with Run(Path("run"), settings(prompt="new.toml"), force=True, same_prompts=True) as run:
        assert run.prompt("generate").text.startswith("Write a third.")


def test_a_copy_is_of_the_file_that_it_names(home: Path) -> None:
    """A run that was killed between its settings and its copy, say."""
    with Run(Path("run"), settings()):
        pass
    write_prompt(home / "run", "Write a third.")
    saved = read_json(home / "run" / "config.json")
    saved["prompts"]["generate"] = f"{home}/run/mine.toml"
    (home / "run" / "config.json").write_text(json.dumps(saved))
    with Run(Path("run")) as run:
        assert run.prompt("generate").text.startswith("Write a third.")


def test_examples_that_are_written_out_later(home: Path) -> None:
    with Run(Path("run"), settings()):
        pass
    (home / "mine.toml").write_text(SHOWN + 'example = "{query}\\n"\n' + EXAMPLES)
    with Run(Path("run"), settings(), force=True):
        pass
    with Run(Path("run")) as run:
        assert run.prompt("generate").hash == load_prompt("mine.toml").hash


def test_the_same_command_goes_on_without_the_file_of_a_prompt(home: Path) -> None:
    with Run(Path("run"), settings()) as run:
        before = selected(run)
    (home / "mine.toml").unlink()
    said: list[str] = []
    with Run(Path("run"), settings(), say=said.append) as run:
        assert selected(run, asks=False) == before
    assert said[0] == f"prompts.generate: {home}/mine.toml is gone, and the run's copy of it is used"


def test_a_project_folder_that_was_moved(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(Path("run"), settings()) as run:
        before = selected(run)
    home.rename(home.with_name("elsewhere"))
    monkeypatch.chdir(home.with_name("elsewhere"))
    monkeypatch.setattr("gecko.llm.registry.load_teacher", None)
    with Run(Path("run"), settings()) as run:
        assert not run.changed and selected(run, asks=False) == before
        assert run.config.corpus.sources == [str(home.with_name("elsewhere") / "corpus.jsonl")]
    (home.with_name("elsewhere") / "other.jsonl").write_text("{}")
    with pytest.raises(RunError, match="corpus.sources"):
        Run(Path("run"), settings(corpus="other.jsonl"))


def test_what_else_names_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    (home / "log.db").touch()
    (home / "teacher.gguf").touch()
    given = settings(
        'asked.sources=["sqlite:///log.db#SELECT * FROM log", "hf:model", "hf:some/log@train[:10%]"]',
        "student=model",
        'relabel.teachers=["gguf:~/teacher.gguf"]',
    )
    found = absolute_paths(given)
    log, model, hub = found.asked.sources
    assert (log, model, hub) == (
        f"sqlite:///{home}/log.db#SELECT * FROM log",
        f"hf:{home}/model",
        "hf:some/log@train[:10%]",
    )
    assert found.student == f"{home}/model"
    assert found.relabel.teachers == [f"gguf:{home}/teacher.gguf"]
