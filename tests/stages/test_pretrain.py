"""`gecko pretrain`: from pairs to a plain sentence-transformers model, one source a batch, resumed exactly."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import gecko
from gecko.cli.main import app
from gecko.core.errors import RunError, TrainingError
from gecko.training import Sampling
from gecko.training.loss import GeckoLoss

from ..training.conftest import one_thread, tiny_bert

__all__ = ["one_thread", "tiny_bert"]  # fixtures

pytestmark = pytest.mark.slow

WORDS = "red green blue cat dog bird river stone cloud fast slow old new small large north south paper wood iron"
SETTINGS = (
    "pretrain.batch=8",
    "pretrain.epochs=4",
    "pretrain.learning_rate=1e-3",
    "pretrain.formats=['native']",
    "pretrain.max_tokens=24",
    "pretrain.checkpoint_steps=3",
    "pretrain.bf16=false",
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    words = WORDS.split()
    for name, ending, step in (("facts", "paper", 3), ("titles", "stone", 7)):
        lines = [
            {
                "query": f"{words[n]} {words[(n + step) % 20]}",
                "title": "",
                "text": f"{words[(n + step) % 20]} {words[n]} {ending}",
            }
            for n in range(20 if name == "facts" else 14)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def command(pairs, model, out, *more):
    sets = [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]
    return ["pretrain", str(pairs), "-o", str(out), "--start", str(model), *sets]


def run(*args):
    result = CliRunner().invoke(app, command(*args), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def whole(pairs, tiny_bert, tmp_path_factory):
    """A run that nothing disturbed, and the queries of each batch."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(pairs, tiny_bert, out, 'pretrain.tasks.facts="fact checking"')
    return out


def weights(out):
    return load_file(out / "model" / "model.safetensors")


def test_the_model_is_plain_and_has_learned(whole):
    from sentence_transformers import SentenceTransformer

    assert SentenceTransformer(str(whole / "model"), device="cpu").encode(["red cat"]).shape == (1, 32)
    saved = json.loads((whole / "model" / "config_sentence_transformers.json").read_text())
    assert saved["matryoshka_dimensions"] == [32, 16, 8]
    report = json.loads((whole / "pretrain" / "training.json").read_text())
    assert (report["rows"], report["steps"]) == (34, 20)
    losses = [loss for _, loss in report["losses"]]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])  # the last epoch against the first: the same pairs
    assert not (whole / "pretrain" / "checkpoints").exists()


def test_eq_2_by_source_with_the_sources_task(pairs, tiny_bert, tmp_path, monkeypatch):
    given = {}

    def train(rows, start, folder, form, config, seed, *, sampling, **_):
        given.update(rows=rows, form=form, loss=config.loss, sampling=sampling)
        raise TrainingError("seen")

    monkeypatch.setattr("gecko.training.train", train)
    more = ('pretrain.tasks.facts="fact checking"', "pretrain.weights.titles=2.0", "pretrain.formats=['unified']")
    with pytest.raises(TrainingError, match="seen"):
        run(pairs, tiny_bert, tmp_path / "run", *more, "pretrain.sampling_temperature=3.0", "pretrain.bucket=5")
    tasks = {(row.dataset, row.task, row.negatives) for row in given["rows"]}
    assert tasks == {("facts", "fact checking", ()), ("titles", "search result", ())}
    assert given["form"] == "unified"
    assert (given["loss"].same_tower, given["loss"].hard_negatives) == (False, "none")
    assert given["sampling"] == Sampling({"titles": 2.0}, 3.0, 5)


def test_one_pair_alone_teaches_nothing(tiny_bert, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text('{"query": "red cat", "text": "a red cat"}\n' * 2)
    with pytest.raises(TrainingError, match="has 1 pair; give two or more.*dropped: 1 pair that was there before"):
        run(path, tiny_bert, tmp_path / "run")


CHILD = """
    import os, signal, sys
    import torch
    from gecko.cli.main import app
    from gecko.training.loss import GeckoLoss

    torch.set_num_threads(1)
    plain, calls = GeckoLoss.forward, iter(range(1, 1000))

    def forward(self, *args):
        if next(calls) == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *args)

    GeckoLoss.forward = forward
    app(sys.argv[1:])
"""


def test_killed_and_started_again_equals_uninterrupted(whole, pairs, tiny_bert, tmp_path):
    args = command(pairs, tiny_bert, tmp_path / "cut", 'pretrain.tasks.facts="fact checking"')
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(gecko.__file__).parents[1])}
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), *args], env=environment, timeout=300, check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "model").exists()
    result = CliRunner().invoke(app, args, catch_exceptions=False)
    assert "training continues after step 9" in result.stderr
    one, other = weights(whole), weights(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_is_not_repeated_and_other_settings_make_it_anew(pairs, tiny_bert, tmp_path, monkeypatch):
    out, short = tmp_path / "run", "pretrain.epochs=1"
    run(pairs, tiny_bert, out, short)
    with monkeypatch.context() as patch:
        patch.setattr(GeckoLoss, "forward", None)
        run(pairs, tiny_bert, out, short)
    again = run(pairs, tiny_bert, out, short, "pretrain.weights.facts=2.0")
    assert "settings changed" in again.stderr


def test_the_folder_of_another_kind_of_run_is_left_alone(pairs, tiny_bert, tmp_path):
    (tmp_path / "ingest").mkdir()
    with pytest.raises(RunError, match="gecko distill"):
        run(pairs, tiny_bert, tmp_path)
