"""The academic sets of the paper's mixture (Section 3.3), from the rows that were published to rows of training.

===================  ============================================================  ======================================
kind                 row as published                                              training row
===================  ============================================================  ======================================
natural_questions    the original (Hugging Face) or the simplified JSON Lines      question → long answer; negatives:
                                                                                   other paragraphs of the page
hotpotqa             distractor or fullwiki, Hugging Face or the original JSON     question → each supporting paragraph;
                                                                                   negatives: the distractors
fever                claims with evidence, flat (Hugging Face) or nested, and      claim → each page of its evidence
                     the pages (``id``, ``text``) as ``passages``
medmcqa              question, opa … opd, cop                                      question → the right option; negatives:
                                                                                   the wrong ones
snli, mnli           premise and hypothesis with a label                           premise → entailed hypothesis;
                                                                                   negative: a contradicted one
miracl               query, positive_passages, negative_passages                   query → each positive
sts                  two sentences and a score                                     sentence → a similar one; negative: one
                                                                                   that it was found unlike, if any
classification       text, label                                                   text → another of its class; negative:
                                                                                   one of another class
pairs                query, text, perhaps title and negative                       query → text
rows                 ``Example`` rows in parquet, as ``RUN/select`` holds them     as they are
===================  ============================================================  ======================================

``docs/how-to/two-stages-and-mixture.md`` has the schemas. NLI, STS and classification are symmetric, the rest is not. What
cannot become a row is dropped and counted by reason; what should not be there at all is an error that names set and row.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from gecko.config.mixture import ClassificationSet, FeverSet, MedMcqaSet, MixtureSet, StsSet
from gecko.core.counts import drop_words
from gecko.core.errors import TrainingError
from gecko.core.records import SCHEMAS, Example, Text, from_table
from gecko.core.text import half_of_pair
from gecko.corpus.tables import Row, read_rows, require, text_of

Rows = Iterable[tuple[str, Row]]
Drops = Counter[str]

OPTIONS = ("opa", "opb", "opc", "opd")
ENTAILED, NEUTRAL, CONTRADICTED, UNDECIDED = 0, 1, 2, -1
NLI_LABELS: dict[Any, int] = {
    **{number: number for number in (ENTAILED, NEUTRAL, CONTRADICTED, UNDECIDED)},
    "entailment": ENTAILED,
    "neutral": NEUTRAL,
    "contradiction": CONTRADICTED,
    "-": UNDECIDED,
}
_TAG = re.compile(r"<[^>]+>")
_FEVER_MARKS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-COLON-": ":", "_": " "}


def convert(config: MixtureSet, seed: int, drops: Drops) -> list[Example]:
    """All training rows of a set, at least one; what became no row is counted in ``drops`` by reason.

    The seed is that of the choice of negatives, of partners in a class, and of the rows that ``config.limit`` leaves.
    Raises TrainingError: the source cannot be read, a row does not fit the kind, or no row is left. It names set and row.
    """
    rng = np.random.default_rng([seed, *config.name.encode()])
    rows = read_rows(config.name, config.source, config.config, config.split)
    made = list(_KINDS[config.kind][0](config, rows, rng, drops))
    if not made:
        why = drop_words(drops) or "none was read"
        raise TrainingError(f"set {config.name!r}: no training row can be made of {config.source} ({why})")
    for example in made:  # of lists and objects in a row, too, which text_of does not see
        for text in (
            example.query,
            *(part for one in (example.positive, *example.negatives) for part in (one.title, one.text)),
        ):
            if half := half_of_pair(text):
                raise TrainingError(f"set {config.name!r}: a text of the row {example.query_id} holds {half}")
    if config.limit is not None and len(made) > config.limit:
        drops["beyond the set's limit"] += len(made) - config.limit
        kept = rng.permutation(len(made))[: config.limit]  # a larger limit has these, too
        made = [made[place] for place in sorted(kept)]
    return made


def _example(
    config: MixtureSet,
    query_id: str,
    query: str,
    positive: Text,
    negatives: Sequence[Text] = (),
    *,
    symmetric: bool = False,
    group: str | None = None,
) -> Example:
    return Example(
        dataset=config.name,
        task=_KINDS[config.kind][1] if config.task is None else config.task,
        query=query,
        positive=positive,
        negatives=tuple(negatives),
        symmetric=symmetric,
        group=positive.id if group is None else group,
        query_id=f"{config.name}-{query_id}",
    )


def _drawn(texts: Sequence[Text], count: int, rng: np.random.Generator) -> list[Text]:
    chosen = rng.permutation(len(texts))[:count]
    return [texts[place] for place in chosen]


# --- retrieval


def _natural_questions(config: MixtureSet, rows: Rows, rng: np.random.Generator, drops: Drops) -> Iterator[Example]:
    for place, row in rows:
        identifier, question, title, words, candidates, answers = _nq_parts(row, place)
        spans = [span for span in answers if span[0] >= 0]
        if not spans:
            drops["no long answer"] += 1
            continue
        start, end = spans[0]
        answer = _words(words, start, end)
        if not question or not answer:
            drops["empty question or answer"] += 1
            continue
        others = {
            text: Text(f"{identifier}:{first}", title, text)
            for first, last, top in candidates
            if top and (last <= start or first >= end) and (text := _words(words, first, last)) and text != answer
        }
        positive = Text(f"{identifier}:{start}", title, answer)
        yield _example(config, identifier, question, positive, _drawn(list(others.values()), config.negatives, rng))


Span = tuple[int, int]


def _nq_parts(row: Row, place: str) -> tuple[str, str, str, list[str], list[tuple[int, int, bool]], list[Span]]:
    """Id, question, title, words of the page (markup is ""), candidates (start, end, top level), long answers."""
    try:
        if "document_text" in row:  # simplified
            words = ["" if _TAG.fullmatch(word) else word for word in row["document_text"].split(" ")]
            title = row.get("document_title") or _heading(row["document_text"])
            identifier, question = str(row["example_id"]), row["question_text"]
        else:
            tokens = _columns(row["document"]["tokens"])
            words = ["" if html else word for word, html in zip(tokens["token"], tokens["is_html"], strict=True)]
            title, identifier, question = row["document"]["title"], str(row["id"]), row["question"]["text"]
        found = _columns(row["long_answer_candidates"])
        candidates = list(zip(found["start_token"], found["end_token"], found["top_level"], strict=True))
        answers = [(a["start_token"], a["end_token"]) for a in _columns(row["annotations"])["long_answer"]]
        return identifier, question.strip(), title, words, candidates, answers
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TrainingError(
            f"{place}: {error!r}; the kind 'natural_questions' needs document, question, long_answer_candidates and "
            f"annotations, or their simplified form with document_text; there are {', '.join(map(str, row))}"
        ) from error


def _heading(document: str) -> str:
    rest = document.partition("<H1> ")[2]
    return rest.partition(" </H1>")[0].strip() if rest else ""


def _words(words: Sequence[str], start: int, end: int) -> str:
    return " ".join(filter(None, words[start:end]))


def _columns(value: Any) -> Mapping[str, list[Any]]:
    """A list of tables as a table of lists; Hugging Face stores nested lists either way."""
    if isinstance(value, Mapping):
        return value
    return {key: [item[key] for item in value] for key in (value[0] if value else ())} or defaultdict(list)


def _hotpotqa(config: MixtureSet, rows: Rows, rng: np.random.Generator, drops: Drops) -> Iterator[Example]:
    for place, row in rows:
        require(row, ("question", "supporting_facts", "context"), place, config.kind)
        question = text_of(row, "question", place)
        try:
            context = _listed(row["context"], "title", "sentences")
            supporting = dict.fromkeys(title for title, _ in _listed(row["supporting_facts"], "title", "sent_id"))
            paragraphs = {title: Text(title, title, "".join(sentences).strip()) for title, sentences in context}
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"{place}: {error!r}; context must hold titles and sentences, supporting_facts titles and places"
            ) from error
        identifier = str(row.get("id", row.get("_id", "")))
        others = [text for title, text in paragraphs.items() if title not in supporting and text.text]
        for number, title in enumerate(supporting):
            if title not in paragraphs or not paragraphs[title].text:
                drops["supporting paragraph is not in the context"] += 1
                continue
            negatives = _drawn(others, config.negatives, rng)
            yield _example(config, f"{identifier}-{number}", question, paragraphs[title], negatives)


def _listed(value: Any, first: str, second: str) -> list[tuple[Any, Any]]:
    """Pairs, from a list of pairs (the original files) or a table of two lists (Hugging Face)."""
    if isinstance(value, Mapping):
        return list(zip(value[first], value[second], strict=True))
    return [(one, other) for one, other in value]


def _fever(config: FeverSet, rows: Rows, rng: np.random.Generator, drops: Drops) -> Iterator[Example]:
    claims: dict[str, tuple[str, dict[str, None]]] = {}
    for place, row in rows:
        require(row, ("id", "label", "claim"), place, config.kind)
        label, claim = text_of(row, "label", place), text_of(row, "claim", place)
        if label not in ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO"):
            raise TrainingError(f"{place}: label is {label!r}; it must be SUPPORTS, REFUTES or NOT ENOUGH INFO")
        if label == "NOT ENOUGH INFO":
            drops["not enough info"] += 1
            continue
        _, pages = claims.setdefault(str(row["id"]), (claim, {}))
        pages.update(dict.fromkeys(_evidence(row, place)))
    needed = {page for _, pages in claims.values() for page in pages}
    texts: dict[str, Text] = {}
    for place, row in read_rows(
        f"{config.name} (passages)", config.passages, config.passages_config, config.passages_split
    ):
        require(row, ("id", "text"), place, "fever, passages")
        page, text = text_of(row, "id", place), text_of(row, "text", place)
        if page in needed and text:
            texts[page] = Text(page, _fever_title(page), text)
    for identifier, (claim, pages) in claims.items():
        for number, page in enumerate(pages):
            if page in texts:
                yield _example(config, f"{identifier}-{number}", claim, texts[page])
            else:
                drops["page is not among the passages"] += 1


def _evidence(row: Row, place: str) -> list[str]:
    if "evidence_wiki_url" in row:  # one sentence a row
        page = text_of(row, "evidence_wiki_url", place, optional=True)
        return [page] if page else []
    require(row, ("evidence",), place, "fever")
    try:
        return [page for group in row["evidence"] for _, _, page, _ in group if page]
    except (TypeError, ValueError) as error:
        raise TrainingError(
            f"{place}: evidence must be groups of [annotation, evidence, page, sentence], or the row have the column "
            f"evidence_wiki_url ({error})"
        ) from error


def _fever_title(page: str) -> str:
    for mark, sign in _FEVER_MARKS.items():
        page = page.replace(mark, sign)
    return page


def _whole(value: Any) -> Any:
    """A whole number that a CSV file holds as text; anything else as it is."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?\d+", value) else value


