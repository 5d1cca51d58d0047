import copy
import itertools
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sentence_transformers import SentenceTransformer, quantize_embeddings

import gecko
from gecko.core import formats
from gecko.core.errors import ConfigError, NonFiniteError
from gecko.core.formats import TASKS, find_task
from gecko.core.records import Text
from gecko.encoder import (
    Embedder,
    Encoder,
    embedder,
    encode_output,
    load_encoder,
    model_identity,
    resolve_model,
    save_model,
    shorten,
)
from gecko.encoder.embedder import token_batches
from gecko.encoder.packed import int8_works

from .conftest import sentences


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Embedder:
    return gecko.load(str(tiny_model), precision="float32")


@pytest.fixture(scope="module")
def unified(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("unified")
    save_model(SentenceTransformer(str(tiny_model), device="cpu"), folder, "unified")
    return gecko.load(str(folder), precision="float32")


@pytest.mark.parametrize(("budget", "window"), [(1, 5), (100, 7), (100_000, 1000)])
def test_equals_sentence_transformers(
    plain: Embedder, tiny_model: Path, budget: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain._sides["query"].backend, "batch_tokens", budget)
    monkeypatch.setattr(embedder, "WINDOW", window)
    texts = sentences(30)
    expected = SentenceTransformer(str(tiny_model), device="cpu").encode(texts, normalize_embeddings=True)
    got = plain.embed(texts)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2  # the model does tell texts apart


def test_one_text_and_none(plain: Embedder) -> None:
    np.testing.assert_allclose(plain.embed("the cat"), plain.embed(["the cat"])[0])
    assert plain.embed([]).shape == (0, 32)
    assert plain.embed([], dim=8, output="binary").shape == (0, 1)
    assert plain.run([]).shape == (0, 32)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "RETRIEVAL_DOCUMENT"])
def test_each_task_is_the_saved_prompt_of_its_name(unified: Embedder, name: str) -> None:
    task = TASKS[name]
    plainly = SentenceTransformer(unified.spec, device="cpu")
    expected = plainly.encode("the cat", prompt_name=task.text, normalize_embeddings=True)
    for spelling in (name, name.lower(), task.text, task.text.title()):
        np.testing.assert_allclose(unified.embed("the cat", task=spelling), expected, atol=1e-5)
    others = [unified.embed("the cat", task=other) for other in TASKS if other != name]
    assert min(np.abs(expected - other).max() for other in others) > 1e-3


def test_documents_have_titles(unified: Embedder, plain: Embedder) -> None:
    model = SentenceTransformer(unified.spec, device="cpu")
    got = unified.embed(["cat", "dog", "fish"], title=["red", "", "big"])
    texts = ["title: red | text: cat", "title: none | text: dog", "title: big | text: fish"]
    np.testing.assert_allclose(got, model.encode(texts, normalize_embeddings=True), atol=1e-5)
    np.testing.assert_allclose(unified.embed(["cat"], title="red")[0], got[0], atol=1e-5)
    np.testing.assert_allclose(
        plain.embed("cat", title="red"), model.encode("red\ncat", normalize_embeddings=True, prompt=""), atol=1e-5
    )
    np.testing.assert_allclose(unified.passages([Text("1", "red", "cat")])[0], got[0], atol=1e-5)


def test_a_task_in_words(unified: Embedder) -> None:
    model = SentenceTransformer(unified.spec, device="cpu")
    expected = model.encode("task: big red fish | query: cat", normalize_embeddings=True)
    np.testing.assert_allclose(unified.embed("cat", task="big  red fish"), expected, atol=1e-5)
    np.testing.assert_allclose(unified.queries(["cat"], "big red fish")[0], expected, atol=1e-5)
    np.testing.assert_allclose(unified.queries(["cat"]), unified.embed(["cat"], task="RETRIEVAL_QUERY"), atol=1e-6)


def test_native_models_use_their_makers_prompts(tiny_model: Path, tmp_path: Path) -> None:
    prompts = {"query": "search ", "passage": "text ", "Clustering": "red "}
    model = SentenceTransformer(str(tiny_model), device="cpu", prompts=prompts)
    model.save_pretrained(str(tmp_path), create_model_card=False)
    ours = gecko.load(str(tmp_path), precision="float32")
    plain = model.encode(["search cat", "text cat", "red cat", "cat"], normalize_embeddings=True, prompt="")
    got = [
        ours.embed("cat", task=task)
        for task in ("FACT_VERIFICATION", "RETRIEVAL_DOCUMENT", "CLUSTERING", "SEMANTIC_SIMILARITY")
    ]
    np.testing.assert_allclose(got, plain, atol=1e-5)
    np.testing.assert_allclose(ours.queries(["cat"]), plain[:1], atol=1e-5)


