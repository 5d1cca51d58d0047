"""What one model per corpus gains, and how much of its teacher's own gain it keeps.

For each labelled set a run distils the teacher on the set's passages alone (queries and judgements are only measured with):
``OUT/NAME`` is that run. Beside it stand BM25, the start model, and the teacher's own order of the start model's first
candidates on the same queries. The share that a student keeps is

    (student − start) / (teacher's order − start)

per set and over the sets, nDCG@10, with bootstrap intervals that draw the same queries above and below. ``--tasks`` are
measured before and after, in the same table, so that what a student forgot is seen. ``--joint`` trains one more model on the
rows of all runs, ``--second-round`` runs again with the students as miners. Any of it may be killed and called again: what
the teacher was paid for is kept, and a larger ``--queries`` adds to it.

    python benchmarks/gain.py SET... -o OUT [--queries 5000] [--tasks DIR...] [--joint] [--second-round] [--dry-run]

Written: ``OUT/gain.md``, ``gain.json``, ``gain.svg`` and, once there are two sizes, ``growth.svg``. In the last line
``ratio`` is the student's macro nDCG@10 over the start model's, ``limit_share`` the share of the teacher's gain.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gecko.config.load import load_config
from gecko.config.run import RunConfig
from gecko.core.errors import TeacherRefused
from gecko.core.files import digest, read_json, write_bytes, write_json
from gecko.core.progress import Terminal
from gecko.core.records import Example, Passage, Text
from gecko.encoder import load_encoder, model_identity, resolve_model
from gecko.evaluation.beir import RetrievalSet, parse_spec
from gecko.evaluation.cache import KeptEmbeddings
from gecko.evaluation.evaluate import BM25, HEADLINE, SetScores, evaluate_retrieval
from gecko.evaluation.metrics import Array, macro_ci, share_ci
from gecko.evaluation.sets import Sets, evaluate_sets, load_set, load_sets
from gecko.evaluation.teacher.answers import load_form
from gecko.evaluation.teacher.value import Measured, ValueConfig, connect, measure_orders
from gecko.report.plots import Plot, gains, growth, standalone
from gecko.report.table import ResultRow
from gecko.report.text import markdown_table
from gecko.run.folder import Run
from gecko.stages.runner import Pipeline, distill
from gecko.weights.cache import cache_folder

START, STUDENT = "start", "student"
OWN, SECOND, JOINT = "one model a corpus", "second round", "joint"
MACRO = "macro mean"


def main() -> None:
    """Read the options, distil, measure, write and print."""
    given = _options()
    ui = Terminal()
    sets = [load_set(spec) for spec in given.sets]
    tasks = load_sets(given.tasks or [])
    if given.dry_run:
        for data, spec in zip(sets, given.sets, strict=True):
            with Run(given.out / data.name, _config(given, spec), force=given.force, keep=False, say=ui.say) as run:
                print(f"\n{data.name}\n{Pipeline(run, ui).estimate()}")
            queries = min(len(data.queries), given.teacher_queries)
            print(f"the teacher's own order: {queries:,} queries, {queries * run.config.mine.n:,} pairs")
        return

    began = time.strftime("%Y-%m-%d")
    runs: dict[str, Path] = {}
    rounds: dict[str, Path] = {}
    refused: dict[str, str] = {}
    for data, spec in zip(sets, given.sets, strict=True):
        config = _config(given, spec)
        try:
            runs[data.name] = _distilled(given.out / data.name, config, ui, force=given.force, refused=given.force)
            if given.second_round:
                rounds[data.name] = _second(given.out, data.name, config, ui, given.force)
        except TeacherRefused as refusal:  # the other corpora need not wait for somebody to look
            ui.say(str(refusal))
            refused[data.name] = str(refusal)
            runs.pop(data.name, None)
    sets = [data for data in sets if data.name in runs]
    if not sets:
        raise SystemExit("the teacher was refused on every corpus")
    teacher = _teacher_orders(sets, next(iter(runs.values())), given.teacher_queries, ui)
    students = {OWN: {name: _model(path) for name, path in runs.items()}}
    if rounds:
        students[SECOND] = {name: _model(path) for name, path in rounds.items()}
    if given.joint:
        students[JOINT] = dict.fromkeys(runs, _joint(runs, given.out / JOINT, ui))
    result = _measure(sets, tasks, students, teacher, runs, ui)
    result |= {"date": began, "queries": given.queries, "seed": _config(given, given.sets[0]).seed, "refused": refused}
    _write(result, given.out)
    macro = result["students"][OWN]["macro"]
    kept = None if macro["share"] is None else round(macro["share"][0], 3)
    print(json.dumps({"ratio": round(macro[STUDENT] / macro[START], 4), "limit_share": kept}))


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("sets", nargs="+", help="BEIR folders, DIR@SPLIT")
    options.add_argument("-o", "--out", type=Path, required=True)
    options.add_argument("-c", "--config", type=Path, help="a recipe for all runs")
    options.add_argument(
        "--set", dest="changes", action="append", default=[], help="a setting of all runs, as key=value"
    )
    options.add_argument("--llm", help="the teacher, an LLM SPEC")
    options.add_argument("--backbone", help="the start model")
    options.add_argument("--queries", type=int, default=5000, help="generated queries a corpus")
    options.add_argument(
        "--teacher-queries", type=int, default=300, help="queries a set that the teacher itself orders"
    )
    options.add_argument("--tasks", nargs="+", help="task sets, DIR@SPLIT, measured before and after")
    options.add_argument("--joint", action="store_true", help="one model of the rows of all corpora, too")
    options.add_argument("--second-round", action="store_true", help="mine with the students and judge what is new")
    options.add_argument("--force", action="store_true", help="go on in folders that were made with other settings")
    options.add_argument("--dry-run", action="store_true", help="say what it would cost, and stop")
    return options.parse_args()


# --- the models


def _config(given: argparse.Namespace, spec: str) -> RunConfig:
    folder, _ = parse_spec(spec, None)
    base: dict[str, Any] = {
        "corpus": {"sources": [str(folder / "corpus.jsonl")]},
        "generate": {"queries": given.queries},
        "evaluate": {"sets": [spec]},
    }
    base |= {key: value for key in ("llm", "backbone") if (value := getattr(given, key))}
    return load_config(given.config, given.changes, base)


def _distilled(folder: Path, config: RunConfig, ui: Terminal, *, force: bool, refused: bool) -> Path:
    """``force``: with other settings than the folder's; ``refused``: with a teacher that the check refuses."""
    ui.say(f"\n{folder}")
    with Run(folder, config, force=force, say=ui.say) as run:
        distill(run, ui, force=refused)
    return folder


