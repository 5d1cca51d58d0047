"""What the recipes of this folder share: the vectors that `gecko embed` wrote, the vector of a question, a command line."""

import argparse
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
import pyarrow.parquet as pq

import gecko

WRITE = "gecko embed MODEL FILES --chunk --with-text -o VECTORS"


class Hit(NamedTuple):
    """A passage that was found; ``score`` is the cosine."""

    id: str
    title: str
    text: str
    source: str
    score: float


class Store(Protocol):
    """What each `*_store.py` has; it is opened with its place: a folder, or the address of a server."""

    def load(self, vectors: "Vectors") -> None:
        """Hold these rows and no others: new and changed ones are written, those that are gone are deleted."""

    def search(self, vector: np.ndarray, k: int = 10, source: str | None = None) -> list[Hit]:
        """The ``k`` passages nearest to a vector (dim,), of one source if it is named, best first."""


@dataclass
class Vectors:
    """A folder of `gecko embed`: ``rows`` has id, title, text and source; ``matrix`` is float32 (n, dim), unit rows."""

    rows: list[dict[str, str]]
    matrix: np.ndarray
    made: dict[str, Any]  # the model and the options

    @classmethod
    def read(cls, folder: Path) -> "Vectors":
        """Read a finished folder whose ids differ."""
        if not (folder / ".manifest.parquet").is_file():
            refuse(f"{folder} holds no vectors; write them with: {WRITE}")
        manifest = json.loads(pq.read_schema(folder / ".manifest.parquet").metadata[b"gecko"])
        made = manifest["parts"]
        if not manifest["done"]:
            refuse(f"{folder} is not finished; give the same gecko embed command again")
        if not made.get("with_text") or made["output"] != "float32" or made["task"] != "RETRIEVAL_DOCUMENT":
            refuse(f"{folder} needs float32 vectors of passages with their texts; write them with: {WRITE}")
        table = pq.read_table(folder)
        if len(set(table["id"].to_pylist())) < len(table):
            refuse(f"{folder} has an id twice; write the vectors with --chunk, which refuses that")
        matrix = np.stack(table["embedding"].to_numpy())
        return cls(table.drop_columns("embedding").to_pylist(), matrix, made)


class Questions:
    """The model on its side of queries: the prompt, and of a model of two towers the tower, are those of a query."""

    def __init__(self, model: str, vectors: Vectors) -> None:
        self.embedder, self.dim = gecko.load(model), vectors.made["dim"]
        if vectors.made["model"] not in (self.embedder.identity, self.embedder.passage_identity):
            refuse(f"the vectors are of another model than {model}; write them with: {WRITE.replace('MODEL', model)}")

    def embed(self, question: str) -> np.ndarray:
        """The vector of a question, float32 (dim,)."""
        return self.embedder.embed(question, task="RETRIEVAL_QUERY", dim=self.dim)


def refuse(sentence: str) -> NoReturn:
    """End with a sentence and exit code 1."""
    raise SystemExit(sentence)


def options(about: str | None, arguments: list[str] | None = None, store: str = "") -> argparse.Namespace:
    """The command line of a recipe, with ``--store`` where none is given."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("vectors", type=Path, help=f"the folder of: {WRITE}")
    parser.add_argument("model", help="the model that is asked: a folder, hf:NAME or minilm")
    parser.add_argument("question")
    parser.add_argument("--store", default=store or "faiss", choices=[store] if store else STORES)
    parser.add_argument("--place", help="a folder that is made, or the address of a server")
    parser.add_argument("--source", help="only passages of this source")
    parser.add_argument("-k", type=int, default=5, help="how many passages")
    return parser.parse_args(arguments)


STORES = ("faiss", "lancedb", "pgvector", "qdrant")


def loaded(given: argparse.Namespace) -> tuple[Store, Questions]:
    """The store with the vectors in it, and the model that asks."""
    vectors = Vectors.read(given.vectors)
    questions = Questions(given.model, vectors)
    store = import_module(f"{given.store}_store").Store(given.place or f"{given.vectors}.{given.store}")
    store.load(vectors)
    return store, questions


def ask(about: str | None, store: str, arguments: list[str] | None = None) -> None:
    """The whole of a store's recipe: load the vectors, ask, print."""
    given = options(about, arguments, store)
    filled, questions = loaded(given)
    for hit in filled.search(questions.embed(given.question), given.k, given.source):
        print(f"{hit.score:.3f}  {hit.id}  {' '.join(hit.text.split())[:100]}")
