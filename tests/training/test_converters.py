"""Every converter on rows of the schema that was published; the texts are made up."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from gecko.config.mixture import MixtureSet
from gecko.core.errors import TrainingError
from gecko.core.records import Example, Text, to_table
from gecko.training.converters import convert


@pytest.fixture
def made(tmp_path):
    """Convert rows of a kind, from JSON Lines or, with Hugging Face's own types, from parquet."""

    def go(kind, rows, drops=None, parquet=False, seed=0, **options):
        path = tmp_path / ("rows.parquet" if parquet else "rows.jsonl")
        if parquet:
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {"name": "s", "kind": kind, "source": str(path), **options}
        return convert(TypeAdapter(MixtureSet).validate_python(values), seed, Counter() if drops is None else drops)

    return go


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(example):
    return example.query, example.positive.text, [text.text for text in example.negatives]


# --- natural questions

DOCUMENT = "<H1> Rivers </H1> <P> The Odra is long . </P> <P> It ends in a sea . </P> <Table> <Tr> Mills </Tr> </Table>"
PAGE = DOCUMENT.split(" ")
SPANS = [(3, 10, True), (10, 18, True), (18, 23, True), (19, 22, False)]


def nq_original(answer, lists=False):
    tokens = {"token": PAGE, "is_html": [word.startswith("<") for word in PAGE]}
    candidates = [
        {"start_byte": 0, "end_byte": 0, "start_token": a, "end_token": b, "top_level": top} for a, b, top in SPANS
    ]
    start, end = (-1, -1) if answer is None else SPANS[answer][:2]
    long_answer = {
        "start_token": start,
        "end_token": end,
        "start_byte": 0,
        "end_byte": 0,
        "candidate_index": -1 if answer is None else answer,
    }
    annotation = {"id": "1", "long_answer": long_answer, "short_answers": {"text": []}, "yes_no_answer": -1}

    def stored(rows):
        return rows if lists else {key: [row[key] for row in rows] for key in rows[0]}

    return {
        "id": "797",
        "document": {"title": "Rivers", "url": "https://example.org", "html": "<html>", "tokens": tokens},
        "question": {"text": "how long is the odra", "tokens": ["how", "long", "is", "the", "odra"]},
        "long_answer_candidates": stored(candidates),
        "annotations": stored([annotation]),
    }


def nq_simplified(answer):
    start, end = (-1, -1) if answer is None else SPANS[answer][:2]
    return {
        "example_id": 797,
        "question_text": "how long is the odra",
        "document_text": DOCUMENT,
        "document_url": "https://example.org",
        "long_answer_candidates": [{"start_token": a, "end_token": b, "top_level": top} for a, b, top in SPANS],
        "annotations": [
            {
                "annotation_id": 1,
                "long_answer": {
                    "start_token": start,
                    "end_token": end,
                    "candidate_index": -1 if answer is None else answer,
                },
                "short_answers": [],
                "yes_no_answer": "NONE",
            }
        ],
    }


@pytest.mark.parametrize("row", [nq_original, nq_simplified, lambda answer: nq_original(answer, lists=True)])
def test_natural_questions(made, row):
    drops = Counter()
    (example,) = made("natural_questions", [row(0), row(None)], drops, negatives=5)
    assert (example.dataset, example.task, example.symmetric) == ("s", "question answering", False)
    assert example.query == "how long is the odra"
    assert example.positive == Text("797:3", "Rivers", "The Odra is long .")
    assert sorted(text.text for text in example.negatives) == ["It ends in a sea .", "Mills"]  # not the nested one
    assert example.group == example.positive.id
    assert drops == {"no long answer": 1}


def test_natural_questions_as_parquet_and_one_negative(made):
    (example,) = made("natural_questions", [nq_original(1)], parquet=True)
    assert example.positive.text == "It ends in a sea ."
    assert len(example.negatives) == 1


# --- hotpotqa

