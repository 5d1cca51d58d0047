from collections.abc import Sequence
from dataclasses import replace

import pytest

from gecko.config.stages import GenerateConfig
from gecko.core.counts import Counts
from gecko.core.records import Passage, Query
from gecko.fret.generate import Parsed, generate, parse, query_id
from gecko.fret.seeds import Seed
from gecko.llm.base import Refusal, Sampling
from gecko.llm.fake import FakeLM, words
from gecko.prompts import Prompt, load_prompt

PROMPT = load_prompt("generate")
PASSAGE = Passage("p", "heapq.merge(*iterables)", "Merge several sorted inputs into one.")
TASK = "Given a question, find a passage."
CONFIG = GenerateConfig(batch=3, temperature=0.5, top_p=0.9, max_new_tokens=20)


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("how do I merge sorted files", "how do I merge sorted files"),
        ('"how do I merge sorted files"', "how do I merge sorted files"),
        ("' how do I merge '", "how do I merge"),
        ('what\'s an "iterable"', 'what\'s an "iterable"'),
        ("wie verschmelze ich Läufe?", "wie verschmelze ich Läufe?"),
        ("並べ替え済みの入力", "並べ替え済みの入力"),
        ("heapq merge with a key", "heapq merge with a key"),
    ],
)
def test_what_parses(query: str, kept: str) -> None:
    assert parse(f" {TASK}\nQuery: {query}\n", PASSAGE, PROMPT) == Parsed(TASK, kept)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no query line"),
        (TASK, "no query line"),
        ("Query: how do I merge files", "no query line"),
        (f"{TASK} Query: how do I merge files", "no query line"),
        (f"{TASK}\nquery: how do I merge files", "no query line"),
        (f"{TASK}\nQuery:", "empty"),
        (f"{TASK}\nQuery:  \n", "empty"),
        (f'{TASK}\nQuery: " "', "empty"),
        (f"{TASK}\nQuery: one\nQuery: two of them", "more than one line"),
        (f"{TASK}\nQuery: merge files\nPassage: another", "more than one line"),
        (f"{TASK}\nHere it comes.\nQuery: merge files", "more than one line"),
        (f"{TASK}\nQuery: merge files. Task: {TASK}", "runs on"),
        (f"{TASK}\nQuery: merge files Passage: heapq.merge", "runs on"),
        (f"{TASK}\nQuery: what does `merge` do", "markup"),
        (f"{TASK}\nQuery: what does **merge** do", "markup"),
        (f"{TASK}\nQuery: <b>merge</b> files", "markup"),
        (f"{TASK}\nQuery: - merge files", "markup"),
        (f"{TASK}\nQuery: see https://example.org for it", "markup"),
        (f"{TASK}\nQuery: the [merge](page) function", "markup"),
        (f"{TASK}\nQuery: fill in {{passage}} here", "markup"),
        (f"# {TASK}\nQuery: merge files", "markup"),
        (f"{TASK}\nQuery: {'merge ' * 41}", "too long"),
        (f"{'task ' * 41}\nQuery: merge files", "too long"),
        (f"{TASK}\nQuery: a b", "too short"),
        (f"{TASK}\nQuery: ?!?!?!", "too short"),
        (f"{TASK}\nQuery: 12345 67890", "too short"),
        (f"{TASK}\nQuery: {PROMPT.examples[0]['query']}", "copied example"),
        (f"{TASK}\nQuery: {PROMPT.examples[-1]['query'].upper()}?", "copied example"),
        (f"{TASK}\nQuery: heapq.merge(*iterables)", "title alone"),
        (f"{TASK}\nQuery: Heapq merge?", "title alone"),
        (f"{TASK}\nQuery: what is merged in this passage", "speaks of its passage"),
    ],
)
def test_what_is_dropped(text: str, reason: str) -> None:
    assert parse(text, PASSAGE, PROMPT) == Parsed(reason=reason)


def test_the_limits_are_met_exactly() -> None:
    assert parse(f"{TASK}\nQuery: {'merge ' * 40}", PASSAGE, PROMPT).reason == ""
    assert parse(f"{'t' * 200}\nQuery: merge files", PASSAGE, PROMPT).reason == ""
    assert parse(f"{'t' * 201}\nQuery: merge files", PASSAGE, PROMPT).reason == "too long"


def test_a_passage_without_a_title_has_no_title_to_copy() -> None:
    untitled = replace(PASSAGE, title="")
    assert parse(f"{TASK}\nQuery: heapq merge", untitled, PROMPT).query == "heapq merge"


def test_examples_of_other_prompts_need_no_query() -> None:
    odd = replace(PROMPT, examples=({"passage": "merge my files"}, {"note": "x"}))
    assert parse(f"{TASK}\nQuery: merge my files", PASSAGE, odd).reason == "copied example"
    assert parse(f"{TASK}\nQuery: merge your files", PASSAGE, odd).reason == ""


def test_ids_depend_on_passage_prompt_and_seed() -> None:
    other = replace(PROMPT, hash="another")
    ids = [query_id("p", PROMPT, 0), query_id("r", PROMPT, 0), query_id("p", other, 0), query_id("p", PROMPT, 1)]
    ids += [query_id("p", PROMPT, 0, 1), query_id("p", PROMPT, 0, 2)]
    assert len(set(ids)) == 6
    assert ids[0] == query_id("p", PROMPT, 0) == query_id("p", PROMPT, 0, 0)


