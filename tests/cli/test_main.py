"""The commands as a person types them: each mistake is one clear message and the exit code of its kind; nothing is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

GECKO = [sys.executable, "-c", "from gecko.cli.main import main; main()"]


def gecko(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GECKO, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **env},
    )


@pytest.fixture(scope="module")
def corpus(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows = [
        {
            "_id": f"p{n}",
            "title": f"Item {n}",
            "text": "the row of " + " ".join(words[(n * 7 + k * (1 + n % 5)) % len(words)] for k in range(9)),
        }
        for n in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(model: Path) -> list[str]:
    settings = (
        "generate.queries=10",
        "generate.min_seed_chars=10",
        "generate.neighbourhood=3",
        "mine.n=5",
        "select.min_rc=null",
        "train.epochs=1",
        "train.min_steps=0",
        "train.max_tokens=32",
        "check.enabled=false",
        "evaluate.resamples=100",
    )
    return ["--llm", "fake", "--start", str(model), *(word for item in settings for word in ("--set", item))]


@pytest.fixture(scope="module")
def run(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = gecko("distill", corpus, "-o", folder, *options(tiny_model))
    assert done.returncode == 0, done.stderr
    assert "agreement" in done.stdout and "report.html" in done.stdout
    return folder


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    for word in words:
        assert word in done.stderr


def test_a_run_ends_with_what_it_showed_for_people_and_programs(run: Path, corpus: Path, tiny_model: Path) -> None:
    kept = json.loads((run / "summary.json").read_text())
    assert kept["better"] == {"verdict": "unmeasured", "sets": []} and "--eval DIR" in kept["next"]
    assert kept["learned"]["verdict"] in ("yes", "unproven", "worse") and kept["rows"]["made"] > 0
    assert (run / kept["model"]).is_dir() and (run / kept["report"]).is_file()
    again = gecko("distill", corpus, "-o", run, *options(tiny_model))
    assert again.returncode == 0, again.stderr
    for words in ("Learned from the teacher   ", "Better search              unmeasured", "Rows      ", "\nNext  "):
        assert words in again.stdout
    assert f"Rows and judgements        {run / 'report.html'}\n" in again.stdout
    assert f"gecko serve {run / 'model'} --start {tiny_model} --corpus {corpus}\n" in again.stdout
    for command in (("evaluate", run), ("distill", corpus, "-o", run, *options(tiny_model))):
        done = gecko(*command, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"run": str(run)} | kept


@pytest.mark.parametrize("command", ["distill", "pretrain"])
def test_a_misspelt_corpus_leaves_nothing_behind(command: str, tmp_path: Path, tiny_model: Path) -> None:
    missing = tmp_path / "corpsu.jsonl"
    arguments = options(tiny_model) if command == "distill" else ["--start", str(tiny_model)]
    refused(gecko(command, missing, "-o", tmp_path / "run", *arguments), "corpsu.jsonl")
    assert not any(tmp_path.iterdir())
    (tmp_path / "run").mkdir()  # somebody else's
    refused(gecko(command, missing, "-o", tmp_path / "run", *arguments), "corpsu.jsonl")
    assert (tmp_path / "run").is_dir()


def test_each_stage_runs_alone_on_a_finished_run(run: Path) -> None:
    for stage in ("ingest", "generate", "mine", "relabel", "select", "train", "evaluate", "report"):
        done = gecko(stage, run)
        assert done.returncode == 0, (stage, done.stderr)


def test_a_setting_can_be_changed_for_one_stage(run: Path) -> None:
    done = gecko("select", run, "--set", "select.negative=none")
    assert done.returncode == 0, done.stderr
    assert "done again" in done.stderr
    back = gecko("select", run, "--set", "select.negative=last")
    assert "taken back from archive" in back.stderr


def test_a_setting_of_the_corpus_reads_it_again(run: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    manifest = folder / "ingest" / "manifest.json"
    before = sum(shard["rows"] for shard in json.loads(manifest.read_text())["shards"])
    done = gecko("select", folder, "--set", "corpus.min_chars=70")
    assert done.returncode == 0, done.stderr
    assert 0 < sum(shard["rows"] for shard in json.loads(manifest.read_text())["shards"]) < before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["missing.jsonl", "does not exist"]),
        (b"", ["missing.jsonl"]),
        (b'{"text": "fine and long enough"}\n{"text": broken}\n', ["missing.jsonl:2"]),
        (b'{"text": "caf\xe9"}\n', ["missing.jsonl:1", "UTF-8"]),
        (
            b'{"_id": "a", "text": "one thing"}\n{"_id": "a", "text": "another"}\n',
            ["missing.jsonl:1", "missing.jsonl:2"],
        ),
        (b'{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n', ["3 passages", "mine.n"]),
    ],
)
def test_bad_corpora(content: bytes | None, words: list[str], tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "missing.jsonl"
    if content is not None:
        path.write_bytes(content)
    refused(gecko("distill", path, "-o", tmp_path / "run", *options(tiny_model)), *words)


def test_a_passage_of_a_megabyte_is_split_and_counted(words: list[str], tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "long.jsonl"
    text = " ".join(
        f"{words[n % 31]} and {words[n * n % 29]} and {words[n // 31 % 23]} say {n}." for n in range(40_000)
    )
    assert len(text) > 1_000_000
    path.write_text(json.dumps({"text": text}) + "\n")
    done = gecko("distill", path, "-o", tmp_path / "run", *options(tiny_model))
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "ingest" / "manifest.json").read_text())
    assert manifest["shards"][0]["notes"]["split"] == 1
    assert manifest["shards"][0]["rows"] > 400


def test_bad_settings(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = ["distill", corpus, "-o", tmp_path / "run", *options(tiny_model)]
    refused(gecko(*run, "--set", "mine.m=3"), "mine.m", "mine.n", code=2)
    refused(gecko(*run, "--budget", "soon"), "soon", "20m", code=2)
    refused(gecko(*run, "--llm", "gpt-9"), "gpt-9", "hf:NAME", code=2)
    refused(gecko(*run, "--llm", "gguf:/nowhere/model.gguf"), "/nowhere/model.gguf", code=2)
    refused(gecko(*run, "--start", "/nowhere"), "/nowhere", code=2)
    refused(gecko(*run, "-c", tmp_path / "none.toml"), "none.toml", code=2)
    (tmp_path / "bad.toml").write_text("[train]\nepoch = 3\n")
    refused(gecko(*run, "-c", tmp_path / "bad.toml"), "bad.toml", "train.epoch", "train.epochs", code=2)
    refused(gecko("select", tmp_path / "empty"), "is not a run", "gecko distill")


def test_a_run_of_other_settings_is_not_touched(run: Path, corpus: Path, tiny_model: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*.parquet")}
    refused(
        gecko("distill", corpus, "-o", run, *options(tiny_model), "--set", "mine.n=4"), "mine.n: 5 -> 4", "--restart"
    )
    assert {path: path.read_bytes() for path in run.rglob("*.parquet")} == before


def test_a_full_disk_is_named_and_the_run_goes_on_after_it(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    code = (
        "import errno, os, sys\n"
        "from gecko.core import files\n"
        "kept, left = files.os.fsync, [9]\n"
        "def full(handle):\n"
        "    left[0] -= 1\n"
        "    if left[0] < 0: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "    return kept(handle)\n"
        "files.os.fsync = full\n"
        "from gecko.cli.main import main; main()\n"
    )
    arguments = ["distill", str(corpus), "-o", str(tmp_path / "run"), *options(tiny_model)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=env
    )
    refused(done, "No space left", "run the same command again")
    again = gecko(*arguments)
    assert again.returncode == 0, again.stderr


def unpadded(folder: Path) -> None:
    """A language model as it was pre-trained: its tokenizer has no padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "the": 2, "row": 3, "of": 4}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaModel(LlamaConfig(vocab_size=12, **size)).save_pretrained(folder)