SENTENCES = {
    "Oslo": ["Oslo is a city.", " It is old."],
    "Bergen": ["Bergen rains."],
    "Rome": ["Rome is far."],
    "Void": [],
}
HOTPOT = {
    "id": "5a7a",
    "question": "Which city is older?",
    "answer": "Oslo",
    "type": "comparison",
    "level": "medium",
    "supporting_facts": {"title": ["Oslo", "Bergen", "Oslo", "Paris"], "sent_id": [0, 0, 1, 0]},
    "context": {"title": list(SENTENCES), "sentences": list(SENTENCES.values())},
}
HOTPOT_ORIGINAL = {
    "_id": "5a7a",
    **{key: HOTPOT[key] for key in ("question", "answer", "type", "level")},
    "supporting_facts": [["Oslo", 0], ["Bergen", 0], ["Oslo", 1], ["Paris", 0]],
    "context": [[title, sentences] for title, sentences in SENTENCES.items()],
}


@pytest.mark.parametrize("row", [HOTPOT, HOTPOT_ORIGINAL])
def test_hotpotqa(made, row):
    drops = Counter()
    rows = made("hotpotqa", [row], drops)
    assert [texts(example) for example in rows] == [
        ("Which city is older?", "Oslo is a city. It is old.", ["Rome is far."]),
        ("Which city is older?", "Bergen rains.", ["Rome is far."]),
    ]
    assert rows[0].positive == Text("Oslo", "Oslo", "Oslo is a city. It is old.")
    assert rows[0].task == "search result"
    assert drops == {"supporting paragraph is not in the context": 1}
    assert len({example.query_id for example in rows}) == 2


# --- fever

PAGES = [
    {"id": "Oslo_-LRB-city-RRB-", "text": "Oslo is a city .", "lines": "0\tOslo is a city .\tcity"},
    {"id": "Rome", "text": "Rome is far .", "lines": "0\tRome is far ."},
    {"id": "Unused", "text": "Nobody asks .", "lines": ""},
]
FEVER_FLAT = [
    {"id": 1, "label": "SUPPORTS", "claim": "Oslo is a city.", "evidence_wiki_url": "Oslo_-LRB-city-RRB-"},
    {"id": 1, "label": "SUPPORTS", "claim": "Oslo is a city.", "evidence_wiki_url": "Oslo_-LRB-city-RRB-"},
    {"id": 2, "label": "REFUTES", "claim": "Rome is near.", "evidence_wiki_url": "Rome"},
    {"id": 2, "label": "REFUTES", "claim": "Rome is near.", "evidence_wiki_url": "Lost"},
    {"id": 3, "label": "NOT ENOUGH INFO", "claim": "Rain.", "evidence_wiki_url": ""},
]
for _row in FEVER_FLAT:
    _row.update(evidence_annotation_id=5, evidence_id=6, evidence_sentence_id=0)
FEVER_NESTED = [
    {
        "id": 1,
        "verifiable": "VERIFIABLE",
        "label": "SUPPORTS",
        "claim": "Oslo is a city.",
        "evidence": [[[5, 6, "Oslo_-LRB-city-RRB-", 0]], [[5, 7, "Oslo_-LRB-city-RRB-", 1]]],
    },
    {
        "id": 2,
        "verifiable": "VERIFIABLE",
        "label": "REFUTES",
        "claim": "Rome is near.",
        "evidence": [[[5, 8, "Rome", 0], [5, 8, "Lost", 0]]],
    },
    {
        "id": 3,
        "verifiable": "NOT VERIFIABLE",
        "label": "NOT ENOUGH INFO",
        "claim": "Rain.",
        "evidence": [[[9, None, None, None]]],
    },
]


@pytest.mark.parametrize("rows", [FEVER_FLAT, FEVER_NESTED])
def test_fever(made, tmp_path, rows):
    drops = Counter()
    examples = made("fever", rows, drops, passages=write(tmp_path / "wiki.jsonl", PAGES))
    assert [texts(example) for example in examples] == [
        ("Oslo is a city.", "Oslo is a city .", []),
        ("Rome is near.", "Rome is far .", []),
    ]
    assert examples[0].positive == Text("Oslo_-LRB-city-RRB-", "Oslo (city)", "Oslo is a city .")
    assert drops == {"not enough info": 1, "page is not among the passages": 1}


# --- medmcqa


def med(cop, **more):
    options = {"opa": "Liver", "opb": "Heart", "opc": "Lung", "opd": "All of the above"}
    other = {"choice_type": "single", "exp": "Because.", "subject_name": "Anatomy", "topic_name": None}
    return {"id": f"m{cop}", "question": "What pumps blood?", **options, "cop": cop, **other, **more}


