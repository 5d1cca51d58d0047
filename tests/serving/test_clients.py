"""The clients that people have, unchanged, against the server."""

import http.client

import numpy as np
import pytest

from gecko.encoder import Embedder
from gecko.serving.keys import load_keys

from .conftest import FakeModel, Live, StartServer, broken_run

pytestmark = pytest.mark.slow

TEXTS = ["the red cat sleeps", "a big house", "fish"]
KEY = "gecko-test-key-0123456789"


def close(ours: object, offline: np.ndarray) -> bool:
    return np.allclose(np.asarray(ours, dtype=np.float32), offline, rtol=0, atol=2e-6)


def test_openai(live: Live, tiny: Embedder, start_server: StartServer, fake: FakeModel) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny-start", "tiny"]
    answer = client.embeddings.create(model="tiny", input=TEXTS)  # it asks for base64 by itself
    assert close([row.embedding for row in answer.data], tiny.embed(TEXTS, task="RETRIEVAL_QUERY"))
    assert answer.usage.total_tokens > 8
    answer = client.embeddings.create(
        model="tiny", input="fish", dimensions=6, encoding_format="float", extra_body={"task": "RETRIEVAL_DOCUMENT"}
    )
    assert close(answer.data[0].embedding, tiny.embed("fish", task="RETRIEVAL_DOCUMENT", dim=6))
    with pytest.raises(openai.NotFoundError, match="this server has"):
        client.embeddings.create(model="text-embedding-3-small", input="a")
    with pytest.raises(openai.BadRequestError, match="token arrays"):
        client.embeddings.create(model="tiny", input=[[1, 2, 3]])
    guarded = start_server({"m": fake}, keys=load_keys(None, {"GECKO_API_KEYS": KEY}))
    with pytest.raises(openai.AuthenticationError, match="not known"):
        client.with_options(base_url=f"{guarded.url}/v1").embeddings.create(model="m", input="a")
    right = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=KEY, max_retries=0)
    assert len(right.embeddings.create(model="m", input="a").data[0].embedding) == 8


def test_openai_does_not_ask_again_for_what_has_no_vector(
    start_server: StartServer, fake: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    openai = pytest.importorskip("openai")
    monkeypatch.setattr(fake, "run", broken_run(fake.run, raised=True))
    client = openai.OpenAI(base_url=f"{start_server({'m': fake}).url}/v1", api_key="any", max_retries=3)
    with pytest.raises(openai.UnprocessableEntityError, match=r"input\.1: .*NaN"):
        client.embeddings.create(model="m", input=["a", "hollow"])
    assert len(fake.batches) == 2  # the batch, and the request alone


def test_langchain(live: Live, tiny: Embedder) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="pip install 'gecko-embed[clients]'")
    common = {"base_url": f"{live.url}/v1", "api_key": "any", "check_embedding_ctx_length": False}
    documents = langchain.OpenAIEmbeddings(model="tiny@RETRIEVAL_DOCUMENT", **common)
    queries = langchain.OpenAIEmbeddings(model="tiny", dimensions=5, **common)
    assert close(documents.embed_documents(TEXTS), tiny.embed(TEXTS, task="RETRIEVAL_DOCUMENT"))
    assert close(queries.embed_query("fish"), tiny.embed("fish", task="RETRIEVAL_QUERY", dim=5))


def test_llama_index(live: Live, tiny: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    llama_index = pytest.importorskip("llama_index.embeddings.openai", reason="pip install 'gecko-embed[clients]'")
    model = llama_index.OpenAIEmbedding(model_name="tiny", api_base=f"{live.url}/v1", api_key="any")
    assert close(model.get_text_embedding_batch(TEXTS), tiny.embed(TEXTS, task="RETRIEVAL_QUERY"))
    assert close(model.get_query_embedding("fish"), tiny.embed("fish", task="RETRIEVAL_QUERY"))


def test_google_genai(live: Live, tiny: Embedder) -> None:
    genai = pytest.importorskip("google.genai", reason="pip install 'gecko-embed[clients]'")
    client = genai.Client(api_key="any", http_options={"base_url": live.url})
    options = {"task_type": "RETRIEVAL_DOCUMENT", "title": "a house", "output_dimensionality": 6}
    answer = client.models.embed_content(model="tiny", contents=TEXTS, config=options)
    offline = tiny.embed(TEXTS, task="RETRIEVAL_DOCUMENT", title="a house", dim=6)
    assert close([row.values for row in answer.embeddings], offline)


def test_a_connection_is_kept(live: Live) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
    for _ in range(3):
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        assert response.status == 200 and response.read() and not response.will_close
        sock = connection.sock
    assert sock is connection.sock
    connection.close()
