import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gecko.core.progress import Silent

_WORDS = (
    "the a of in and to is red blue green cat dog fish bird house tree river car runs sleeps eats flies big small old "
    "new fast slow search result task query title text none fact checking : | , . ? { }"
)


class Listener(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random BERT of 2 layers and 32 dimensions, as sentence-transformers saves it; window 48 tokens."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *_WORDS.split(),
        *letters[1:],
        *(f"##{one}" for one in letters),
    ]
    raw = folder / "raw"
    raw.mkdir()
    (raw / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(str(raw / "vocab.txt"), model_max_length=48)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(raw)
    tokenizer.save_pretrained(raw)
    transformer = Transformer(str(raw))
    model = SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")
    saved = folder / "model"
    model.save_pretrained(str(saved), create_model_card=False)
    return saved


@pytest.fixture(scope="session")
def towers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two towers: passages have the vectors of the tiny model, queries those of another."""
    import torch
    from sentence_transformers import SentenceTransformer

    from gecko.encoder import save_model
    from gecko.encoder.towers import name_passages, two_towers

    queries, passages = (SentenceTransformer(str(tiny_model), device="cpu") for _ in range(2))
    moved = torch.Generator().manual_seed(1)
    for weight in queries.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=moved)
    folder = tmp_path_factory.mktemp("towers") / "model"
    save_model(two_towers(queries, passages), folder, "native")
    name_passages(folder, str(tiny_model))
    return folder


TEXT = """
river stone bread light engine garden winter copper signal market forest bottle school violin harbour pepper
saddle thunder meadow pencil carpet bridge candle orchard compass hammer lantern pillow ribbon tunnel walnut
"""


@pytest.fixture(scope="session")
def words() -> list[str]:
    """Plain words for passages."""
    return TEXT.split()


def write_corpus(path: Path, words: Sequence[str]) -> Path:
    """60 short passages as JSON lines: no two alike, some near each other."""
    with path.open("w") as lines:
        for number in range(60):
            chosen = [words[(number * 7 + step * (1 + number % 5)) % len(words)] for step in range(12)]
            row = {"_id": f"p{number}", "title": chosen[0], "text": f"passage {number} about " + " ".join(chosen)}
            lines.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def sets(words: list[str], tmp_path: Path) -> list[Path]:
    """Two BEIR folders of 60 passages and 12 queries each."""
    folders = []
    for place, name in enumerate(("one", "two")):
        folder = tmp_path / name
        (folder / "qrels").mkdir(parents=True)
        write_corpus(folder / "corpus.jsonl", words[place:])
        ids = [json.loads(line)["_id"] for line in (folder / "corpus.jsonl").read_text().splitlines()]
        queries = [{"_id": f"q{row}", "text": f"{words[row]} and {words[row + 1]}"} for row in range(12)]
        (folder / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in queries))
        judged = "".join(f"q{row}\t{ids[row]}\t1\n" for row in range(12))
        (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
        folders.append(folder)
    return folders


def load_script(path: Path) -> ModuleType:
    """A script outside the package, as a module."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_script", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def rewrite_shards(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Have the shards of a stage be those of a version whose records were others."""
    from gecko.core.files import file_sha256

    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for shard in manifest["shards"]:
        pq.write_table(change(pq.read_table(folder / shard["file"])), folder / shard["file"])
        shard["sha256"] = file_sha256(folder / shard["file"])
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for this test alone, and no model hub."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("GECKO_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return cache