def test_wrong_requests(plain: Embedder) -> None:
    with pytest.raises(ConfigError, match="RETRIEVAL_QERY.*RETRIEVAL_QUERY"):
        plain.embed("cat", task="RETRIEVAL_QERY")
    with pytest.raises(ConfigError, match="only texts of the task RETRIEVAL_DOCUMENT"):
        plain.embed("cat", task="CLUSTERING", title="x")
    with pytest.raises(ConfigError, match="2 texts but 1 titles"):
        plain.embed(["cat", "dog"], title=["x"])
    for dim in (0, 33):
        with pytest.raises(ConfigError, match="32 dimensions"):
            plain.embed("cat", dim=dim)
    with pytest.raises(ConfigError, match="text 2 is a NoneType"):
        plain.embed(["cat", None])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="text 2 holds half of a surrogate"):
        plain.embed(["cat and dog", "\ud800"])
    with pytest.raises(ConfigError, match="title 1 holds half of a surrogate"):
        plain.prepare(["cat"], title="\udfff")
    with pytest.raises(ConfigError, match="multiple of 8"):
        plain.embed("cat", dim=9, output="binary")


def test_shorter_vectors_have_unit_length(plain: Embedder) -> None:
    full, cut = plain.embed(sentences(5)), plain.embed(sentences(5), dim=8)
    np.testing.assert_allclose(cut, full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True), atol=1e-6)
    assert (shorten(np.zeros((1, 4), dtype=np.float32), 2) == 0).all()


def test_int8_and_binary(plain: Embedder) -> None:
    texts = sentences(20)
    full = plain.embed(texts)
    small = plain.embed(texts, output="int8")
    assert small.dtype == np.int8
    assert (np.abs(small.astype(int)).max(axis=1) == 127).all()
    wide = small.astype(np.float32)
    assert ((wide * full).sum(axis=1) / np.linalg.norm(wide, axis=1)).min() > 0.9999
    bits = plain.embed(texts, output="binary")
    assert bits.dtype == np.uint8
    np.testing.assert_array_equal(bits, quantize_embeddings(full, "ubinary"))
    np.testing.assert_array_equal(
        plain.embed(texts, dim=16, output="binary"), encode_output(shorten(full, 16), "binary")
    )


def test_prepare_and_run_mix_requests(unified: Embedder) -> None:
    requests = [("RETRIEVAL_QUERY", sentences(4)), ("RETRIEVAL_DOCUMENT", sentences(3)), ("CLUSTERING", ["cat"])]
    prepared = [unified.prepare(texts, task=task) for task, texts in requests]
    together = unified.run(list(itertools.chain(*prepared)))
    apart = np.concatenate([unified.embed(texts, task=task) for task, texts in requests])
    np.testing.assert_allclose(together, apart, atol=1e-5)
    model = SentenceTransformer(unified.spec, device="cpu")
    for (_, texts), items in zip(requests, prepared, strict=True):
        for text, item in zip(texts, items, strict=True):
            assert text in item.text
            ids = model.preprocess([item.prompt + item.text])["input_ids"][0].tolist()
            assert (list(item.ids or ()), item.tokens) == (ids, len(ids))
    assert max(item.tokens for item in prepared[0]) == unified.max_tokens == 48


def test_token_batches() -> None:
    tokens = [50, 20, 20, 7, 7, 7, 1]
    assert [tokens[rows] for rows in token_batches(tokens, 40)] == [[50], [20, 20], [7, 7, 7, 1]]


def test_threads(plain: Embedder) -> None:
    texts = sentences(40)
    expected = plain.embed(texts)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: plain.embed(texts), range(16)):
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_bfloat16_is_close(plain: Embedder, tiny_model: Path) -> None:
    half = gecko.load(str(tiny_model), precision="bfloat16")
    assert (plain.precision, half.precision) == ("float32", "bfloat16")
    expected, got = plain.embed(sentences(12)), half.embed(sentences(12))
    assert (got * expected).sum(axis=1).min() >= 0.999
    assert np.abs(got - expected).max() > 1e-6  # it was bfloat16