def test_medmcqa(made):
    drops = Counter()
    (example,) = made("medmcqa", [med(1), med(3), med(-1)], drops, parquet=True, negatives=3)
    assert example.positive.text == "Heart"
    assert sorted(text.text for text in example.negatives) == ["All of the above", "Liver", "Lung"]
    assert (example.task, example.symmetric, example.group) == ("question answering", False, "")
    assert drops == {"the answer refers to the other options": 1, "no answer is given": 1}


def test_medmcqa_counts_from_0_or_from_1_as_it_is_told(made):
    assert made("medmcqa", [med(1)], first_answer=1)[0].positive.text == "Liver"
    with pytest.raises(TrainingError, match=r"set 's', row 2 of rows\.jsonl: cop is 4, and with first_answer = 0"):
        made("medmcqa", [med(1), med(4)])
    with pytest.raises(TrainingError, match="cop is 0, and with first_answer = 1"):
        made("medmcqa", [med(0)], first_answer=1)


def test_half_a_character_is_refused_in_a_list_too(made):
    passage = {"docid": "1", "title": "", "text": "x \ud83d"}
    row = {"query_id": "7", "query": "q", "positive_passages": [passage], "negative_passages": []}
    with pytest.raises(TrainingError, match=r"set 's': a text of the row s-7-0 holds half a surrogate pair"):
        made("miracl", [row])


# --- natural language inference

NLI = [
    ("A man runs", "A person moves", 0),
    ("A man runs", "He sits", 2),
    ("A man runs", "He is late", 1),
    ("A dog", "A cat", 2),
    ("A dog", "Odd", -1),
    ("Snow", "It is white", 0),
]
SNLI = [{"premise": premise, "hypothesis": hypothesis, "label": label} for premise, hypothesis, label in NLI]
MNLI = [
    {
        "promptID": 1,
        "pairID": "1e",
        "premise": row["premise"],
        "premise_binary_parse": "",
        "premise_parse": "",
        "hypothesis": row["hypothesis"],
        "hypothesis_binary_parse": "",
        "hypothesis_parse": "",
        "genre": "fiction",
        "label": row["label"],
    }
    for row in SNLI
]
NAMES = {0: "entailment", 1: "neutral", 2: "contradiction", -1: "-"}
ORIGINAL = [
    {
        "gold_label": NAMES[row["label"]],
        "sentence1": row["premise"],
        "sentence2": row["hypothesis"],
        "pairID": "1",
        "captionID": "2",
        "annotator_labels": ["neutral"],
    }
    for row in SNLI
]


@pytest.mark.parametrize(("kind", "rows"), [("snli", SNLI), ("mnli", MNLI), ("snli", ORIGINAL)])
def test_nli(made, kind, rows):
    drops = Counter()
    examples = made(kind, rows, drops)
    assert [texts(example) for example in examples] == [
        ("A man runs", "A person moves", ["He sits"]),
        ("Snow", "It is white", []),
    ]
    assert all(example.symmetric and example.task == "semantic similarity" for example in examples)
    assert drops == {"neutral": 1, "no label that annotators agree on": 1, "premise without an entailed hypothesis": 1}


# --- miracl

MIRACL = {
    "query_id": "7#0",
    "query": "Où est Oslo ?",
    "positive_passages": [
        {"docid": "1#0", "title": "Oslo", "text": "En Norvège."},
        {"docid": "1#1", "title": "Oslo", "text": "Au nord."},
    ],
    "negative_passages": [{"docid": "2#0", "title": "Rome", "text": "En Italie."}],
}


@pytest.mark.parametrize("parquet", [False, True])
def test_miracl(made, parquet):
    drops = Counter()
    examples = made("miracl", [MIRACL, {**MIRACL, "positive_passages": []}], drops, parquet=parquet)
    assert [(example.positive.id, example.query, len(example.negatives)) for example in examples] == [
        ("1#0", "Où est Oslo ?", 1),
        ("1#1", "Où est Oslo ?", 1),
    ]
    assert examples[0].negatives[0] == Text("2#0", "Rome", "En Italie.")
    assert drops == {"no positive passage": 1}


# --- sentence pairs with scores

STS = [
    ("a plane takes off", "an aircraft departs", 4.6),
    ("a plane takes off", "a cat sleeps", 0.4),
    ("x", "y", 3.0),
    ("z", "z", 5.0),
    ("man", "person", 4.0),
]


