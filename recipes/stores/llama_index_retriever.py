"""A LlamaIndex retriever over any of the four stores, and an embedding class for LlamaIndex's own stores.

python recipes/stores/llama_index_retriever.py VECTORS MODEL "how do I merge two dicts" --store lancedb
"""

from gecko_vectors import Questions, Store, loaded, options
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

import gecko


class GeckoRetriever(BaseRetriever):
    """Passages of a store as nodes, best first, with title and source as metadata."""

    def __init__(self, store: Store, questions: Questions, k: int = 5, source: str | None = None) -> None:
        self.store, self.questions, self.k, self.source = store, questions, k, source
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = []
        for hit in self.store.search(self.questions.embed(query_bundle.query_str), self.k, self.source):
            node = TextNode(id_=hit.id, text=hit.text, metadata={"title": hit.title, "source": hit.source})
            found.append(NodeWithScore(node=node, score=hit.score))
        return found


class GeckoEmbedding(BaseEmbedding):
    """The model for a vector store of LlamaIndex: passages and questions have prompts, or towers, of their own."""

    _embedder: gecko.Embedder

    def __init__(self, model: str) -> None:
        super().__init__(model_name=model)
        self._embedder = gecko.load(model)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embedder.embed(text, task="RETRIEVAL_DOCUMENT").tolist()

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.embed(texts, task="RETRIEVAL_DOCUMENT").tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embedder.embed(query, task="RETRIEVAL_QUERY").tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def main(arguments: list[str] | None = None) -> None:
    """Load, ask, print."""
    given = options(__doc__, arguments)
    for found in GeckoRetriever(*loaded(given), given.k, given.source).retrieve(given.question):
        print(f"{found.score:.3f}  {found.node.id_}  {' '.join(found.node.text.split())[:100]}")


if __name__ == "__main__":
    main()