def _medmcqa(config: MedMcqaSet, rows: Rows, rng: np.random.Generator, drops: Drops) -> Iterator[Example]:
    for number, (place, row) in enumerate(rows, start=1):
        require(row, ("question", *OPTIONS, "cop"), place, config.kind)
        question, answer = text_of(row, "question", place), _whole(row["cop"])
        if answer is None or answer == -1:
            drops["no answer is given"] += 1
            continue
        if not isinstance(answer, int) or not 0 <= answer - config.first_answer < len(OPTIONS):
            raise TrainingError(
                f"{place}: cop is {answer!r}, and with first_answer = {config.first_answer} it must be "
                f"{config.first_answer} to {config.first_answer + 3}; the original files count from 1, Hugging Face from 0"
            )
        options = [text_of(row, option, place, optional=True) for option in OPTIONS]
        right = options[answer - config.first_answer]
        wrong = [Text("", "", text) for text in dict.fromkeys(options) if text and text != right]
        if not question or not right:
            drops["empty question or answer"] += 1
            continue
        if re.match(r"(all|none|any|both) of (the|these)\b", right, re.IGNORECASE):
            drops["the answer refers to the other options"] += 1
            continue
        identifier = str(row.get("id") or number)
        yield _example(config, identifier, question, Text("", "", right), _drawn(wrong, config.negatives, rng))


