"""``benchmarks/trust.py``: the order of systems by two judgements of the same queries."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gecko.core.errors import GeckoError


@pytest.fixture(scope="module")
def trust() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "trust.py"
    spec = importlib.util.spec_from_file_location("trust", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder: Path, words: list[str], prefix: str, turned: bool) -> Path:
    """40 passages and 10 queries; their judgements call the passage of the query's words relevant, or another one."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 6)) for _ in range(40)]
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"{prefix}{n}", "title": "", "text": text} for n, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [(f"{prefix}q{n}", " ".join(texts[n].split()[:4]) + ("?" if prefix == "b" else "")) for n in range(10)]
    lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in queries]
    (folder / "queries.jsonl").write_text("".join(lines))
    pairs = [f"{prefix}q{n}\t{prefix}{(n + 17) % 40 if turned else n}\t1\n" for n in range(10 if prefix == "a" else 8)]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(pairs))
    return folder


def test_the_same_judgements_order_alike(
    trust: ModuleType,
    words: list[str],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    own_cache: Path,
) -> None:
    human, judged = write(tmp_path / "human", words, "a", False), write(tmp_path / "judged", words, "b", False)
    trust.main([f"{human}={judged}", "--system", str(tiny_model), "--system", f"{tiny_model}@8"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    row = result["sets"]["human"]
    assert (row["queries"], row["left_out"], row["pairs"]) == (8, 2, 3)
    assert set(row["systems"]) == {"bm25", str(tiny_model), f"{tiny_model}@8"}
    assert row["systems"]["bm25"][0] == row["systems"]["bm25"][1] == 1.0
    assert row["spearman"] == pytest.approx(1) and row["sign"] == 1 and result["ratio"] == 1
    trust.main(["--log", str(human)])
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_other_judgements_are_told(trust: ModuleType, words: list[str], tiny_model: Path, tmp_path: Path) -> None:
    human, judged = write(tmp_path / "human", words, "a", False), write(tmp_path / "judged", words, "b", True)
    one, two = trust.load_set(str(human)), trust.load_set(str(judged))
    models = {name: trust.load_system(name, tmp_path / "kept") for name in (str(tiny_model), f"{tiny_model}@4")}
    found = trust.compare(one, two, models)
    assert found["spearman"] < 1 and found["pairs_sure"] >= 1
    assert found["systems"]["bm25"][0] > found["systems"]["bm25"][1]
    (judged / "queries.jsonl").write_text('{"_id": "bq0", "text": "nothing alike"}\n')
    with pytest.raises(GeckoError, match="share no query"):
        trust.shared(one, trust.load_set(str(judged)))
