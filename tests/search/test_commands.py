import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from gecko.cli.main import app
from gecko.core.errors import ConfigError, NonFiniteError


def gecko(*arguments: object, stdin: str = "") -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None:
        raise result.exception
    return result


def test_embed_and_search(tiny_model: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = gecko("embed", tiny_model, "--dim", 8, stdin="the red cat\nfish\n")
    rows = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [(row["id"], len(row["embedding"])) for row in rows] == [("1", 8), ("2", 8)]
    [row] = map(json.loads, gecko("embed", tiny_model, "--with-text", stdin="fish\n").stdout.splitlines())
    assert (row["id"], row["title"], row["text"], row["source"], len(row["embedding"])) == ("1", "", "fish", "", 32)

    corpus = tmp_path / "corpus.jsonl"
    texts = [" ".join(words[n : n + 6]) for n in range(20)]
    corpus.write_text("".join(json.dumps({"_id": f"p{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    done = gecko("embed", tiny_model, corpus, "-o", tmp_path / "out", "--output", "int8")
    assert "20 vectors" in done.stderr
    table = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert table["id"].to_pylist() == [f"p{n}" for n in range(20)]
    wrong = CliRunner().invoke(app, ["embed", str(tiny_model), str(corpus), "--output", "int4"], env={"COLUMNS": "200"})
    assert wrong.exit_code == 2 and "'int4' is not one of 'float32'" in wrong.output

    asked = gecko("search", tiny_model, corpus, "--index", tmp_path / "index", "--json", "-k", 3, "-q", texts[4])
    answer = json.loads(asked.stdout)
    assert (answer["query"], len(answer["hits"])) == (texts[4], 3)
    assert answer["hits"][0]["passage"]["id"] == "p4"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    typed = gecko("search", tiny_model, corpus, stdin=f"{texts[7]}\n")
    assert texts[7] in typed.stdout
    assert len(list((tmp_path / "cache" / "gecko" / "index").iterdir())) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["-q", "cat", "-k", 0], "k = 0: give at least 1"),
        (["-q", "cat", "-q", "  "], "--query '  ' is blank"),
        (["-q", "caf\udce9"], r"--query 'caf.udce9' holds half a surrogate pair"),
    ],
)
def test_what_cannot_be_searched_is_told_before_anything_is_read(given: list[object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gecko("search", "no model", "no corpus", *given)


def test_what_is_not_read_is_told(tiny_model: Path, words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "guide.md").write_text(f"# Read me\n\n{' '.join(words[:8])}\n")
    (folder / "rows.jsonl").write_text('{"text": "a row beside documents"}\n')
    (folder / ".#lock").symlink_to(folder / "gone")
    for _ in range(2):
        first = gecko("search", tiny_model, folder, "--index", tmp_path / "index", "-q", words[3])
        (folder / ".git").mkdir(exist_ok=True)
        (folder / ".git" / "head").write_text("no part of the corpus")
    assert "building" not in first.stderr
    first = gecko("search", tiny_model, folder, "--index", tmp_path / "other", "-q", words[3])
    assert "1 files skipped: rows beside documents" in " ".join(first.stderr.split())
    assert "1 files skipped: rows beside documents" in " ".join(gecko("embed", tiny_model, folder).stderr.split())
    with pytest.raises(ConfigError, match="index lies in the corpus folder"):
        gecko("search", tiny_model, folder, "--index", folder / "index", "-q", words[3])


def test_long_texts_are_split_if_asked(tiny_model: Path, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "long.md"
    text = "\n\n".join(f"## Part {n}\n\n" + " ".join(words[n % 20 : n % 20 + 9]) * 40 for n in range(6))
    file.write_text(f"# All\n\n{text}\n")
    assert len(gecko("embed", tiny_model, file).stdout.splitlines()) == 1
    ids = [json.loads(line)["id"] for line in gecko("embed", tiny_model, file, "--chunk").stdout.splitlines()]
    found = json.loads(
        gecko("search", tiny_model, file, "--index", tmp_path / "i", "--json", "-k", 100, "-q", words[3]).stdout
    )
    assert sorted(ids) == sorted(hit["passage"]["id"] for hit in found["hits"])
    assert len(ids) > 1
    with pytest.raises(ConfigError, match="--chunk: lines of standard input are taken as they are"):
        gecko("embed", tiny_model, "--chunk", stdin="a\n")
    with pytest.raises(ConfigError, match="--workers: for --engine ray only"):
        gecko("embed", tiny_model, "--workers", 3, stdin="a\n")


def test_no_vector_with_nan_is_written(tiny_model: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(tiny_model), device="cpu")
    fish = model.tokenizer.convert_tokens_to_ids("fish")
    model.transformers_model.embeddings.word_embeddings.weight.data[fish] = float("nan")
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"_id": "d7", "text": "the red cat"}, {"_id": "d8", "text": "a fish flies"}]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for options in ((), ("--output", "int8"), ("-o", tmp_path / "vectors")):
        with pytest.raises(NonFiniteError, match=r"row d8 \('a fish flies'\): its vector holds NaN") as raised:
            gecko("embed", tmp_path / "model", corpus, *options)
        assert raised.value.index == 1
    assert not list((tmp_path / "vectors").glob("part-*.parquet"))
    with pytest.raises(NonFiniteError, match="row 2 .'fish'"):
        gecko("embed", tmp_path / "model", stdin="the red cat\nfish\n")
    with pytest.raises(NonFiniteError, match="row d8"):
        gecko("search", tmp_path / "model", corpus, "--index", tmp_path / "index", "-q", "cat")
    corpus.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(NonFiniteError, match="text 1 .'big fish'"):
        gecko("search", tmp_path / "model", corpus, "--index", tmp_path / "other", "-q", "big fish")
