"""Stage ``evaluate``: the trained models, the start model and BM25 on the test sets, and agreement with the teacher."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import gecko.encoder
from gecko.config.mixture import FRET
from gecko.core.errors import CorpusError
from gecko.core.files import digest, read_json, tree_sha256
from gecko.core.formats import InputFormat
from gecko.corpus.readers import source_identity
from gecko.encoder import Encoder
from gecko.evaluation import builtin
from gecko.evaluation.beir import RetrievalSet, parse_spec
from gecko.evaluation.cache import KeptEmbeddings
from gecko.evaluation.evaluate import BM25, SetScores, evaluate_retrieval
from gecko.evaluation.metrics import paired
from gecko.evaluation.sets import load_set
from gecko.fret.user_queries import likeness
from gecko.run.shards import build_json
from gecko.stages import agreement, choose
from gecko.stages.choose import CHOOSE, chosen_format
from gecko.stages.context import Context
from gecko.stages.embed import known_rows, vectors
from gecko.stages.stage import Stage, value
from gecko.stages.train import TRAIN, student_folder, training_rows

START, STUDENT = "start", "student"
SHOWN = ("ndcg@10", "recall@20")


def measure_run(context: Context) -> dict[str, Any]:
    """The numbers of a run, on 0–1.

    Returns:
        ``form``: the input format that was kept; ``sets``: for each test set its queries and, for each measure, the mean of
        every model (``bm25``, ``start``, each trained format) with its difference to ``start`` and the paired 95 %
        interval, ``trained_on``, how many of its queries were taught as queries that people asked, and ``widths``: nDCG@10
        of the start model and the kept one at each trained width; ``agreement``: the same measures for agreement with the
        teacher on held-out queries, and ``asked``, those of them that people asked, where there are any; ``rows``: what was
        trained on, and ``recipe``, a hash of how, so that evaluations of one recipe can be put beside each other.
    """
    config, chosen = context.config, chosen_format(context)
    forms, sets = config.train.formats, [load_set(spec) for spec in config.evaluate.sets]
    result: dict[str, Any] = {"form": chosen, "formats": list(forms), "sets": {}, "agreement": None}
    how = config.model_dump_json(include={"train", "select", "mixture", "student", "backbone", "seed"})
    if config.asked.sources:  # of another kind than written ones, so no point on their curve
        how += f"{config.asked.task} {config.generate.queries == 0}"
    result |= {"rows": len(training_rows(context)), "recipe": digest(how)}
    if sets:
        models = {START: context.models.start}
        models |= {form: gecko.encoder.load_encoder(str(student_folder(context, form))) for form in forms}
        result["sets"] = _measured(context, sets, models, chosen)
    if context.heldout:
        values = {label: np.array(row) for label, row in agreement.make(context).items()}

        def part(chosen: np.ndarray) -> dict[str, Any]:
            base, settings = values[START][chosen], (config.evaluate.resamples, config.seed)
            models = {label: _against(row[chosen], base, *settings, label == START) for label, row in values.items()}
            return {"queries": len(base), "models": models}

        asked = np.array([query.asked for query in context.heldout])
        result["agreement"] = part(np.ones_like(asked)) | ({"asked": part(asked)} if asked.any() else {})
    return result


def _measured(
    context: Context, sets: list[RetrievalSet], models: "dict[str, Encoder]", chosen: InputFormat
) -> dict[str, Any]:
    """The numbers of each test set."""
    config = context.config
    context.ui.say(f"measuring {len(models)} models on {', '.join(data.name for data in sets)}")
    for data in sets:
        if data.gaps:
            context.ui.say(f"{data.name}: {data.gaps}")
    with _scratch(context.run.path / ".vectors") as kept:
        whole = {label: KeptEmbeddings(encoder, kept) for label, encoder in models.items()}
        _reuse(context, sets, models[START], whole[START])
        scores = evaluate_retrieval(sets, whole, progress=True)
        widths: dict[str, list[dict[str, Any]]] = {name: [] for name in scores}
        # The widths that the model was trained in, largest first.
        dims: list[int] = read_json(context.run.path / f"train-{chosen}" / "training.json")["dims"]
        for dim in dims if len(dims) > 1 else ():
            labels = [label for label in (START, chosen) if dim <= models[label].dim]
            cut = {
                label: KeptEmbeddings(models[label].truncated(dim), kept) for label in labels if dim < models[label].dim
            }
            narrow = evaluate_retrieval(sets, cut, bm25=False) if cut else {}
            for name, score in scores.items():
                means = {label: (narrow[name] if label in cut else score).mean(label) for label in labels}
                widths[name].append({"dim": dim} | means)
    found = {
        name: _set(score, config.train.formats, config.evaluate.resamples, config.seed) | {"widths": widths[name]}
        for name, score in scores.items()
    }
    for name, count in _trained_on(context, sets).items():
        found[name]["trained_on"] = count
        context.ui.say(
            f"warning: {count:,} queries of {name} are among those that people asked, and were trained on: its numbers "
            "flatter the student; leave them out of asked.sources"
        )
    return found


def _reuse(context: Context, sets: list[RetrievalSet], start: "Encoder", kept: "KeptEmbeddings") -> None:
    """Let the stage ``embed`` answer for the passages of the sets that are passages of the run, too.

    In bfloat16 it does only for a set that is the run's corpus, embedded at once: in other batches the vectors are others,
    by so little that nDCG@10 of three in 460 questions changes.
    """
    place = known_rows(context)
    at_once = list(range(len(context.passages))) if len(context.run.finished("ingest").shards) == 1 else []
    for data in sets:
        rows = np.array([place.get((passage.title, passage.text), -1) for passage in data.passages])
        if (rows < 0).all() or (start.in_bf16 and rows.tolist() != at_once):
            continue
        found = np.asarray(vectors(context)[rows])
        if others := [passage for passage, row in zip(data.passages, rows, strict=True) if row < 0]:
            found[rows < 0] = start.passages(others, progress=True)
        kept.remember_passages(data.passages, found)


def _trained_on(context: Context, sets: list[RetrievalSet]) -> dict[str, int]:
    """By test set how many of its queries are among the rows that people asked; sets without such are left out."""
    taught = {likeness(row.query) for row in training_rows(context) if row.dataset == FRET and not row.seed_id}
    found = {data.name: sum(likeness(text) in taught for _, text in data.queries) for data in sets}
    return {name: count for name, count in found.items() if count}


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder that is empty at first and gone afterwards; what a killed process left in it is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _set(score: SetScores, forms: Sequence[str], resamples: int, seed: int) -> dict[str, Any]:
    measures = {}
    for measure in SHOWN:
        base = score.per_query[START][measure]
        measures[measure] = {
            label: _against(score.per_query[label][measure], base, resamples, seed, label == START)
            for label in (BM25, START, *forms)
        }
    return {
        "queries": len(score.data.queries),
        "passages": len(score.data.passages),
        "unknown_documents": score.data.unknown_documents,
        "unknown_queries": score.data.unknown_queries,
        "measures": measures,
    }


def _against(values: np.ndarray, base: np.ndarray, resamples: int, seed: int, is_base: bool) -> dict[str, Any]:
    ahead = {"delta": None, "ci95": None} if is_base else paired([values - base], resamples, seed)
    return {"mean": float(values.mean()), **ahead}


def make(context: Context) -> dict[str, Any]:
    """Hold the start model, the trained ones and BM25 against the test sets; for the numbers see :func:`measure_run`."""
    choose.make(context)
    measure = partial(measure_run, context)
    return build_json(context.run, EVALUATE.name, EVALUATE.parts(context), "results.json", measure)


def _depends(context: Context) -> dict[str, str]:
    return {
        "form": chosen_format(context),
        "agreement": digest(str(agreement.make(context))) if context.heldout else "",
        "start model": context.models.start_identity,
        "sets": digest(*(f"{spec}={_set_identity(spec)}" for spec in context.config.evaluate.sets)),
        "questions": builtin.data_hash("stdlib-questions.jsonl"),
    }


def _set_identity(spec: str) -> str:
    if spec == builtin.STDLIB_QUESTIONS:
        return source_identity("stdlib")
    path = parse_spec(spec, None)[0]
    if not path.exists():
        raise CorpusError(f"{path} does not exist; give a file, a folder or `stdlib`")
    return tree_sha256(path)


EVALUATE = Stage(
    name="evaluate",
    version=2,
    make=make,
    reads_each=TRAIN,
    settings={"resamples": value("evaluate.resamples"), "seed": value("seed")},
    depends=_depends,
    made="by its command",
    after=(CHOOSE,),
)
