"""The recipe of the two stages, on a tiny model and tiny data: to its table, again without work, and with paid rows."""

import json
from pathlib import Path

import pytest

from gecko.core.errors import ConfigError
from gecko.training.loss import GeckoLoss

from ..conftest import load_script

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "recipes" / "two_stage.py"
TEXT = "red green blue cat dog bird river stone cloud fast slow old new small large north south paper wood iron"
WORDS = TEXT.split()


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    """The script, and the commands it was seen to run."""
    module = load_script(SCRIPT)
    monkeypatch.setenv("GECKO_CACHE", str(tmp_path / "cache"))
    run, seen = module.gecko, []

    def gecko(*words):
        seen.append([str(word) for word in words])
        run(*words)

    monkeypatch.setattr(module, "gecko", gecko)
    return module, seen


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    near = list(zip(WORDS, WORDS[3:] + WORDS[:3], strict=True))
    texts = [
        f"{a} {b} lies near the {b} {a} by the {WORDS[n % 7]} and is often seen there" for n, (a, b) in enumerate(near)
    ]
    write(folder / "pairs" / "facts.jsonl", [{"query": f"{a} {b}", "text": f"{b} {a} stone"} for a, b in near])
    passages = [{"_id": str(n), "title": WORDS[n], "text": text} for n, text in enumerate(texts)]
    write(folder / "passages" / "all.jsonl", passages)
    scored = [{"sentence1": a, "sentence2": b, "score": float(n % 6)} for n, (a, b) in enumerate(near)]
    write(folder / "tasks" / "stsb_en" / "train.jsonl", scored)  # no test split: mteb takes long to load
    classes = [{"text": f"{a} {b}", "label": "odd" if n % 2 else "even"} for n, (a, b) in enumerate(near)]
    write(folder / "tasks" / "banking77" / "train.jsonl", classes)
    for name, split in (("one", "test"), ("two", "dev")):
        where = folder / "retrieval" / name
        write(where / "corpus.jsonl", passages)
        write(where / "queries.jsonl", [{"_id": f"q{n}", "text": f"{a} {b}"} for n, (a, b) in enumerate(near)])
        (where / "qrels").mkdir()
        (where / "qrels" / f"{split}.tsv").write_text("".join(f"q{n}\t{n}\t1\n" for n in range(20)))
    return folder


def test_from_the_raw_model_to_the_table(recipe, data, tiny_bert, tmp_path, monkeypatch, capsys):
    module, seen = recipe
    out = tmp_path / "out"
    words = [str(data), str(out), "--size", "smoke", "--model", str(tiny_bert), "--passages", "15"]
    words += ["--set", "pretrain.limit=12", "--set", "generate.heldout=0"]
    module.main(words)
    assert [command[0] for command in seen] == ["pretrain", "distill", "train"]
    assert seen[1][1] == str(out / "passages-15.jsonl")
    assert "mixture.sets=[]" in seen[1]
    assert "mixture.sets=[]" not in seen[2]
    table = (out / "table.md").read_text()
    assert capsys.readouterr().out.endswith(table)
    header, _, *rows = [line.strip("| ").split(" | ") for line in table.split("\n\n")[0].splitlines()]
    assert header == ["model", "dims", "one", "two", "mean", "difference to"]
    assert [(row[0], row[1]) for row in rows[1:]] == [
        ("MiniLM", "384"),
        (f"{tiny_bert}, raw", "32"),
        *[(name, width) for name in ("stage 1", "FRet", "FRet and sets") for width in ("768", "256")],
    ]
    assert rows[0][0] == "BM25"
    assert float(rows[1][4]) > 0
    assert [row[-1].split(":")[0] for row in rows[3:]] == [
        f"{tiny_bert}, raw",
        "its full width",
        "stage 1",
        "its full width",
        "FRet",
        "its full width",
    ]
    assert "- stage1: 12 rows" in table
    assert "4 queries and 8 passages of each set" in table

    monkeypatch.setattr(GeckoLoss, "forward", None)  # a second call trains nothing and measures nothing
    monkeypatch.setattr("gecko.evaluation.sets.evaluate_sets", None)
    module.main(words)
    assert capsys.readouterr().out.endswith(table)


def test_rows_that_a_teacher_was_paid_for_are_taken(recipe, data, tiny_bert, tmp_path, monkeypatch):
    module, seen = recipe
    paid, out = tmp_path / "paid", tmp_path / "out"
    module.gecko(
        *(
            "distill",
            data / "passages",
            "-o",
            paid,
            "-c",
            SCRIPT.with_name("two-stage-smoke.toml"),
            "--start",
            tiny_bert,
        ),
        *("--set", "mixture.sets=[]", "--set", "train.dims=[16]"),
        *("--set", "generate.heldout=0"),
    )
    seen.clear()
    monkeypatch.setattr(module, "measure", lambda *_: "the table")
    words = [str(data), str(out), "--size", "smoke", "--model", str(tiny_bert), "--rows", str(paid)]
    module.main([*words, "--set", "pretrain.limit=8"])
    assert [command[:2] for command in seen[1:]] == [["train", str(out / "fret")], ["train", str(out / "gecko")]]
    taken = [(run / "select" / "manifest.json").read_bytes() for run in (paid, out / "fret", out / "gecko")]
    assert taken[0] == taken[1] == taken[2]
    before, after = (json.loads((run / "config.json").read_text()) for run in (paid, out / "gecko"))
    assert before["generate"] == after["generate"]  # the settings of the rows stay
    assert [entry["name"] for entry in after["mixture"]["sets"]] == ["stsb", "banking77"]


def test_what_was_paid_for_is_not_replaced_by_a_copy(recipe, tmp_path):
    module, _ = recipe
    paid, other, to = (tmp_path / name for name in ("paid", "other", "to"))
    for run in (paid, other):
        (run / "select").mkdir(parents=True)
        (run / "select" / "manifest.json").write_text(run.name)
    module.copied(other, to)
    (to / "relabel-set").mkdir()
    (to / "relabel-set" / "part-00000.parquet").write_text("of the mixture")
    module.copied(paid, to)  # a copy may be replaced, and keeps what was paid for
    assert (to / "select" / "manifest.json").read_text() == "paid"
    assert (to / "relabel-set" / "part-00000.parquet").read_text() == "of the mixture"
    (paid / "relabel").mkdir()
    (paid / "relabel" / "part-00000.parquet").write_text("dear")
    with pytest.raises(ConfigError, match="holds what a teacher was paid for"):
        module.copied(other, paid)
    assert (paid / "relabel" / "part-00000.parquet").read_text() == "dear"
