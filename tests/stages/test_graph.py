"""The graph of the stages: its order, what is made on the way, commands, and what is out of date."""

from pathlib import Path
from typing import Any

import pytest

from gecko.config.run import RunConfig
from gecko.core.records import Candidate, Example, Passage, Query, Score
from gecko.run.folder import Run
from gecko.run.shards import build_file, run_local
from gecko.stages import graph
from gecko.stages.stage import section, value

ORDER = [
    *(
        "ingest",
        "embed",
        "check",
        "asked",
        "plan",
        "generate",
        "warmup",
        "embed-warmup",
        "embed-miner",
        "mine",
        "seeds",
    ),
    *("relabel", "select", "mixture", "lexical", "train", "agreement", "choose", "evaluate", "dataset", "testset"),
]


def test_the_order_is_that_of_the_work() -> None:
    assert [stage.name for stage in graph.ORDER] == ORDER
    for place, stage in enumerate(graph.ORDER):
        each = [stage.reads_each] if stage.reads_each else []
        assert {*stage.reads.values(), *each, *stage.after} <= {*graph.ORDER[:place]}


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("generate", ["check", "generate"]),
        ("select", ["check", "generate", "mine", "relabel", "select"]),
        ("evaluate", ["check", "generate", "mine", "relabel", "select", "choose", "evaluate"]),
        ("ingest", ["ingest"]),
    ],
)
def test_what_is_made_on_the_way(name: str, made: list[str]) -> None:
    assert [stage.name for stage in graph.upto(name)] == made


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        *(("relabel", "relabel"), ("relabel-2", "relabel"), ("asked", "generate"), ("mixture", "train")),
        *(("embed", "generate"), ("train-native", "train"), ("agreement", "train"), ("relabel-faq", "train")),
    ],
)
def test_the_command_that_makes_a_folder(folder: str, command: str) -> None:
    faq = {"name": "faq", "kind": "pairs", "source": "faq.jsonl", "relabel": True}
    settings: dict[str, Any] = {"asked": {"sources": ["log.txt"]}, "mixture": {"sets": [faq]}}
    config = RunConfig(budget="1m", relabel={"teachers": ["a"]}, **settings)
    assert graph.command(config, folder) == command


def test_a_stage_has_the_folders_that_the_settings_ask_for() -> None:
    config = RunConfig(budget="1m", relabel={"teachers": ["a", "b"]}, train={"formats": ["unified"]})
    assert graph.STAGES["relabel"].folders_of(config) == ["relabel", "relabel-2", "relabel-3"]
    assert graph.STAGES["train"].each(config) == {"unified": "train-unified"}
    assert graph.STAGES["asked"].folders_of(config) == []
    log = RunConfig(budget="1m", asked={"sources": ["log.txt"]})
    assert graph.STAGES["asked"].folders_of(log) == ["asked"]


def test_settings_as_parts() -> None:
    config = RunConfig(budget="1m", mine={"n": 7})
    assert value("mine.n")(config) == "7"
    assert section("mine", only={"n"})(config) == '{"n":7}'
    assert "warmup_epochs" not in section("mine", without={"warmup_epochs"})(config)


def test_what_was_made_from_something_else_is_stale(tmp_path: Path) -> None:
    def identity(run: Run, stage: str) -> str:
        return run.finished(stage).identity

    def write(run: Run, text: str) -> None:
        run_local(run, "ingest", Passage, {"text": text}, [0], lambda *_: [Passage("p", "", text)])

    with Run(tmp_path / "run", RunConfig(budget="1m", train={"formats": ["native"]})) as run:
        write(run, "one")
        parts = {"passages": identity(run, "ingest")}
        run_local(run, "generate", Query, parts, [0], lambda *_: [Query("q", "", "what?", "p", "fake")])
        parts |= {"queries": identity(run, "generate")}
        run_local(run, "mine", Candidate, parts, [0], lambda *_: [Candidate("q", "p", 1, 0.5)])
        parts |= {"candidates": identity(run, "mine")}
        run_local(run, "relabel", Score, parts, [0], lambda *_: [Score("q", "p", "fake", "h", -1.0, 2, 1.0)])
        assert graph.stale(run) == []
        # What another model needed once, and nothing reads any more, is not out of date.
        build_file(run, "embed", {"passages": "of another corpus"}, "passages.npy", lambda path: path.touch())
        build_file(run, "seeds", {"candidates": "of another model"}, "found.json", lambda path: path.touch())
        assert graph.stale(run) == []
        write(run, "two")
        assert graph.stale(run) == [
            f"{stage} was made from an earlier ingest" for stage in ("generate", "mine", "relabel")
        ]
        asked = run.manifest("mine")
        assert asked is not None
        asked.parts["asked"] = "of a log that the settings no longer name"
        run.save(asked)
        assert "mine was made from other queries that people asked" in graph.stale(run)
        assert list(graph.manifests(run)) == ["ingest", "embed", "generate", "mine", "seeds", "relabel"]
        assert graph.history(run).of_records == [
            *("ingest", "asked", "generate", "mine", "relabel", "select", "testset")
        ]
        assert run.read("ingest", Passage)[0].text == "two" and Example is graph.STAGES["select"].record
