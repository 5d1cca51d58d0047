"""What a teacher is worth: on labelled sets, its orders of the retriever's candidates against the retriever's own.

For each form of the prompts the retriever's first N are put in order by QL, by RC, by their fusion, and by their fusion
with the retriever's rank. Differences are paired, query by query. No pair is asked for twice (``answers.py``).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from gecko.config.stages import RelabelConfig
from gecko.core.errors import EvaluationError, TeacherError
from gecko.core.files import digest, read_json, write_json
from gecko.core.progress import Silent, Ui
from gecko.core.records import Passage
from gecko.encoder import Encoder, load_encoder, model_identity
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.evaluate import HEADLINE, dense_run, refuse_equal_names
from gecko.evaluation.metrics import Array, macro_ci, paired
from gecko.evaluation.teacher.answers import VERSION, Form, Judge, load_form, orders, spread_forms
from gecko.llm.answers import Kind
from gecko.llm.base import LanguageModel
from gecko.llm.registry import judging_form, load_teacher, teacher_identity
from gecko.prompts import load_prompt
from gecko.weights.cache import cache_folder

RUN_QUERIES = 1000  # of the run whose cost is estimated

Verdict = Literal["passes", "no difference shown", "does harm"]


@dataclass(frozen=True)
class ValueConfig:
    """What is measured.

    Attributes:
        forms: one prompt's name or file, read for QL and RC in one pass, or two with a ``+`` between (P_QL+P_RC); or a
            folder of files; ``graded`` and ``listwise`` for what a teacher answers in words. None: all that the teacher has.
        queries: at most so many a set, drawn at random; more of them include the fewer.
        candidates: how many of the retriever's first passages are put in order, N.
        passage_tokens: the teacher reads at most so many tokens of a passage.
        precision: of the teacher's linear layers, as ``relabel.precision``.
        generate: the prompt whose cost is measured for the estimate of a run.
        max_new_tokens: of a generated query.
        resamples: of the paired bootstrap.
        window: passages that are put in order in one request, as ``relabel.window``.
        thinking_tokens: as ``relabel.thinking_tokens``.
        seed: of the draw of queries and the bootstrap.
    """

    forms: tuple[str, ...] = ("relevance",)
    queries: int = 100
    candidates: int = 20
    passage_tokens: int = 256
    precision: Literal["auto", "int8", "full"] = "auto"
    generate: str = "generate"
    max_new_tokens: int = 64
    resamples: int = 10_000
    window: int = 20
    thinking_tokens: int = 0
    seed: int = 0


def sample_queries(data: RetrievalSet, count: int, seed: int) -> RetrievalSet:
    """A set with ``count`` of its queries, drawn at random and kept in file order; a larger draw includes a smaller."""
    chosen = np.random.default_rng(seed).permutation(len(data.queries))[:count]
    return data.asking({data.queries[place][0] for place in chosen})


def retrieve(data: RetrievalSet, start: "Callable[[], Encoder]", identity: str, k: int) -> dict[str, dict[str, float]]:
    """The start model's first ``k`` passages of each query; kept, so that a second check embeds nothing."""
    texts = digest(*(text for passage in data.passages for text in (passage.id, passage.title, passage.text)))
    asked = digest(*(text for query in data.queries for text in query))
    path = (
        cache_folder() / "checks" / f"candidates-{digest(str(VERSION), identity, texts, asked, data.task, str(k))}.json"
    )
    if not path.exists():
        write_json(path, dense_run(data, start(), k, progress=True))
    run: dict[str, dict[str, float]] = read_json(path)
    return run


@dataclass(frozen=True)
class Measured:
    """nDCG@10 of each order (and ``retriever``) on one set under one form: (queries,) on 0–1."""

    data: RetrievalSet
    orders: dict[str, Array]


def measure_orders(
    sets: Sequence[RetrievalSet],
    forms: Sequence[Form],
    config: ValueConfig,
    judge: Judge,
    start: "Callable[[], Encoder]",
    start_identity: str,
) -> dict[str, list[Measured]]:
    """Put the start model's candidates in every order, on every set, under every form.

    Returns by form each set with nDCG@10 of each order and query; a query is left out under all forms, and that is said,
    where the teacher refused a pair of it under any. Raises EvaluationError: two sets have one name, or no query of a set
    is left. RunError: another check of the same teacher is at work.
    """
    refuse_equal_names([data.name for data in sets])
    measured: dict[str, list[Measured]] = {form.name: [] for form in forms}
    with judge.alone():
        for whole in sets:
            data = sample_queries(whole, config.queries, config.seed)
            run = retrieve(data, start, start_identity, config.candidates)
            by_id = {passage.id: passage for passage in data.passages}
            groups = grouped(data, run)
            lists = {text: [by_id[found] for found in run[key]] for key, text in data.queries}
            for form in forms:
                judge.ask(form, groups, data.name, lists)
            data = _answered(data, groups, forms, judge)
            for form in forms:
                measured[form.name].append(Measured(data, orders(data, run, form, judge)))
    return measured