@pytest.mark.parametrize(
    ("columns", "scale"),
    [
        (("sentence1", "sentence2", "score"), 5.0),
        (("sentence1", "sentence2", "label"), 5.0),  # GLUE
        (("sentence1", "sentence2", "score"), 1.0),
        (("sentence_A", "sentence_B", "relatedness_score"), 5.0),  # SICK
    ],
)
def test_sts(made, columns, scale):
    rows = [dict(zip(columns, (one, other, score * scale / 5), strict=True)) for one, other, score in STS]
    drops = Counter()
    examples = made("sts", rows, drops, scale=scale)
    assert [texts(example) for example in examples] == [
        ("a plane takes off", "an aircraft departs", ["a cat sleeps"]),
        ("man", "person", []),
    ]
    assert all(example.symmetric for example in examples)
    assert drops == {
        "neither similar nor unlike": 1,
        "empty or equal sentences": 1,
        "unlike pair, used as a negative at most": 1,
    }


def test_sts_refuses_another_scale(made):
    rows = [{"sentence1": str(n), "sentence2": f"{n}!", "score": n / 30} for n in range(30)]
    with pytest.raises(TrainingError, match=r"set 's': the highest of 30 scores is 0.9\d*, and scale = 5"):
        made("sts", rows)
    with pytest.raises(TrainingError, match=r"set 's', row 3 of rows\.jsonl: score is 2, and scale = 1"):
        made("sts", [*rows[:2], {**rows[0], "score": 2.0}], scale=1.0)
    with pytest.raises(TrainingError, match="row 1 .* score is 'high', and must be a number"):
        made("sts", [{**rows[0], "score": "high"}])


# --- classification

CLASSES = [{"text": f"{label} {n}", "label": label} for label in ("pay", "lost", "limit") for n in range(4)]


def test_classification(made):
    examples = made("classification", CLASSES, negatives=2)
    assert [example.query for example in examples] == [row["text"] for row in CLASSES]
    for example in examples:
        label = example.query.split()[0]
        assert example.positive.text.split()[0] == label
        assert example.positive.text != example.query
        assert all(text.text.split()[0] != label for text in example.negatives)
        assert len({text.text for text in example.negatives}) == 2
        assert (example.symmetric, example.task, example.group) == (True, "classification", label)
    assert len({example.query_id for example in examples}) == len(examples)
    assert {example.positive.text for example in examples} > {examples[0].positive.text}
    assert made("classification", CLASSES, negatives=2) == examples
    assert made("classification", CLASSES, negatives=2, seed=1) != examples


def test_classification_draws_every_partner_and_every_other_class(made):
    pairs = {
        (row.query, row.positive.text) for seed in range(60) for row in made("classification", CLASSES[:8], seed=seed)
    }
    assert len(pairs) == 2 * 4 * 3
    negatives = {row.negatives[0].text for seed in range(60) for row in made("classification", CLASSES, seed=seed)[:1]}
    assert negatives == {row["text"] for row in CLASSES[4:]}


def test_classification_columns_whole_numbers_and_what_is_dropped(made):
    rows = [
        {"tweet": text, "emotion": label}
        for text, label in (("a", 0), ("b", 0), ("c", 1), ("d", 1), ("a", 1), ("c", 1), ("", 1), ("e", 0))
    ]
    drops = Counter()
    examples = made("classification", rows, drops, parquet=True, text_column="tweet", label_column="emotion")
    assert {(example.query, example.group) for example in examples} == {("b", "0"), ("e", "0"), ("c", "1"), ("d", "1")}
    assert drops == {"text that was there before": 2, "text with two labels": 1, "empty text": 1}


def test_a_class_of_one_text_is_named_or_left_out(made):
    rows = [*CLASSES, {"text": "alone", "label": "rare"}]
    with pytest.raises(TrainingError, match=r"set 's', row 13 of rows\.jsonl: class 'rare' has one text only"):
        made("classification", rows)
    drops = Counter()
    assert made("classification", rows, drops, drop_small_classes=True) == made("classification", CLASSES)
    assert drops["class of one text"] == 1


def test_one_class_only_is_refused(made):
    with pytest.raises(TrainingError, match="set 's': all texts are of one class, 'pay'"):
        made("classification", CLASSES[:4])


# --- the rest


