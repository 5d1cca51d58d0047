"""A LangChain retriever over any of the four stores, and an embedding class for LangChain's own stores.

python recipes/stores/langchain_retriever.py VECTORS MODEL "how do I merge two dicts" --store qdrant
"""

from typing import Any

from gecko_vectors import loaded, options
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever

import gecko


class GeckoRetriever(BaseRetriever):
    """Passages of a store as documents, best first, with title, source and score as metadata."""

    store: Any
    questions: Any
    k: int = 5
    source: str | None = None

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [
            Document(hit.text, id=hit.id, metadata={"title": hit.title, "source": hit.source, "score": hit.score})
            for hit in self.store.search(self.questions.embed(query), self.k, self.source)
        ]


class GeckoEmbeddings(Embeddings):
    """The model for a vector store of LangChain: passages and questions have prompts, or towers, of their own."""

    def __init__(self, model: str) -> None:
        self.embedder = gecko.load(model)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """The vectors of passages."""
        return self.embedder.embed(texts, task="RETRIEVAL_DOCUMENT").tolist()

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        return self.embedder.embed(text, task="RETRIEVAL_QUERY").tolist()


def main(arguments: list[str] | None = None) -> None:
    """Load, ask, print."""
    given = options(__doc__, arguments)
    store, questions = loaded(given)
    for found in GeckoRetriever(store=store, questions=questions, k=given.k, source=given.source).invoke(
        given.question
    ):
        print(f"{found.metadata['score']:.3f}  {found.id}  {' '.join(found.page_content.split())[:100]}")


if __name__ == "__main__":
    main()