def grouped(data: RetrievalSet, run: Mapping[str, Iterable[str]]) -> list[tuple[Passage, list[str]]]:
    """Passages with the queries that retrieved them; a query text that stands in the set twice is asked once."""
    texts = dict(data.queries)
    asked: dict[str, list[str]] = {}
    for query_id, found in run.items():
        for passage_id in found:
            asked.setdefault(passage_id, []).append(texts[query_id])
    return [(passage, list(dict.fromkeys(asked[passage.id]))) for passage in data.passages if passage.id in asked]


def _answered(
    data: RetrievalSet, groups: Sequence[tuple[Passage, Sequence[str]]], forms: Sequence[Form], judge: Judge
) -> RetrievalSet:
    """A set less the queries of which the teacher refused a pair, so that all orders are of the same ones."""
    refused = {
        query
        for passage, queries in groups
        for query in queries
        if any(judge.refused(form, query, passage) for form in forms)
    }
    if not refused:
        return data
    left = {key for key, query in data.queries if query not in refused}
    lost, all_of_them = len(data.queries) - len(left), len(data.queries)
    what = f"{judge.known['name']} refused a pair of {lost} of {all_of_them} queries of {data.name}"
    if not left:
        raise EvaluationError(f"{what}, so it orders none; take another teacher, or mend what its server complains of")
    judge.ui.say(f"{what}; they are left out")
    return data.asking(left)


def teacher_value(
    sets: Sequence[RetrievalSet],
    config: ValueConfig,
    judge: Judge,
    start: "Callable[[], Encoder]",
    start_identity: str,
) -> dict[str, Any]:
    """What ``gecko check-teacher --json`` prints of a teacher on labelled sets under each form; numbers on 0–1.

    Raises ConfigError: a form cannot be used. The errors of :func:`measure_orders` come besides.
    """
    forms = [load_form(spec) for spec in spread_forms(config.forms or forms_of(judge.teacher))]
    measured = measure_orders(sets, forms, config, judge, start, start_identity)
    result: dict[str, Any] = {
        "teacher": judge.known["name"],
        "identity": judge.identity,
        "can_score": judge.known["can_score"],
        "candidates": config.candidates,
        "forms": {form.name: _numbers(measured[form.name], judge, form, config) for form in forms},
    }
    first = measured[forms[0].name]
    for form in forms[1:]:  # paired, so it tells forms apart that intervals against the retriever do not
        one = measured[form.name]
        differences = [
            mine.orders[_usual(one)] - its.orders[_usual(first)] for mine, its in zip(one, first, strict=True)
        ]
        result["forms"][form.name]["over_first"] = list(macro_ci(differences, config.resamples, config.seed))
    result["best"] = _best(measured, config)
    best = next(form for form in forms if form.name == result["best"]["form"])
    result["estimate"] = _estimate(best, sets[0].passages, config, judge)
    return result


def forms_of(teacher: LanguageModel) -> tuple[str, ...]:
    """The shipped forms that a teacher can judge in. Raises TeacherError: there is none."""
    relevance = load_prompt("relevance")
    found = [] if teacher.no_labels(relevance) else ["relevance"]
    asked: dict[str, Kind] = {"graded": "grades", "listwise": "order"}
    found += [name for name, kind in asked.items() if not teacher.no_answers(load_prompt(name), kind)]
    if not found:
        judging_form(teacher, relevance, load_prompt("graded"))  # which says why
    return tuple(found)


def _numbers(measured: Sequence[Measured], judge: Judge, form: Form, config: ValueConfig) -> dict[str, Any]:
    tokens, seconds = judge.price(form)
    result: dict[str, Any] = {
        "sets": {one.data.name: _row([one], config) | {"split": one.data.split} for one in measured},
        "tokens_per_pair": tokens,
        "seconds_per_pair": seconds,
    }
    if len(measured) > 1:
        result["macro"] = _row(measured, config)
    if "rrf" in measured[0].orders:
        ahead = {order: _ahead(measured, "rrf", order, config) for order in ("ql", "rc")}
        result["rrf_over"] = {order: [row["delta"], *row["ci95"]] for order, row in ahead.items()}
    return result


