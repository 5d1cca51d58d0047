"""``benchmarks/trust.py``: the order of systems by two judgements of the same queries, with a stand-in for the teacher."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gecko.core.files import write_json
from gecko.encoder import load_encoder
from gecko.evaluation.evaluate import dense_run
from gecko.evaluation.metrics import per_query
from gecko.evaluation.sets import load_set

from .conftest import load_script

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "trust.py"


@pytest.fixture
def labels(sets: list[Path], tmp_path: Path, own_cache: Path) -> Path:
    """Labels of which the teacher ordered six queries a set."""
    for folder in sets:
        orders = {"rrf": {f"q{row}": 0.5 for row in range(0, 12, 2)}}
        write_json(tmp_path / "labels" / folder.name / "teacher.json", {"llm": "fake", "orders": orders})
    return tmp_path / "labels"


def test_systems_are_judged_once_and_compared_from_what_is_kept(
    sets: list[Path], labels: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trust(*options: str) -> dict:
        load_script(SCRIPT).main([*map(str, sets), "--labels", str(labels), *options])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    systems = ("--system", f"start={tiny_model}", "--system", f"start@8={tiny_model}@8")
    found = trust("--judge", *systems)
    assert trust() == found and trust("--json") == found  # neither a model nor a teacher is needed
    for folder in sets:
        row, table = found["sets"][folder.name], pq.read_table(labels / folder.name / "pooled.parquet")
        assert row["queries"] + row["left_out"] == 6 and row["judged"] == len(table)
        assert list(row["systems"]) == ["bm25", "start", "start@8"] and row["pairs"] == 3
        data = load_set(str(folder)).asking({f"q{place}" for place in range(0, 12, 2)})
        run = dense_run(data, load_encoder(str(tiny_model)), 10)
        if row["left_out"] == 0:
            assert row["systems"]["start"][0] == pytest.approx(
                per_query(run, data.qrels, ("ndcg@10",))["ndcg@10"].mean()
            )
        pooled = {(one["query_id"], one["passage_id"]) for one in table.to_pylist()}
        assert {(query, key) for query, ranked in run.items() for key in ranked} <= pooled


def test_another_opinion_turns_the_order(labels: Path, sets: list[Path], tiny_model: Path) -> None:
    trust, data = load_script(SCRIPT), load_set(str(sets[0]))
    [(passage, *_)] = [list(data.qrels["q0"])]
    other = next(one.id for one in data.passages if one.id != passage)
    columns = {"query_id": ["q0", "q0"], "passage_id": [passage, other], "ql_sum": [-1.0, -1.0], "ql_tokens": [2, 2]}
    ranks = {"rank bm25": [1, None], "rank start": [None, 1]}
    liked = trust.pa.table(columns | {"rc": [3.0, -3.0]} | ranks)
    found = trust.compare(data, liked)
    assert (found["spearman"], found["sign"], found["sign_sure"]) == (pytest.approx(1), 1, 1)
    assert found["over_start"]["bm25"][0][0] == found["over_start"]["bm25"][1][0] == 1
    turned = trust.compare(data, trust.pa.table(columns | {"rc": [-3.0, 3.0]} | ranks))
    assert (turned["spearman"], turned["sign"], turned["sign_sure"]) == (pytest.approx(-1), 0, 0)


def test_a_start_must_be_named(sets: list[Path], labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_script(SCRIPT).main([str(sets[0]), "--labels", str(labels), "--judge", "--system", "minilm"])
    assert "one of them named start" in capsys.readouterr().err