def test_a_model_that_is_no_plain_transformer(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = SentenceTransformer(str(tiny_model), device="cpu").tokenizer
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    save_model(static, tmp_path, "unified")
    ours = gecko.load(str(tmp_path))
    expected = static.encode(["title: none | text: red cat", "title: none | text: fish"], normalize_embeddings=True)
    np.testing.assert_allclose(ours.embed(["red cat", "fish"]), expected, atol=1e-6)
    assert [item.tokens for item in ours.prepare(["red cat", "fish"])] == [8, 7]
    with pytest.raises(ConfigError, match="float32"):
        gecko.load(str(tmp_path), precision="bfloat16")


def test_task_names() -> None:
    texts = formats.prompts("unified").keys() - {"query", "document"} - formats.MTEB_TASKS.keys()
    assert {find_task(text).name for text in texts} == TASKS.keys() - {"RETRIEVAL_DOCUMENT"}
    assert set(formats.MTEB_TASKS.values()) <= texts
    assert find_task("retrieval-document").side == "document"
    assert find_task("find the answer").text == "find the answer"


def test_retrieval_never_takes_the_default_prompt_of_the_other_side(tiny_model: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(
        str(tiny_model), device="cpu", prompts={"query": "search "}, default_prompt_name="query"
    )
    model.save_pretrained(str(tmp_path), create_model_card=False)
    ours, encoder = gecko.load(str(tmp_path), precision="float32"), load_encoder(str(tmp_path), bf16=False)
    passage = Text("", "", "cat")
    np.testing.assert_allclose(ours.embed("cat", task="RETRIEVAL_DOCUMENT"), encoder.passages([passage])[0], atol=1e-5)
    np.testing.assert_allclose(ours.embed("cat", task="CLUSTERING"), encoder.queries(["cat"])[0], atol=1e-5)


def test_a_column_of_a_table_is_taken_by_position(plain: Embedder, unified: Embedder, tiny_model: Path) -> None:
    texts = sentences(9)
    labels = [(4 * place + 3) % len(texts) for place in range(len(texts))]
    column, titles = pd.Series(texts, index=labels), pd.Series(["red", "blue"] * 5 + ["green"], index=labels)
    expected = unified.embed(texts, title=titles.tolist())
    np.testing.assert_allclose(unified.embed(column, title=titles), expected, atol=1e-6)
    np.testing.assert_allclose(unified.embed(iter(texts), title=titles), expected, atol=1e-6)
    kept = column[column.str.contains("cat")]
    np.testing.assert_allclose(plain.embed(kept), plain.embed(list(kept)), atol=1e-6)
    tasks = pd.Series([f"find {number}" for number in range(len(texts))], index=labels)
    items = [Text("", "", text) for text in texts]
    for model in (unified, load_encoder(unified.spec)):
        expected = model.queries(texts, tasks.tolist())
        np.testing.assert_allclose(model.queries(column, tasks), expected, atol=1e-6)
        np.testing.assert_allclose(model.passages(pd.Series(items, index=labels)), model.passages(items), atol=1e-6)
    native = load_encoder(str(tiny_model))
    np.testing.assert_allclose(
        native.symmetric(column, "classification"), native.symmetric(texts, "classification"), atol=1e-6
    )
    assert [item.text for item in plain.prepare(column)] == texts
    assert plain.run(iter(plain.prepare(texts))).shape == (len(texts), 32)


def test_what_is_no_list_of_texts(plain: Embedder, tiny_model: Path) -> None:
    encoder = load_encoder(str(tiny_model))
    for call in (plain.queries, encoder.queries, plain.passages, encoder.passages, plain.prepare):
        with pytest.raises(ConfigError, match="where a list is needed"):
            call("cat")
    with pytest.raises(ConfigError, match="query 2 is a NoneType"):
        encoder.queries(["cat", None])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="text 1 holds half of a surrogate"):
        encoder.symmetric(["\ud800"], "classification")
    with pytest.raises(ConfigError, match="2 queries but 1 tasks"):
        plain.queries(["cat", "dog"], ["find it"])
    with pytest.raises(ConfigError, match="task None is a NoneType; give one of RETRIEVAL_QUERY"):
        plain.embed("cat", task=None)  # type: ignore[arg-type]


def test_unknown_values_name_the_known_ones(plain: Embedder, tiny_model: Path, tmp_path: Path) -> None:
    for wrong in ("int4", "FLOAT32", "", None):
        with pytest.raises(ConfigError, match="precision .*: give one of auto, float32, bfloat16, int8"):
            gecko.load(tiny_model, precision=wrong)
        with pytest.raises(ConfigError, match="precision .*: give one of auto, float32, bfloat16, int8"):
            Embedder(load_encoder(tiny_model), wrong)
    with pytest.raises(ConfigError, match="output uint8: give one of float32, int8, binary"):
        plain.embed([], output="uint8")  # type: ignore[arg-type]
    for load in (gecko.load, load_encoder):
        with pytest.raises(ConfigError, match="form paper: give one of native, unified"):
            load(str(tiny_model), form="paper")
        with pytest.raises(ConfigError, match=r"max_tokens = 9.5: give a whole number"):
            load(str(tiny_model), max_tokens=9.5)
    encoder = load_encoder(tiny_model)
    with pytest.raises(ConfigError, match="form paper"):
        save_model(encoder.model, tmp_path, "paper")  # type: ignore[arg-type]
    for dim in (8.0, "8", True):
        with pytest.raises(ConfigError, match="dim = .*: give a whole number"):
            plain.embed("cat", dim=dim)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="dim = .*: give a whole number"):
            encoder.truncated(dim)  # type: ignore[arg-type]
    assert plain.embed("cat", dim=np.int64(8)).shape == (8,)


