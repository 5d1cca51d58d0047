"""The one place where raw parts become the text that an encoder reads (Section 3.3 and Appendix B of the paper).

``unified`` is the paper's format, as EmbeddingGemma keeps it: a query is ``task: {task} | query: {query}``, a passage
``title: {title} | text: {text}`` with ``none`` for a missing title; a symmetric set puts both sides in the query's form.
``native`` is how an existing embedder was meant to be used: the query alone, and title and text as one string.
"""

from typing import Literal, assert_never

from gecko.records import Example, Passage, Text

InputFormat = Literal["native", "unified"]

DEFAULT_TASK = "search result"


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
    only prefixes (LangChain, TEI, mteb) use the model as it was trained.
    """
    match form:
        case "native":
            return {}
        case "unified":
            names = ("search result", "question answering", "fact checking", "classification", "clustering")
            tasks = {name: f"task: {name} | query: " for name in (*names, "semantic similarity")}
            return {"query": f"task: {DEFAULT_TASK} | query: ", "document": "title: none | text: ", **tasks}
        case _:
            assert_never(form)