def _row(measured: Sequence[Measured], config: ValueConfig) -> dict[str, Any]:
    row: dict[str, Any] = {"queries": sum(len(one.data.queries) for one in measured)}
    for order in measured[0].orders:
        mean = float(np.mean([one.orders[order].mean() for one in measured]))
        if order == "retriever":
            row[order] = {HEADLINE: mean, "delta": None, "ci95": None}
            continue
        row[order] = {HEADLINE: mean, **_ahead(measured, order, "retriever", config)}
    return row


def _ahead(measured: Sequence[Measured], order: str, base: str, config: ValueConfig) -> dict[str, Any]:
    """How far an order is ahead of another under the same form, with its interval."""
    return paired([one.orders[order] - one.orders[base] for one in measured], config.resamples, config.seed)


def _usual(measured: Sequence[Measured]) -> str:
    """The order that forms are compared by; one without query likelihood has that of relevance alone."""
    return "rrf" if "rrf" in measured[0].orders else "rc"


def _best(measured: dict[str, list[Measured]], config: ValueConfig) -> dict[str, Any]:
    """The form whose fused order is best, and the fusion to use: RRF, unless another is shown to be better."""

    def worth(form: str) -> float:
        return float(_ahead(measured[form], _usual(measured[form]), "retriever", config)["delta"])

    form = max(measured, key=worth)  # the first of equals
    fusion = usual = _usual(measured[form])
    for other in measured[form][0].orders:
        if other not in ("retriever", usual) and _ahead(measured[form], other, usual, config)["ci95"][0] > 0:
            fusion = other if _ahead(measured[form], other, fusion, config)["delta"] > 0 else fusion
    ahead = _ahead(measured[form], fusion, "retriever", config)
    low, high = ahead["ci95"]
    verdict: Verdict = "passes" if low > 0 else "does harm" if high < 0 else "no difference shown"
    queries = sum(len(one.data.queries) for one in measured[form])
    return {
        "form": form,
        "fusion": fusion,
        **ahead,
        "queries": queries,
        "sets": len(measured[form]),
        "verdict": verdict,
    }


def _estimate(form: Form, passages: Sequence[Passage], config: ValueConfig, judge: Judge) -> dict[str, Any]:
    """Cost of a run of ``RUN_QUERIES`` on this machine, from what the check itself took.

    A run shares passages between the queries of a neighbourhood more than a test set's queries do: an upper bound.
    """
    tokens, seconds = judge.price(form)
    pairs = RUN_QUERIES * config.candidates
    estimate: dict[str, Any] = {
        "queries": RUN_QUERIES,
        "candidates": config.candidates,
        "judging": {"tokens": round(tokens * pairs), "seconds": seconds * pairs},
        "writing": None,
    }
    try:
        tokens, seconds = judge.writing_price(load_prompt(config.generate), passages, config.max_new_tokens)
    except TeacherError as error:
        judge.ui.say(f"writing queries could not be measured: {error}")
    else:
        estimate["writing"] = {"tokens": round(tokens * RUN_QUERIES), "seconds": seconds * RUN_QUERIES}
    return estimate


def connect(
    llm: str, backbone: str, config: ValueConfig, ui: Ui | None = None
) -> "tuple[Judge, Callable[[], Encoder], str]":
    """What measuring needs: a judge that loads the teacher when it must, the start model's loader and its identity."""
    shown = ui or Silent()

    def load() -> LanguageModel:
        shown.say(f"loading the teacher ({llm})")
        settings = RelabelConfig(
            passage_tokens=config.passage_tokens, precision=config.precision, thinking_tokens=config.thinking_tokens
        )
        return load_teacher(llm, settings, shown)

    judge = Judge(teacher_identity(llm), load, config.passage_tokens, shown, config.precision, config.window)
    return judge, lambda: load_encoder(backbone), model_identity(backbone)


def check_teacher(
    sets: Sequence[RetrievalSet], llm: str, backbone: str, config: ValueConfig, ui: Ui | None = None
) -> dict[str, Any]:
    """:func:`teacher_value` of the SPEC of a teacher against the order of a start model's SPEC."""
    for data in sets:
        if ui is not None and data.gaps:
            ui.say(f"{data.name}: {data.gaps}")
    settings = {"llm": llm, "backbone": backbone} | asdict(config)
    return {"settings": settings} | teacher_value(sets, config, *connect(llm, backbone, config, ui))