def test_a_model_is_sent_by_its_spec(plain: Embedder, unified: Embedder, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(Path(unified.spec).parent)
    model = gecko.load(Path(unified.spec).name, precision="bfloat16", form="native", max_tokens=20)
    sent = pickle.dumps(model)
    monkeypatch.chdir(tmp_path)
    there = pickle.loads(sent)
    assert (there.identity, there.form, there.precision, there.max_tokens) == (
        model.identity,
        "native",
        "bfloat16",
        20,
    )
    np.testing.assert_allclose(there.embed(sentences(5)), model.embed(sentences(5)), atol=1e-6)
    assert pickle.loads(sent) is there  # a pool does not load it with each task
    assert pickle.loads(pickle.dumps(plain.embed))("cat").shape == (32,)
    assert copy.deepcopy(plain) is copy.copy(plain) is plain
    with pytest.raises(ConfigError, match="was made of an Encoder"):
        pickle.dumps(Embedder(load_encoder(plain.spec), "float32"))
    encoder = load_encoder(plain.spec, bf16=True)
    expected = encoder.queries(["cat"])
    np.testing.assert_allclose(pickle.loads(pickle.dumps(encoder)).queries(["cat"]), expected, atol=1e-6)


def test_a_model_that_has_changed_is_not_sent(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    sent = pickle.dumps(gecko.load(folder, precision="float32"))
    model = SentenceTransformer(str(folder), device="cpu")
    next(iter(model.parameters())).data.mul_(2)
    model.save_pretrained(str(folder), create_model_card=False)
    with pytest.raises(ConfigError, match="is another model"):
        pickle.loads(sent)


@pytest.fixture(scope="module")
def damaged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vector of any text with the word `fish` is NaN, and infinite before the norm with `bird`."""
    folder = tmp_path_factory.mktemp("damaged")
    model = SentenceTransformer(str(tiny_model), device="cpu")
    words = model.transformers_model.embeddings.word_embeddings.weight.data
    for word, number in (("fish", float("nan")), ("bird", float("inf"))):
        words[model.tokenizer.convert_tokens_to_ids(word)] = number
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("word", ["fish", "bird"])
def test_a_vector_that_is_not_finite_names_its_text(damaged: Path, precision, word, monkeypatch) -> None:
    if precision == "int8" and not int8_works():
        pytest.skip("this processor does not multiply 8-bit integers")
    monkeypatch.setattr(embedder, "WINDOW", 2)
    model = gecko.load(damaged, precision=precision)
    texts = ["the red cat sleeps", "a dog", f"a {word} in the house", "the tree"]
    passages = [Text("", "", text) for text in texts]
    calls = [lambda: model.embed(texts), lambda: model.queries(texts), lambda: model.passages(passages)]
    calls += [lambda output=output: model.embed(texts, output=output, dim=8) for output in ("int8", "binary")]
    calls += [lambda: model.run(model.prepare(texts))]
    encoder = load_encoder(damaged, bf16=precision == "bfloat16")
    calls += [lambda: encoder.queries(texts), lambda: encoder.passages(passages), lambda: encoder.symmetric(texts, "")]
    for call in calls:
        with pytest.raises(NonFiniteError, match=f"text 3 .'a {word} in the house'.: its vector holds NaN") as raised:
            call()
        assert raised.value.index == 2
        assert pickle.loads(pickle.dumps(raised.value)).index == 2
    assert np.isfinite(model.embed([*texts[:2], texts[3]])).all()


def test_a_path_is_a_spec(tiny_model: Path) -> None:
    assert gecko.load(tiny_model, precision="float32").spec == str(tiny_model)
    encoder = load_encoder(tiny_model)
    assert isinstance(encoder, Encoder)
    assert (encoder.spec, encoder.identity) == (str(tiny_model), model_identity(tiny_model))
    assert resolve_model(tiny_model) == str(tiny_model)
    for load in (gecko.load, load_encoder, resolve_model, model_identity):
        with pytest.raises(ConfigError, match="is a int; give a string or a path"):
            load(5)
        with pytest.raises(ConfigError, match="the folder holds neither"):
            load(tiny_model.parent)
