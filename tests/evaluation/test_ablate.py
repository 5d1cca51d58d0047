import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gecko.cli.main import app
from gecko.config.load import change_config, load_config
from gecko.config.run import RunConfig
from gecko.config.stages import GenerateConfig
from gecko.config.training import TrainConfig
from gecko.core.errors import ConfigError, RunError
from gecko.core.records import Candidate, Example, Passage, Query, Text
from gecko.evaluation import ablate
from gecko.evaluation.ablate import Ablation, Options
from gecko.evaluation.ablation_grid import Cell, Draw, all_cells, drawn, first_candidates
from gecko.evaluation.ablation_table import AGREEMENT
from gecko.evaluation.study import study
from gecko.fret.mine import mine
from gecko.fret.release import Released
from gecko.report.ablation import cell_rows, dim_rows, dims_plot, markdown, plot, reranker_rows
from gecko.run.folder import Run
from gecko.stages.runner import Pipeline

GRID = ("selection/seed + none", "selection/p1 + random", "selection/p1 + p_N", "fusion/rrf", "temperature/0.05")


@pytest.fixture(scope="module")
def finished(tiny_model: Path, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run up to ``select`` with a fake teacher, and a test set on its passages."""
    folder = tmp_path_factory.mktemp("ablate")
    beir = folder / "judged"
    (beir / "qrels").mkdir(parents=True)
    with (beir / "corpus.jsonl").open("w") as lines:
        for number in range(40):
            chosen = " ".join(words[(number * 7 + step * (1 + number % 5)) % len(words)] for step in range(12))
            lines.write(
                json.dumps({"_id": f"p{number}", "title": "", "text": f"passage {number} about {chosen}"}) + "\n"
            )
    overrides = (
        "generate.queries=24",
        "generate.neighbourhood=4",
        "generate.min_seed_chars=10",
        "mine.n=6",
        "select.min_rc=null",
        "train.epochs=1",
        "train.min_steps=0",
        "train.batch=8",
        "train.max_tokens=32",
        "train.formats=['native']",
        "train.learning_rate=0.001",
        "check.enabled=false",
    )
    base = {"corpus": {"sources": [str(beir / "corpus.jsonl")]}, "llm": "fake", "backbone": str(tiny_model)}
    with Run(folder / "run", load_config(None, overrides, base)) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("select")
        queries = run.read("generate", Query)
        passages = run.read("ingest", Passage)
    # one of the run's own queries is judged, too; ids are those that the run gave
    (beir / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": p.id, "title": p.title, "text": p.text}) + "\n" for p in passages)
    )
    asked = [("own", queries[0].text)] + [(f"q{n}", " ".join(passages[n].text.split()[3:6])) for n in range(9)]
    (beir / "queries.jsonl").write_text("".join(json.dumps({"_id": k, "text": t}) + "\n" for k, t in asked))
    judged = [("own", queries[0].seed_id)] + [(f"q{n}", passages[n].id) for n in range(9)]
    (beir / "qrels" / "test.tsv").write_text("".join(f"{key}\t{one}\t1\n" for key, one in judged))
    return folder / "run", str(beir)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that were trained, in order."""
    done: list[str] = []
    kept = Ablation.train

    def train(self: Ablation, training: ablate.Training) -> dict[str, Any]:
        done.append(f"{training.cell.label} {training.seed}")
        return kept(self, training)

    monkeypatch.setattr(Ablation, "train", train)
    return done


def test_rows_are_selected_as_the_run_selects(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, beir = tmp_path / "run", finished[1]
    shutil.copytree(finished[0], folder)
    with Run(folder) as run:
        config = change_config(run.config, None, ["select.task_rows=uniform"])
    with Run(folder, config, force=True) as run:
        Pipeline(run).through("select")
        rows = run.read("select", Example)
        drops = run.finished("select").drops
        cell = next(cell for cell in all_cells(run.config, True) if cell.label == "selection/p1 + p_N")
        assert Ablation(run, Options(sets=(beir,))).rows(cell, run.config.seed) == rows != []
    assert any(reason.startswith("more than ") for reason in drops)


@pytest.mark.slow
def test_killed_it_continues_at_the_next_training_and_ends_the_same(
    finished: tuple[Path, str], trainings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, beir = finished
    options = Options(GRID, seeds=2, sets=(beir,))
    whole_write = ablate.write_json

    def die(path: Path, value: Any) -> None:
        if len(trainings) == 4:
            raise KeyboardInterrupt
        whole_write(path, value)

    with monkeypatch.context() as patch, Run(folder) as run, pytest.raises(KeyboardInterrupt):
        patch.setattr(ablate, "write_json", die)
        Ablation(run, options).work()
    assert len(trainings) == 4
    with Run(folder) as run:
        ablation = Ablation(run, options)
        left = ablation.estimate()
        # p1 + p_N, rrf and the temperature 0.05 are the run's own settings: one training for the three of them
        assert (left.trainings, left.kept) == (3, 3)
        assert left.seconds > 0
        result = ablation.work()
        assert len(trainings) == 7
        assert Ablation(run, options).estimate() == ablate.Estimate(0, 6, 0.0)
        assert Ablation(run, options).work() == result
        assert len(trainings) == 7
        assert not any((folder / "ablate" / "work").iterdir())
        for file in (folder / "ablate" / "cells").iterdir():
            file.unlink()
        again = Ablation(run, options).work()
    assert again == result
    cells = {f"{cell['group']}/{cell['name']}": cell for cell in result["cells"]}
    assert list(cells) == list(GRID)
    assert cells["selection/p1 + p_N"]["seeds"] == cells["fusion/rrf"]["seeds"] == cells["temperature/0.05"]["seeds"]
    assert cells["selection/p1 + p_N"]["seeds"] != cells["selection/seed + none"]["seeds"]
    assert cells["selection/seed + none"]["delta_reference"] == 0
    one = cells["selection/p1 + random"]
    assert one["score"] == pytest.approx(np.mean(one["seeds"]))
    assert one["delta_start"] == pytest.approx(one["score"] - result["start"]["score"])
    assert one["ci95_start"][0] <= one["delta_start"] <= one["ci95_start"][1]
    assert one["agreement"]["score"] > 0
    assert result["headline"] == "macro ndcg@10"
    text, svg = markdown(result), plot(result)
    for cell in GRID:
        assert cell.split("/")[1] in text
    assert "<svg" in svg and "var(--" not in svg and svg == plot(result)
    for table in (cell_rows(result), reranker_rows(result)):
        assert len({len(row) for row in table}) == 1


def test_the_rows_of_the_runs_own_settings_are_the_runs_rows(finished: tuple[Path, str]) -> None:
    folder, beir = finished
    with Run(folder) as run:
        ablation = Ablation(run, Options(sets=(beir,)))
        cells = {cell.label: cell for cell in ablation.cells}
        selected = run.read("select", Example)
        for label in ("selection/p1 + p_N", "fusion/rrf", "candidates/6", "format/native"):
            assert ablation.rows(cells[label], 0) == selected
        seeds = ablation.rows(cells["selection/seed + none"], 0)
        assert all(row.positive.id == row.seed_id and not row.negatives for row in seeds)
        random = [ablation.rows(cells["selection/p1 + random"], seed) for seed in (0, 0, 1)]
        assert random[0] == random[1] != random[2]
        few = ablation.rows(cells["candidates/5"], 0)
        assert [len(row.candidates) for row in few] == [5] * len(selected)
        assert len(ablation.rows(cells["tasks/uniform"], 0)) == (len(selected) + 1) // 2
        assert len(ablation.rows(cells["rows/25%"], 0)) == -(-len(selected) // 4)
        listwise = cells["listwise/1"]
        assert (ablation.settings(listwise).loss.distill, ablation.rows(listwise, 0)) == (1, selected)
        keys = {training.cell.label: training.key for training in ablation.plan if training.seed == 0}
        same = ("selection/p1 + p_N", "fusion/rrf", "format/native", "candidates/6", "rows/100%", "loss/the run's")
        assert len({keys[label] for label in same}) == 1
        assert len({keys[label] for label in ("rows/50%", "tasks/as written", "listwise/1", same[0])}) == 3
        empty = {"filter/RC > 1", "filter/RC > 2"} - set(keys)  # of a stand-in that is never so sure
        assert len(ablation.plan) == 3 * (len(cells) - len(empty)) and "filter/RC > 0" in keys


def test_released_rows_are_ablated_with_the_runs_own(finished: tuple[Path, str]) -> None:
    folder, beir = finished
    with Run(folder) as run:
        alone = Ablation(run, Options(sets=(beir,)))
        query = replace(alone.queries[0], id="elsewhere", text="labelled elsewhere", split="train")
        released = Released("x", alone.passages, [query], {"elsewhere": alone.labels[alone.queries[0].id]})
        both = Ablation(run, Options(sets=(beir,)), released=[released])
        cells = {cell.label: cell for cell in both.cells}
        for label, count in (("selection/p1 + p_N", 6), ("candidates/5", 5)):
            rows, own = both.rows(cells[label], 0), alone.rows(cells[label], 0)
            assert rows[:-1] == own
            assert rows[-1].query == "labelled elsewhere" and len(rows[-1].candidates) == count
        labels = both.labels["elsewhere"]
    assert labels == released.labels["elsewhere"]


def test_the_rerankers_are_judged_by_seeds_and_by_judgements(finished: tuple[Path, str]) -> None:
    folder, beir = finished
    with Run(folder) as run:
        ablation = Ablation(run, Options(sets=(beir,)))
        rows = {row["order"]: row for row in ablation.rerankers()}
        assert list(rows) == list(ablate.RERANKERS)
        natural = [
            c.rank
            for c in run.read("mine", Candidate)
            if c.passage_id == {q.id: q.seed_id for q in ablation.queries}[c.query_id]
        ]
        assert rows["retriever"]["seed_mrr"] == pytest.approx(np.mean(1 / np.array(natural)))
        assert rows["retriever"]["delta"] is None
        query = ablation.queries[0]
        for name, row in rows.items():
            assert row["judged"] == 1
            if name == "rrf":
                place = [label.passage_id for label in ablation.labels[query.id]].index(query.seed_id) + 1
                assert row["ndcg@10"] == pytest.approx(1 / np.log2(1 + place))


def test_without_test_sets_agreement_is_the_headline(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    with Run(folder) as run:
        result = Ablation(run, Options(("selection/p1 + p_N", "listwise/1"), seeds=1)).work()
    assert result["headline"] == AGREEMENT
    assert result["sets"] == {}
    cell, listwise = result["cells"]
    assert cell["seeds"] != listwise["seeds"]
    assert cell["score"] == cell["agreement"]["score"]
    assert cell["reference"] is None


def test_widths_of_the_runs_model(finished: tuple[Path, str], tiny_model: Path) -> None:
    folder, beir = finished
    (folder / "model").symlink_to(tiny_model)  # the start model itself: no difference at any width
    try:
        with Run(folder) as run:
            ablation = Ablation(run, Options(sets=(beir,)))
            rows = ablation.dims()
            narrow = ablation.measure(ablation.start.truncated(8))
            assert Ablation(run, Options()).dims() == []
    finally:
        (folder / "model").unlink()
    assert [row["dim"] for row in rows] == [32, 16, 8, 4]
    assert all(row["delta"] == 0 and row["score"] == row["start"] for row in rows)
    assert rows[2]["score"] == pytest.approx(np.mean(narrow["judged"]))
    assert len({row["score"] for row in rows}) > 1
    result = {"dims": rows, "headline": "macro ndcg@10"}
    assert len(dim_rows(result)) == 5
    assert "<svg" in (dims_plot(result) or "")
    assert dims_plot({"dims": []}) is None


def test_on_the_command_line(finished: tuple[Path, str], trainings: list[str]) -> None:
    folder, beir = finished
    arguments = ["ablate", str(folder), "--eval", beir, "--cells", "rows/25%", "--seeds", "1"]
    first = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert first.exit_code == 0, first.output
    assert "1 trainings to do" in first.stderr and trainings == []
    assert first.stdout.split() == ["rows/25%"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert trainings == ["rows/25% 0"]
    result = json.loads(done.stdout)
    assert json.loads((folder / "ablate" / "ablation.json").read_text()) == result
    table = CliRunner().invoke(app, arguments)
    assert table.exit_code == 0, table.output
    assert "0 trainings to do" in table.stderr and "rrf+retriever" in table.stdout
    assert "25%" in (folder / "ablate" / "ablation.md").read_text()
    wrong = CliRunner().invoke(app, [*arguments, "--format", "plain"], env={"COLUMNS": "200"})
    assert wrong.exit_code == 2 and "'plain' is not one of 'native'" in wrong.output


@pytest.mark.slow
def test_two_runs_in_one_table(finished: tuple[Path, str], tmp_path: Path) -> None:
    """The same run twice, with its set under two names: every number is that of the run alone, from twice the queries."""
    folder, beir = finished
    other, again = tmp_path / "run", tmp_path / "again"
    shutil.copytree(folder, other)
    shutil.copytree(beir, again)
    cells = ("filter/all rows", "negatives/2", "listwise/1")
    with Run(folder) as one, Run(other) as two:
        pair = [Ablation(run, Options(cells, 2, sets=(name,))) for run, name in ((one, beir), (two, str(again)))]
        alone = pair[0].work()
        result = study(pair)
        assert result["sets"] == {"judged": 10, "again": 10}
        assert result["start"]["score"] == pytest.approx(alone["start"]["score"])
        for both, single in zip(result["cells"], alone["cells"], strict=True):
            assert both["rows"] == 2 * single["rows"]
            assert both["seeds"] == pytest.approx(single["seeds"])
            assert both["delta_start"] == pytest.approx(single["delta_start"])
            widths = [row["ci95_start"][1] - row["ci95_start"][0] for row in (both, single)]
            assert widths[0] <= widths[1] and both["agreement"] is None
        assert any(row["delta_start"] for row in result["cells"])
        assert "again (10 queries)" in markdown(result) and "<svg" in plot(result)
        with pytest.raises(RunError, match="each run needs test sets of its own; there are: judged, judged"):
            study([pair[0], pair[0]])
        with pytest.raises(RunError, match="differ in format, seeds or epochs"):
            study([pair[0], Ablation(two, Options(cells, 1, sets=(str(again),)))])
        with pytest.raises(RunError, match="no cell is trained in all of the 2 runs"):
            study([pair[0], Ablation(two, Options(("rows/100%",), 2, sets=(str(again),)))])


def test_refusals(finished: tuple[Path, str], tiny_model: Path, tmp_path: Path) -> None:
    folder, beir = finished
    with Run(folder) as run:
        with pytest.raises(ConfigError, match=r"--cells 'selektion' is neither a group nor a cell; groups: selection"):
            Ablation(run, Options(("selektion",), sets=(beir,)))
        with pytest.raises(ConfigError, match="--seeds 0"):
            Ablation(run, Options(seeds=0))
    config = load_config(None, ("generate.queries=4",), {"backbone": str(tiny_model), "llm": "fake"})
    with Run(tmp_path / "new", config) as run, pytest.raises(RunError, match="stage ingest is not finished"):
        Ablation(run, Options())


def test_the_cells_are_the_papers() -> None:
    cells = all_cells(RunConfig(generate=GenerateConfig(queries=9)))
    grid = [cell.select for cell in cells if cell.group == "selection"]
    pairs = {(one["positive"], one["negative"]) for one in grid if one["min_rc"] is None}
    assert pairs == {(p, n) for p in ("seed", "p1") for n in ("none", "random", "last")}
    assert [cell.candidates for cell in cells if cell.group == "candidates"] == [5, 10, 20]
    assert len({cell.label for cell in cells}) == len(cells)
    assert all(any(one.group == cell.group and one.name == cell.reference for one in cells) for cell in cells)
    other = load_config(
        None, ("select.fusion=rc", "mine.n=8", "train.loss.temperature=0.07", "train.learning_rate=3e-5"), {}
    )
    assert [cell.name for cell in all_cells(other, False) if cell.group in ("fusion", "candidates")] == [
        "rc",
        "5",
        "8",
    ]
    few = {"select.min_rc=0.5", "select.negatives=3", "train.loss.distill=0.25"}
    groups = {cell.group: cell.reference for cell in all_cells(load_config(None, sorted(few), {}))}
    assert (groups["filter"], groups["negatives"], groups["listwise"]) == ("RC > 0.5", "3", "0.25")
    assert Cell("temperature", "0.07", "0.07", loss={"temperature": 0.07}) in all_cells(other)
    assert Cell("learning rate", "3e-05", "3e-05", train={"learning_rate": 3e-5}) in all_cells(other)


def test_fewer_candidates_are_what_mining_fewer_would_have_found() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(50, 8)).astype(np.float32)
    passages = [f"p{n}" for n in range(50)]
    queries = [Query(f"q{n}", "", "x", f"p{generator.integers(50)}", "") for n in range(20)]
    asked = generator.normal(size=(20, 8)).astype(np.float32)
    many = list(mine(queries, asked, passages, [lambda: vectors], 30))
    few = list(mine(queries, asked, passages, [lambda: vectors], 6))
    assert any(not row.natural for row in many)
    got = first_candidates(many, 6, queries)
    assert [replace(row, score=0) for row in got] == [replace(row, score=0) for row in few]
    assert [row.score for row in got] == pytest.approx([row.score for row in few])


def test_some_of_the_rows() -> None:
    tasks = ["often"] * 30 + ["Often "] * 6 + ["seldom"] * 6 + ["once"]
    rows = [Example("fret", task, f"q{n}", Text("", "", "x"), seed_id=f"p{n % 11}") for n, task in enumerate(tasks)]

    def draw(how: Draw, seed: int = 0) -> list[Example]:
        return drawn(rows, 22, np.random.default_rng(seed), how)

    uniform = draw("even over tasks")
    assert len(uniform) == 22
    counts = {task: sum(row.task.casefold().strip() == task for row in uniform) for task in ("often", "seldom", "once")}
    assert counts == {"often": 15, "seldom": 6, "once": 1}
    some = draw("at random")
    assert len(some) == 22 and sum(row.task == "seldom" for row in some) < 6
    assert [int(row.query[1:]) for row in some] == sorted(int(row.query[1:]) for row in some)
    assert draw("even over tasks") == uniform
    assert draw("even over tasks", 1) != uniform
    # 11 passages of 3 or 4 queries each
    assert set(Counter(row.seed_id for row in draw("even over passages")).values()) == {2}
    few = Counter(row.seed_id for row in draw("few passages"))
    whole = Counter(row.seed_id for row in rows)
    assert len(few) in (6, 7) and sum(few[seed] == whole[seed] for seed in few) >= len(few) - 1


def test_what_is_trained_how_long_and_from_what(
    finished: tuple[Path, str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, beir = finished
    student = tmp_path / "student"
    shutil.copytree(tiny_model, student)
    trained: list[tuple[str, int]] = []

    def stop(rows: Any, start: str, out: Path, form: str, config: TrainConfig, *_: Any, **__: Any) -> None:
        trained.append((str(start), config.epochs))
        raise KeyboardInterrupt

    def asked(run: Run, epochs: int | None = None) -> Ablation:
        ablation = Ablation(run, Options(GRID, 1, epochs, (beir,)))
        with pytest.raises(KeyboardInterrupt):
            ablation.work()
        return ablation

    monkeypatch.setattr("gecko.training.train", stop)
    with Run(folder) as run:
        asked(run, 3)
        shutil.copytree(tiny_model, run.path / "lexical" / "learned" / "model")
        asked(run, 3)  # another start
        run.config = change_config(run.config, None, ["train.min_steps=30", "train.epochs=1", f"student={student}"])
        assert asked(run).epochs == 10
        assert asked(run, 2).epochs == 2
    taught = folder / "lexical" / "learned" / "model"
    assert trained == [(str(tiny_model), 3), (str(taught), 3), (str(student), 10), (str(student), 2)]