def _second(out: Path, name: str, config: RunConfig, ui: Terminal, refused: bool) -> Path:
    """A run whose miner is the first round's student; it begins with all that the first round has."""
    first, folder = out / name, out / "round-2" / name
    if not (folder / "config.json").exists():
        aside = folder.with_name(f"{name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(first, aside)
        aside.replace(folder)
    miner = folder / "miner"
    shutil.rmtree(miner, ignore_errors=True)
    shutil.copytree(first / "model", miner)
    mined = config.model_copy(update={"mine": config.mine.model_copy(update={"model": str(miner)})})
    return _distilled(folder, mined, ui, force=True, refused=refused)


def _model(run: Path) -> str:
    return str(run / "model")


def _joint(runs: dict[str, Path], folder: Path, ui: Terminal) -> str:
    """One model trained on the rows of all runs; ids get their corpus's name, since they are unique within one only."""
    from gecko.training import train

    rows: list[Example] = []
    passages: dict[str, Passage] = {}
    parts = []
    for name, path in runs.items():
        with Run(path) as run:
            config = run.config
            parts.append(run.finished("select").identity)
            rows += [_named(row, name) for row in run.read("select", Example)]
            passages |= {f"{name}/{one.id}": one for one in run.read("ingest", Passage)}
    form, settings = config.train.formats[0], config.train
    key = digest(*parts, model_identity(config.backbone), form, settings.model_dump_json(), str(config.seed))
    model = folder / key / "model"
    if not model.exists():
        ui.say(f"training one model on the {len(rows):,} rows of {len(runs)} corpora")
        work, points = folder / key / "partial", folder / key / "checkpoints"
        shutil.rmtree(work, ignore_errors=True)
        start = resolve_model(config.backbone)
        train(rows, start, work, form, settings, config.seed, checkpoints=points, say=ui.say, passages=passages)
        work.replace(model)
        shutil.rmtree(points, ignore_errors=True)
    return str(model)


def _named(row: Example, name: str) -> Example:
    def text(one: Text) -> Text:
        return replace(one, id=f"{name}/{one.id}")

    return replace(
        row,
        positive=text(row.positive),
        negatives=tuple(map(text, row.negatives)),
        group=f"{name}/{row.group}",
        candidates=tuple(f"{name}/{one}" for one in row.candidates),
    )


# --- the numbers


def _teacher_orders(sets: Sequence[RetrievalSet], run: Path, queries: int, ui: Terminal) -> dict[str, Measured]:
    """The teacher's orders by set, with the prompts, the fusion and the number of candidates of the runs."""
    with Run(run) as held:
        config = held.config
    likelihood, relevance = config.prompts.query_likelihood, config.prompts.relevance
    value = ValueConfig(
        forms=(relevance if likelihood == relevance else f"{likelihood}+{relevance}",),
        queries=queries,
        candidates=config.mine.n,
        passage_tokens=config.relabel.passage_tokens,
        precision=config.relabel.precision,
        seed=config.seed,
    )
    form = load_form(value.forms[0])
    measured = measure_orders(sets, [form], value, *connect(config.llm, config.backbone, value, ui))
    return {one.data.name: one for one in measured[form.name]}


@dataclass(frozen=True)
class _Of:
    """One student on one set: (queries,) of all, and (sampled,) of those that the teacher ordered."""

    scores: SetScores
    all: Array  # student − start
    sampled: Array  # student − start
    teacher: Array  # teacher's order − start


def _measure(
    sets: Sequence[RetrievalSet],
    tasks: Sets,
    students: dict[str, dict[str, str]],
    teacher: dict[str, Measured],
    runs: dict[str, Path],
    ui: Terminal,
) -> dict[str, Any]:
    kept = cache_folder() / "embeddings"
    with Run(next(iter(runs.values()))) as run:
        backbone, fusion, llm = run.config.backbone, run.config.select.fusion, run.config.llm
    start = KeptEmbeddings(load_encoder(backbone), kept)
    rows = {}
    for name, path in runs.items():
        with Run(path) as run:
            rows[name] = run.finished("select").rows
    result: dict[str, Any] = {"llm": llm, "backbone": backbone, "fusion": fusion, "students": {}}
    result["teacher"] = {
        name: {order: float(values.mean()) for order, values in one.orders.items()} for name, one in teacher.items()
    }
    for label, models in students.items():
        found: list[_Of] = []
        entry: dict[str, Any] = {"sets": {}, "tasks": {}}
        for data in sets:
            student = KeptEmbeddings(load_encoder(models[data.name]), kept)
            ui.say(f"measuring {label} on {data.name}")
            scores = evaluate_retrieval([data], {START: start, STUDENT: student}, progress=True)[data.name]
            found.append(_of(data, scores, teacher[data.name], fusion))
            entry["sets"][data.name] = _numbers(found[-1:]) | {"queries": len(data.queries)}
            entry["sets"][data.name]["rows"] = sum(rows.values()) if label == JOINT else rows[data.name]
            if tasks.tasks and (label != JOINT or not entry["tasks"]):
                measured = evaluate_sets(tasks, {"model": student, "baseline": start}, ui)
                entry["tasks"][MACRO if label == JOINT else data.name] = measured["tasks"]
        entry["macro"] = _numbers(found)
        entry["rows"] = sum(rows.values())
        result["students"][label] = entry
    return result


def _of(data: RetrievalSet, scores: SetScores, one: Measured, fusion: str) -> _Of:
    measured = scores.per_query
    difference = measured[STUDENT][HEADLINE] - measured[START][HEADLINE]
    by_query = dict(zip(data.qrels, difference.tolist(), strict=True))
    order = fusion if fusion in one.orders else "rc"
    sampled = np.array([by_query[key] for key in one.data.qrels])
    return _Of(scores, difference, sampled, one.orders[order] - one.orders["retriever"])


def _numbers(found: Sequence[_Of]) -> dict[str, Any]:
    means = {label: float(np.mean([one.scores.mean(label) for one in found])) for label in (BM25, START, STUDENT)}
    share = share_ci([one.sampled for one in found], [one.teacher for one in found])
    return means | {
        "gain": list(macro_ci([one.all for one in found])),
        "ordered": sum(len(one.teacher) for one in found),
        "teacher_gain": list(macro_ci([one.teacher for one in found])),
        "share": None if share is None else list(share),
    }


# --- for people


def _write(result: dict[str, Any], out: Path) -> None:
    write_json(out / "gain.json", result)
    history = out / "history"
    history.mkdir(exist_ok=True)
    write_json(history / f"{result['queries']}.json", result)
    main_rows = result["students"][OWN]
    drawn = gains([_result_row(name, row) for name, row in main_rows["sets"].items()])
    points = []
    for file in sorted(history.glob("*.json")):
        earlier = read_json(file)["students"][OWN]
        points.append((earlier["rows"], *earlier["macro"]["gain"]))
    plots: dict[str, Plot | None] = {"gain": drawn, "growth": growth("the mean over the sets", points)}
    for name, plot in plots.items():
        if plot is not None:
            write_bytes(out / f"{name}.svg", standalone(plot.svg).encode("utf-8"))
    text = _markdown(result)
    write_bytes(out / "gain.md", text.encode("utf-8"))
    print(text)


def _result_row(name: str, row: dict[str, Any]) -> ResultRow:
    delta, low, high = row["gain"]
    return ResultRow(name, row["queries"], STUDENT, True, row[STUDENT], None, delta, low, high)


def _markdown(result: dict[str, Any]) -> str:
    said = (
        f"Teacher {result['llm']}, start model {result['backbone']}, {result['queries']:,} generated queries a corpus, seed "
        f"{result['seed']}, {result['date']}. nDCG@10 in points, paired 95 % intervals of 10,000 resamples; the "
        "teacher's gain and the share are of the queries that the teacher ordered."
    )
    parts = [said, markdown_table(_rows(result)), markdown_table(_orders(result))]
    sizes = [len(entry["sets"]) for entry in result["students"].values()]
    if max(sizes) > 1:
        parts.append(_verdict(result["students"][OWN]))
    parts += [f"Not distilled: {name}. {why}" for name, why in result["refused"].items()]
    return "\n\n".join(parts) + "\n"


def _rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    tasks = next((list(found) for entry in result["students"].values() for found in entry["tasks"].values()), [])
    header = (
        "model",
        "set (queries)",
        "rows",
        "BM25",
        "start",
        "student",
        "gain",
        "teacher's gain (queries)",
        "share kept",
    )
    rows: list[tuple[str, ...]] = [(*header, *(f"{name}, before → after" for name in tasks))]
    for label, entry in result["students"].items():
        shown = [(f"{name} ({row['queries']:,})", row, name) for name, row in entry["sets"].items()]
        if len(shown) > 1:
            queries = sum(row["queries"] for row in entry["sets"].values())
            shown.append((f"{MACRO} ({queries:,})", entry["macro"] | {"rows": entry["rows"]}, MACRO))
        for name, row, key in shown:
            changes = entry["tasks"].get(key, {})
            rows.append(_row(label, name, row, [_change(changes.get(task)) for task in tasks]))
    return rows


def _row(label: str, name: str, row: dict[str, Any], changes: Sequence[str]) -> tuple[str, ...]:
    scores = (f"{100 * row[key]:.1f}" for key in (BM25, START, STUDENT))
    teacher = f"{_points(row['teacher_gain'])} ({row['ordered']:,})"
    share = "" if row["share"] is None else "{:.0%} [{:.0%}, {:.0%}]".format(*row["share"])
    return (label, name, f"{row['rows']:,}", *scores, _points(row["gain"]), teacher, share, *changes)


def _change(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    ends = "" if found["ci95"] is None else " [{:+.1f}, {:+.1f}]".format(*(100 * end for end in found["ci95"]))
    return f"{100 * found['baseline']:.1f} → {100 * found['score']:.1f} ({100 * found['delta']:+.1f}{ends})"


def _points(found: Sequence[float]) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in found))


def _orders(result: dict[str, Any]) -> list[tuple[str, ...]]:
    orders = list(next(iter(result["teacher"].values())))
    rows: list[tuple[str, ...]] = [("the teacher's order of the start's candidates", *orders)]
    for name, found in result["teacher"].items():
        rows.append((name, *(f"{100 * found[order]:.1f}" for order in orders)))
    means = (float(np.mean([found[order] for found in result["teacher"].values()])) for order in orders)
    return [*rows, ("mean", *(f"{100 * mean:.1f}" for mean in means))]


def _verdict(entry: dict[str, Any]) -> str:
    worse = [name for name, row in entry["sets"].items() if row["gain"][2] < 0]
    harmed = (
        f"worse than its start by more than its interval: {', '.join(worse)}"
        if worse
        else "no set is worse than its start by more than its interval"
    )
    share = entry["macro"]["share"]
    kept = "the teacher shows no gain to keep" if share is None else f"share of the teacher's gain kept: {share[0]:.0%}"
    return f"{kept[0].upper()}{kept[1:]}; {harmed}."


if __name__ == "__main__":
    main()