def test_eval_prints_the_documented_json(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "squares"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_bytes(corpus.read_bytes())
    rows = [json.loads(line) for line in corpus.read_text().splitlines()[:8]]
    asked = [{"_id": f"q{n}", "text": " ".join(row["text"].split()[3:7])} for n, row in enumerate(rows)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (folder / "qrels" / "dev.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\tp{n}\t1\n" for n in range(8))
    )
    done = gecko("eval", tiny_model, f"{folder}@dev", "--baseline", tiny_model, "--json", "--no-cache")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["sets"]["squares"]
    assert row["queries"] == 8
    assert row["delta"] == 0 and row["ci95"] == [0, 0] and row["baseline"] == row["ndcg@10"]
    assert 0 < row["bm25"] <= 1
    refused(gecko("eval", tiny_model, folder, "--json", "--no-cache"), "dev")
    raw = tmp_path / "raw"
    unpadded(raw)
    command = ("eval", raw, f"{folder}@dev", "--json", "--no-cache")
    refused(gecko(*command), "has no padding token", "--pad-token '</s>' for gecko eval", code=2)
    done = gecko(*command, "--pad-token", "</s>")
    assert done.returncode == 0 and json.loads(done.stdout)["sets"]["squares"]["queries"] == 8, done.stderr
    table = gecko("eval", tiny_model, f"{folder}@dev", "--dim", 8, "--no-cache")
    assert table.returncode == 0 and "squares" in table.stdout


@pytest.mark.parametrize(("option", "first"), [("--version", "gecko "), ("--help", "Usage: ")])
def test_help_and_version_import_nothing_heavy(option: str, first: str) -> None:
    code = """
import sys
from gecko.cli.main import main
try:
    main()
finally:
    heavy = {"torch", "numpy", "pyarrow", "transformers", "gecko.config.section", "rich.progress"}
    assert not heavy & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip().startswith(first), done.stderr


def test_ctrl_c_is_told_and_waits_for_no_thread() -> None:
    program = """
import threading
from gecko.cli import main
@main.app.command()
def hang():
    threading.Thread(target=threading.Event().wait).start()  # not a daemon: the interpreter would wait for it
    raise KeyboardInterrupt
main.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "hang"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (130, "stopped; run the same command again to continue\n")