def _miracl(config: MixtureSet, rows: Rows, rng: np.random.Generator, drops: Drops) -> Iterator[Example]:
    for place, row in rows:
        require(row, ("query_id", "query", "positive_passages", "negative_passages"), place, config.kind)
        query = text_of(row, "query", place)
        positives, negatives = (_passages(row, side, place) for side in ("positive_passages", "negative_passages"))
        if not query or not positives:
            drops["no positive passage"] += 1
            continue
        for number, positive in enumerate(positives):
            drawn = _drawn(negatives, config.negatives, rng)
            yield _example(config, f"{row['query_id']}-{number}", query, positive, drawn)


def _passages(row: Row, column: str, place: str) -> list[Text]:
    try:
        found = _columns(row[column])
        texts = [Text(*parts) for parts in zip(found["docid"], found["title"], found["text"], strict=True)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TrainingError(f"{place}: {column} must hold docid, title and text ({error!r})") from error
    return [text for text in texts if text.text.strip()]


def _pairs(config: MixtureSet, rows: Rows, rng: np.random.Generator, drops: Drops) -> Iterator[Example]:
    for number, (place, row) in enumerate(rows, start=1):
        require(row, ("query", "text"), place, config.kind)
        query, text = text_of(row, "query", place, optional=True), text_of(row, "text", place, optional=True)
        if not query or not text:
            drops["empty query or text"] += 1
            continue
        negative = text_of(row, "negative", place, optional=True)
        negatives = [Text("", "", negative)][: config.negatives] if negative else []
        yield _example(
            config, str(number), query, Text("", text_of(row, "title", place, optional=True), text), negatives
        )


def _rows(config: MixtureSet, rows: Rows, rng: np.random.Generator, drops: Drops) -> Iterator[Example]:
    schema = SCHEMAS[Example]
    for place, row in rows:
        require(row, schema.names, place, config.kind)
        try:
            table = pa.Table.from_pylist([row], schema=schema)
        except (pa.ArrowException, TypeError) as error:
            raise TrainingError(f"{place}: it is no training row ({error})") from error
        (example,) = from_table(Example, table)
        task = example.task if config.task is None else config.task
        # The passages of the candidates are in the run that made the rows, not here.
        yield replace(example, dataset=config.name, task=task, candidates=(), fused=())


# --- symmetric sets


def _nli(config: MixtureSet, rows: Rows, rng: np.random.Generator, drops: Drops) -> Iterator[Example]:
    by_premise: dict[str, dict[int, dict[str, None]]] = {}
    for place, row in rows:
        columns = ("premise", "hypothesis", "label") if "premise" in row else ("sentence1", "sentence2", "gold_label")
        require(row, columns, place, config.kind)
        premise, hypothesis = (text_of(row, column, place) for column in columns[:2])
        label = NLI_LABELS.get(_whole(row[columns[2]]))
        if label is None:
            raise TrainingError(f"{place}: {columns[2]} is {row[columns[2]]!r}; known are 0, 1, 2, -1 and their names")
        if label == UNDECIDED:
            drops["no label that annotators agree on"] += 1
            continue
        if label == NEUTRAL or not premise or not hypothesis or premise == hypothesis:
            drops["neutral" if label == NEUTRAL else "empty or equal sentences"] += 1
            continue
        by_premise.setdefault(premise, {}).setdefault(label, {})[hypothesis] = None
    number = 0
    for premise, found in by_premise.items():
        against = [Text("", "", text) for text in found.get(CONTRADICTED, ())]
        if ENTAILED not in found:
            drops["premise without an entailed hypothesis"] += 1
            continue
        for hypothesis in found[ENTAILED]:
            number += 1
            negatives = _drawn([text for text in against if text.text != hypothesis], config.negatives, rng)
            yield _example(config, str(number), premise, Text("", "", hypothesis), negatives, symmetric=True)


def _sts(config: StsSet, rows: Rows, rng: np.random.Generator, drops: Drops) -> Iterator[Example]:
    similar: list[tuple[str, str]] = []
    unlike: dict[str, dict[str, None]] = {}
    highest, count = 0.0, 0
    for place, row in rows:
        sides = ("sentence1", "sentence2") if "sentence1" in row else ("sentence_A", "sentence_B")
        column = next((name for name in ("score", "relatedness_score", "label") if name in row), "score")
        require(row, (*sides, column), place, config.kind)
        one, other = (text_of(row, side, place) for side in sides)
        score = _number(row[column], column, place)
        if not 0 <= score <= config.scale:
            raise TrainingError(f"{place}: {column} is {score:g}, and scale = {config.scale:g}; give the set its scale")
        highest, count = max(highest, score), count + 1
        if not one or not other or one == other:
            drops["empty or equal sentences"] += 1
        elif score >= config.similar * config.scale:
            similar.append((one, other))
        elif score <= config.unlike * config.scale:
            unlike.setdefault(one, {})[other] = None
            unlike.setdefault(other, {})[one] = None
        else:
            drops["neither similar nor unlike"] += 1
    if count >= 20 and highest <= config.scale / 2:
        raise TrainingError(
            f"set {config.name!r}: the highest of {count} scores is {highest:g}, and scale = {config.scale:g}; "
            "give the set its scale"
        )
    if unlike:
        drops["unlike pair, used as a negative at most"] += sum(map(len, unlike.values())) // 2
    for number, (one, other) in enumerate(similar, start=1):
        negatives = _drawn([Text("", "", text) for text in unlike.get(one, ())], config.negatives, rng)
        yield _example(config, str(number), one, Text("", "", other), negatives, symmetric=True)


def _number(value: Any, column: str, place: str) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError("true or false")
        return float(value)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"{place}: {column} is {value!r:.80}, and must be a number") from error


