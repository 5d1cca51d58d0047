"""A random BERT of 2 layers and 32 numbers, rows to train it on, and trainings of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gecko.config.training import TrainConfig
from gecko.core.records import Example, Text
from gecko.training import train
from gecko.training.loss import GeckoLoss

TEXT = "red green blue cat dog bird river stone cloud fast slow old new small large north south paper wood iron"
WORDS = TEXT.split()

CONFIG = TrainConfig(
    epochs=3, batch=8, learning_rate=1e-3, max_tokens=16, checkpoint_steps=2, bf16=False
)  # 3 steps an epoch


class Stop(Exception):
    """Ends a training from inside, as a kill would, but without a process of its own."""


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz|:."]
    (folder / "vocab.txt").write_text("\n".join(vocab))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        bert = BertModel(
            BertConfig(
                vocab_size=len(vocab),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
                initializer_range=0.3,
            )
        )
    bert.save_pretrained(folder / "bert")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="mean")]).save_pretrained(
        str(folder / "model"), create_model_card=False
    )
    return folder / "model"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """On matrices this small a second thread only waits, and for long on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """20 rows: (two words, a text with them, a text without); every fifth row has no negative."""
    rows = []
    for i in range(20):
        a, b, c = WORDS[i], WORDS[(i + 3) % 20], WORDS[(i + 9) % 20]
        negatives = () if i % 5 == 0 else (Text(f"n{i}", "", f"{c} {c} paper"),)
        rows.append(
            Example(
                "toy", "", f"{a} {b}", Text(f"p{i}", a, f"{b} {a} stone"), negatives, group=f"p{i}", query_id=f"q{i}"
            )
        )
    return rows


@pytest.fixture(scope="session")
def run_in(tiny_bert, examples):
    """Train in a folder; gives the report, the weights and what was said."""

    def go(folder, config=CONFIG, rows=examples, seed=3, start=tiny_bert, sampling=None):
        said: list[str] = []
        report = train(
            rows,
            str(start),
            folder / "model",
            "native",
            config,
            seed,
            checkpoints=folder / "checkpoints",
            say=said.append,
            sampling=sampling,
        )
        return report, load_file(folder / "model" / "model.safetensors"), said

    return go


@pytest.fixture
def run(run_in, tmp_path):
    """The same in ``tmp_path / name``."""
    return lambda name="run", **kwargs: run_in(tmp_path / name, **kwargs)


@pytest.fixture(scope="session")
def whole(run_in, tmp_path_factory):
    """A training that nothing disturbed."""
    return run_in(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def stop_before(monkeypatch):
    """Make the loss raise ``Stop`` at its n-th call from now, once."""
    plain = GeckoLoss.forward

    def arm(call):
        calls = iter(range(1, 1000))

        def forward(self, *args):
            if next(calls) == call:
                raise Stop
            return plain(self, *args)

        monkeypatch.setattr(GeckoLoss, "forward", forward)

    return arm
