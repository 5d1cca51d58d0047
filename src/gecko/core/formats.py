"""The one place where raw parts become the text that an encoder reads (Section 3.3 and Appendix B of the paper).

``unified`` is the paper's format, as EmbeddingGemma keeps it: a query is ``task: {task} | query: {query}``, a passage
``title: {title} | text: {text}`` with ``none`` for a missing title; a symmetric set puts both sides in the query's form.
``native`` is how an existing embedder was meant to be used: the query alone, and title and text as one string.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

from gecko.core.errors import ConfigError
from gecko.core.records import Example, Passage, Text

InputFormat = Literal["native", "unified"]

DEFAULT_TASK = "search result"


@dataclass(frozen=True, slots=True)
class Task:
    """What an embedding is for.

    Attributes:
        name: the name of Google's embedding API; empty for a task in words of one's own.
        text: the task as the unified format shows it to the model; empty for a passage, which has none.
        side: which form the text takes.
        own_prompts: the names under which makers of other models keep their prompt for this task, best first.
    """

    name: str
    text: str
    side: Literal["query", "document"] = "query"
    own_prompts: tuple[str, ...] = ()


_QUERY = ("query", "Retrieval-query")

TASKS = {
    task.name: task
    for task in (
        Task("RETRIEVAL_QUERY", DEFAULT_TASK, own_prompts=_QUERY),
        Task("RETRIEVAL_DOCUMENT", "", "document", ("document", "passage", "corpus", "Retrieval-document")),
        Task(
            "SEMANTIC_SIMILARITY",
            "semantic similarity",
            own_prompts=("semantic similarity", "STS", "sts", "similarity"),
        ),
        Task("CLASSIFICATION", "classification", own_prompts=("classification", "Classification")),
        Task("CLUSTERING", "clustering", own_prompts=("clustering", "Clustering")),
        Task("QUESTION_ANSWERING", "question answering", own_prompts=("question answering", *_QUERY)),
        Task("FACT_VERIFICATION", "fact checking", own_prompts=("fact checking", *_QUERY)),
        Task("CODE_RETRIEVAL_QUERY", "code retrieval", own_prompts=("code retrieval", "InstructionRetrieval", *_QUERY)),
    )
}

# mteb's kinds of task whose texts are all of one sort, and what the model is told for each (Appendix D of the paper).
MTEB_TASKS = {
    "STS": "semantic similarity",
    "PairClassification": "semantic similarity",
    "Classification": "classification",
    "MultilabelClassification": "classification",
    "Clustering": DEFAULT_TASK,
}

_TASK_TEXTS = {task.text: task for task in TASKS.values() if task.text}


def find_task(name: str) -> Task:
    """The task of a name of Google's API, in any case, of one of the paper (``question answering``), or of a description.

    A description has two words or more, which a query in the unified format shows to the model as it stands. Raises
    ConfigError: one word that is no task's name, or no string.
    """
    if not isinstance(name, str):
        raise ConfigError(f"task {name!r} is a {type(name).__name__}; give one of {', '.join(TASKS)}, or words")
    plain = " ".join(name.split())
    task = TASKS.get(plain.upper().replace(" ", "_").replace("-", "_")) or _TASK_TEXTS.get(
        plain.lower().replace("_", " ")
    )
    if task is not None:
        return task
    if " " in plain:
        return Task("", plain, own_prompts=_QUERY)
    raise ConfigError(
        f"task {name!r} is not known; give one of {', '.join(TASKS)}, or describe the task in two words or more"
    )


def first_prompt(prompts: Mapping[str, str | None], names: Iterable[str], default: str = "") -> str:
    """The first of a model's saved prompts that has one of these names, and is not empty."""
    return next(filter(None, map(prompts.get, names)), default)


def native_prompt(prompts: Mapping[str, str | None], side: Literal["query", "document"]) -> str:
    """What a model's makers put in front of a query or a document; often nothing."""
    match side:
        case "query":
            return prompts.get("query") or ""
        case "document":
            return first_prompt(prompts, ("document", "passage", "corpus"))
        case _:
            assert_never(side)


def symmetric_prompt(prompts: Mapping[str, str | None], task: str) -> str:
    """What a model's makers put in front of both sides of a symmetric set with this task; often nothing."""
    known = _TASK_TEXTS.get(task)
    return first_prompt(prompts, known.own_prompts if known else ())


def render_query(query: str, task: str, form: InputFormat) -> str:
    """The query side of a pair."""
    match form:
        case "native":
            return query
        case "unified":
            return f"task: {task or DEFAULT_TASK} | query: {query}"
        case _:
            assert_never(form)


def render_passage(passage: Passage | Text, form: InputFormat) -> str:
    """The passage side of an asymmetric pair."""
    match form:
        case "native":
            return f"{passage.title}\n{passage.text}" if passage.title else passage.text
        case "unified":
            return f"title: {passage.title or 'none'} | text: {passage.text}"
        case _:
            assert_never(form)


def render_example(example: Example, form: InputFormat) -> tuple[str, str, list[str]]:
    """(query, positive, negatives) of a training row, as text."""
    query = render_query(example.query, example.task, form)
    if example.symmetric:
        positive = render_query(example.positive.text, example.task, form)
        return query, positive, [render_query(text.text, example.task, form) for text in example.negatives]
    return query, render_passage(example.positive, form), [render_passage(text, form) for text in example.negatives]


def prompts(form: InputFormat) -> dict[str, str]:
    """The prompts of a sentence-transformers model in this format: prefixes, by name.

    In the unified format a passage without a title gets ``title: none | text: `` in front, so that tools which know
    only prefixes (LangChain, TEI, mteb) use the model as it was trained. mteb looks for ``query``, ``document`` and the
    names of its kinds of task.
    """
    match form:
        case "native":
            return {}
        case "unified":
            tasks = {"query": DEFAULT_TASK, **{name: name for name in _TASK_TEXTS}, **MTEB_TASKS}
            prefixes = {name: f"task: {task} | query: " for name, task in tasks.items()}
            return {**prefixes, "document": "title: none | text: "}
        case _:
            assert_never(form)