def _classification(config: ClassificationSet, rows: Rows, rng: np.random.Generator, drops: Drops) -> Iterator[Example]:
    label_of: dict[str, str] = {}
    first: dict[str, str] = {}
    disputed: set[str] = set()
    for place, row in rows:
        require(row, (config.text_column, config.label_column), place, config.kind)
        text, label = text_of(row, config.text_column, place, optional=True), row[config.label_column]
        if isinstance(label, bool) or not isinstance(label, (str, int)) or label == "":
            raise TrainingError(
                f"{place}: {config.label_column} is {label!r:.80}, and must be a text or a whole number"
            )
        first.setdefault(str(label), place)
        if not text:
            drops["empty text"] += 1
        elif text in label_of:
            drops["text that was there before"] += 1
            if label_of[text] != str(label):
                disputed.add(text)
        else:
            label_of[text] = str(label)
    if disputed:
        drops["text with two labels"] += len(disputed)
    members: dict[str, list[str]] = {}
    for text, label in label_of.items():
        if text not in disputed:
            members.setdefault(label, []).append(text)
    if small := [label for label, texts in members.items() if len(texts) < 2]:
        if not config.drop_small_classes:
            raise TrainingError(
                f"{first[small[0]]}: class {small[0]!r} has one text only, and a row needs two of a class"
                f"{f' ({len(small)} such classes)' if len(small) > 1 else ''}; drop_small_classes = true leaves it out"
            )
        drops["class of one text"] += len(small)
        members = {label: texts for label, texts in members.items() if label not in small}
    if len(members) == 1:
        raise TrainingError(f"set {config.name!r}: all texts are of one class, {next(iter(members))!r}; two are needed")
    everyone = [text for texts in members.values() for text in texts]
    bounds = dict(zip(members, np.cumsum([0, *map(len, members.values())][:-1]).tolist(), strict=True))
    number = 0
    for label, texts in members.items():
        start, size = bounds[label], len(texts)
        for place_in_class, text in enumerate(texts):
            number += 1
            partner = int(rng.integers(size - 1))
            positive = texts[partner + (partner >= place_in_class)]
            count = min(config.negatives, len(everyone) - size)
            others = rng.choice(len(everyone) - size, count, replace=False)
            negatives = [Text("", "", everyone[other if other < start else other + size]) for other in others.tolist()]
            yield _example(config, str(number), text, Text("", "", positive), negatives, symmetric=True, group=label)


# Of each kind what makes its rows, and the task string that they have.
_KINDS: dict[str, tuple[Callable[[Any, Rows, np.random.Generator, Drops], Iterator[Example]], str]] = {
    "natural_questions": (_natural_questions, "question answering"),
    "hotpotqa": (_hotpotqa, "search result"),
    "fever": (_fever, "search result"),
    "medmcqa": (_medmcqa, "question answering"),
    "snli": (_nli, "semantic similarity"),
    "mnli": (_nli, "semantic similarity"),
    "miracl": (_miracl, "question answering"),
    "sts": (_sts, "semantic similarity"),
    "classification": (_classification, "classification"),
    "pairs": (_pairs, "search result"),
    "rows": (_rows, ""),
}
