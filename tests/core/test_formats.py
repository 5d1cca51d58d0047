import pytest

from gecko.core.formats import (
    DEFAULT_TASK,
    MTEB_TASKS,
    InputFormat,
    prompts,
    render_example,
    render_passage,
    render_query,
)
from gecko.core.records import Example, Passage, Text


@pytest.mark.parametrize(
    ("form", "task", "expected"),
    [
        ("unified", "fact checking", "task: fact checking | query: how many moons"),
        ("unified", "", "task: search result | query: how many moons"),
        ("native", "fact checking", "how many moons"),
    ],
)
def test_query(form: InputFormat, task: str, expected: str) -> None:
    assert render_query("how many moons", task, form) == expected


@pytest.mark.parametrize(
    ("form", "title", "expected"),
    [
        ("unified", "Mars", "title: Mars | text: It has two."),
        ("unified", "", "title: none | text: It has two."),
        ("native", "Mars", "Mars\nIt has two."),
        ("native", "", "It has two."),
    ],
)
def test_passage(form: InputFormat, title: str, expected: str) -> None:
    assert render_passage(Passage("p", title, "It has two.", "a file"), form) == expected
    assert render_passage(Text("p", title, "It has two."), form) == expected


def test_native_is_what_a_teacher_reads() -> None:
    for title in ("Mars", ""):
        passage = Passage("p", title, "It has two.")
        assert render_passage(passage, "native") == passage.content


@pytest.mark.parametrize(
    ("form", "query", "positive", "negatives"),
    [
        (
            "unified",
            "task: fact checking | query: two moons",
            "title: Mars | text: It has two.",
            ["title: none | text: It has one.", "title: Sun | text: None."],
        ),
        ("native", "two moons", "Mars\nIt has two.", ["It has one.", "Sun\nNone."]),
    ],
)
def test_example(form: InputFormat, query: str, positive: str, negatives: list[str]) -> None:
    texts = Text("b", "", "It has one."), Text("c", "Sun", "None.")
    row = Example("set", "fact checking", "two moons", Text("a", "Mars", "It has two."), texts)
    assert render_example(row, form) == (query, positive, negatives)


@pytest.mark.parametrize(
    ("form", "sides"),
    [
        ("unified", ["task: clustering | query: x", "task: clustering | query: y", "task: clustering | query: z"]),
        ("native", ["x", "y", "z"]),
    ],
)
def test_both_sides_of_a_symmetric_example_are_queries(form: InputFormat, sides: list[str]) -> None:
    row = Example("set", "clustering", "x", Text("a", "a title", "y"), (Text("b", "", "z"),), symmetric=True)
    assert render_example(row, form) == (sides[0], sides[1], sides[2:])


def test_prompts_are_the_prefixes_of_the_rendered_texts() -> None:
    known = prompts("unified")
    assert known == {
        "query": "task: search result | query: ",
        "document": "title: none | text: ",
        "search result": "task: search result | query: ",
        "question answering": "task: question answering | query: ",
        "fact checking": "task: fact checking | query: ",
        "code retrieval": "task: code retrieval | query: ",
        "semantic similarity": "task: semantic similarity | query: ",
        "classification": "task: classification | query: ",
        "clustering": "task: clustering | query: ",
        "STS": "task: semantic similarity | query: ",
        "PairClassification": "task: semantic similarity | query: ",
        "Classification": "task: classification | query: ",
        "MultilabelClassification": "task: classification | query: ",
        "Clustering": "task: search result | query: ",
    }
    assert known["query"] + "moons" == render_query("moons", "", "unified")
    assert known["document"] + "It has two." == render_passage(Text("p", "", "It has two."), "unified")
    tasks = known.keys() - {"query", "document"} - MTEB_TASKS.keys()
    assert DEFAULT_TASK in tasks
    assert len(tasks) >= 5
    for name, task in [*zip(tasks, tasks, strict=True), *MTEB_TASKS.items()]:
        assert known[name] + "moons" == render_query("moons", task, "unified")
    assert prompts("native") == {}


@pytest.mark.parametrize("call", [lambda form: render_query("q", "t", form), prompts])
def test_another_format_is_an_error(call) -> None:
    with pytest.raises(AssertionError, match="plain"):
        call("plain")