class Script(FakeLM):
    """Says what it was given, and remembers what it was asked."""

    def __init__(self, texts: dict[str, str]) -> None:
        super().__init__()
        self.texts = texts
        self.asked: list[tuple[list[str], Sampling]] = []

    def generate(self, prompt: Prompt, passages: Sequence[str], sampling: Sampling) -> list[str]:
        self.asked.append((list(passages), sampling))
        self.usage.read += 10
        self.usage.written += 1
        return [self.texts[passage] for passage in passages]


def written(
    texts: dict[str, str], config: GenerateConfig = CONFIG, seed: int = 0
) -> tuple[list[Query], Counts, Script]:
    passages = {name: Passage(name, "", name) for name in texts}
    teacher, counts = Script(texts), Counts()
    seeds = [Seed(name, "heldout" if name == "p2" else "train") for name in texts]
    return list(generate(seeds, passages, teacher, PROMPT, config, seed, counts)), counts, teacher


def said(query: str) -> str:
    return f" {TASK}\nQuery: {query}"


def test_drops_are_counted_by_reason() -> None:
    texts = {
        "p0": said("merge sorted files"),
        "p1": "nothing",
        "p2": said("split a large file"),
        "p3": said("see `merge`"),
        "p4": said("Merge sorted files!"),  # the same words as before
        "p5": "nothing either",
    }
    rows, counts, teacher = written(texts)
    assert rows == [
        Query(query_id("p0", PROMPT, 0), TASK, "merge sorted files", "p0", "fake", "train"),
        Query(query_id("p2", PROMPT, 0), TASK, "split a large file", "p2", "fake", "heldout"),
    ]
    assert counts.drops == {"no query line": 2, "markup": 1, "repeated": 1}
    assert counts.examples == {
        "no query line": ["nothing", "nothing either"],
        "markup": [said("see `merge`").strip()],
        "repeated": [said("Merge sorted files!").strip()],
    }
    assert counts.drops.total() + len(rows) == len(texts)
    assert [passages for passages, _ in teacher.asked] == [["p0", "p1", "p2"], ["p3", "p4", "p5"]]
    assert counts.tokens == 22


def test_a_text_has_a_seed_of_its_own() -> None:
    texts = {f"p{number}": said(f"question number {number}") for number in range(6)}
    _, _, teacher = written(texts)
    sampling = teacher.asked[0][1]
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (0.5, 0.9, 20)

    def seeds(config: GenerateConfig, seed: int) -> list[int]:
        return [number for _, asked in written(texts, config, seed)[2].asked for number in asked.seeds]

    assert len(set(seeds(CONFIG, 0))) == 6
    assert seeds(CONFIG, 0) == seeds(CONFIG.model_copy(update={"batch": 4}), 0)  # whatever the batch
    assert not set(seeds(CONFIG, 0)) & set(seeds(CONFIG, 1))


def test_with_the_stand_in_teacher() -> None:
    texts = [
        "Mould grows on jam when the jar was not sealed while hot.",
        "The godwit flies from Alaska across the whole ocean without any pause.",
        "Carbon steel warms faster than cast iron and can be tossed.",
    ]
    passages = {f"p{number}": Passage(f"p{number}", "Title", text) for number, text in enumerate(texts)}
    counts = Counts()
    seeds = [Seed(name, "train") for name in passages]
    rows = list(generate(seeds, passages, FakeLM(), PROMPT, CONFIG, 0, counts))
    assert [row.seed_id for row in rows] == list(passages)
    assert counts.drops == {}
    assert counts.tokens > 0
    for row in rows:
        asked = row.text.removeprefix("where is ").split()
        assert len(asked) == 5
        assert set(asked) <= set(words(passages[row.seed_id].content))
    again = list(generate(seeds[::-1], passages, FakeLM(), PROMPT, CONFIG, 0, Counts()))
    assert again == rows[::-1]


def test_what_the_teacher_refuses_is_dropped_with_what_it_said() -> None:
    class Refusing(FakeLM):
        def generate(
            self, prompt: Prompt, passages: Sequence[str], sampling: Sampling, variables: Sequence[str] = ()
        ) -> list[str]:
            texts = super().generate(prompt, passages, sampling, variables)
            at = [place for place, passage in enumerate(passages) if "secret" in passage]
            self.usage.refused += len(at)
            self.usage.refusals += [Refusal(place, "refused by the teacher (500)", "500: out of range") for place in at]
            return ["" if place in at else text for place, text in enumerate(texts)]

    texts = ("garden bridge river stone tree", "a secret garden of stone", "river bird tree sleeps under")
    passages = {f"p{n}": Passage(f"p{n}", "", text) for n, text in enumerate(texts)}
    counts = Counts()
    seeds = [Seed(name, "train") for name in passages]
    queries = list(generate(seeds, passages, Refusing(), PROMPT, CONFIG, 0, counts))
    assert [query.seed_id for query in queries] == ["p0", "p2"]
    assert counts.drops == {"refused by the teacher (500)": 1}
    assert counts.examples == {"refused by the teacher (500)": ["passage p1: 500: out of range"]}