def test_pairs(made):
    rows = [
        {"query": "q", "title": "t", "text": "x", "negative": "n"},
        {"query": "r", "text": "y"},
        {"query": "", "text": "z"},
    ]
    drops = Counter()
    examples = made("pairs", rows, drops)
    assert [texts(example) for example in examples] == [("q", "x", ["n"]), ("r", "y", [])]
    assert drops == {"empty query or text": 1}


def test_rows_of_another_run(tmp_path):
    row = Example(
        "fret",
        "find it",
        "q",
        Text("p", "t", "x"),
        (Text("n", "", "y"),),
        group="p",
        query_id="q1",
        candidates=("p", "n"),
        fused=(2.0, 1.0),
    )
    pq.write_table(to_table(Example, [row]), tmp_path / "part-00000.parquet")
    (tmp_path / "manifest.json").write_text('{"stage": "select"}')  # as a run has it
    config = TypeAdapter(MixtureSet).validate_python({"name": "other", "kind": "rows", "source": str(tmp_path)})
    (example,) = convert(config, 0, Counter())
    assert (example.dataset, example.task, texts(example)) == ("other", "find it", ("q", "x", ["y"]))
    assert example.candidates == ()


def test_task_limit_and_negatives_are_the_users(made):
    examples = made("classification", CLASSES, task="intent", limit=5, negatives=0)
    assert len(examples) == 5
    assert all(example.task == "intent" and not example.negatives for example in examples)


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("natural_questions", {"query": "q"}, r"row 1 .*natural_questions' needs document, question"),
        ("natural_questions", {**nq_original(0), "annotations": 3}, r"row 1 "),
        ("hotpotqa", {"question": "q"}, r"row 1 .*no column supporting_facts, context"),
        ("hotpotqa", {**HOTPOT, "context": {"title": ["a"], "sentences": []}}, r"row 1 .*context must hold"),
        ("medmcqa", {"question": "q"}, r"row 1 .*no column opa, opb"),
        ("snli", {"premise": "a", "hypothesis": "b", "label": 7}, r"row 1 .*label is 7"),
        ("mnli", {"sentence1": "a", "sentence2": "b", "score": 1}, r"row 1 .*no column gold_label"),
        ("miracl", {"query": "q"}, r"row 1 .*no column query_id"),
        ("miracl", {**MIRACL, "positive_passages": [{"id": 3}]}, r"row 1 .*positive_passages must hold docid"),
        ("sts", {"sentence1": "a", "sentence2": "b"}, r"row 1 .*no column score"),
        ("classification", {"sentence": "a", "label": 1}, r"row 1 .*no column text; .* there are sentence, label"),
        ("classification", {"text": "a", "label": 0.5}, r"row 1 .*label is 0.5, and must be a text or a whole number"),
        ("classification", {"text": ["a"], "label": 1}, r"row 1 .*column text is \['a'\], and must be a text"),
        ("pairs", {"query": "q"}, r"row 1 .*no column text"),
        ("rows", {"query": "q"}, r"row 1 .*no column dataset"),
    ],
)
def test_columns_that_do_not_fit_name_set_and_row(made, kind, row, message):
    with pytest.raises(TrainingError, match=rf"set 's', {message}"):
        made(kind, [row])


@pytest.mark.parametrize(
    ("kind", "row"), [("snli", {"premise": "a", "hypothesis": "b", "label": 1}), ("medmcqa", med(-1))]
)
def test_a_set_of_which_nothing_is_left_says_why(made, kind, row):
    with pytest.raises(TrainingError, match=r"set 's': no training row can be made of .* \(1 "):
        made(kind, [row])


def test_numbers_from_a_csv_file(made, tmp_path):
    path = tmp_path / "rows.csv"
    names = list(med(1))
    path.write_text(",".join(names) + "\n" + ",".join(str(med(1)[name]) for name in names) + "\n")
    found = convert(
        TypeAdapter(MixtureSet).validate_python({"name": "s", "kind": "medmcqa", "source": str(path)}), 0, Counter()
    )
    assert [texts(one) for one in found] == [texts(one) for one in made("medmcqa", [med(1)])]
    path.write_text("premise,hypothesis,label\na,b,0\na,c,2\nd,e,1\n")
    found = convert(
        TypeAdapter(MixtureSet).validate_python({"name": "s", "kind": "snli", "source": str(path)}), 0, Counter()
    )
    assert [texts(one) for one in found] == [("a", "b", ["c"])]
