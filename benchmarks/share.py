"""How much of its teacher's gain a student keeps, from labels that are stored in the repository: no teacher is asked.

For each labelled set ``LABELS/NAME/fret.parquet`` holds the queries that a teacher wrote for the set's passages, with every
score that it gave (ids and hashes, no passage), and ``LABELS/NAME/teacher.json`` the nDCG@10 of the teacher's own order of
the start model's candidates, query by query. The share that a student keeps is

    (student − start) / (teacher's order − start)

as macro means over the sets, of the same queries above and below, with bootstrap intervals over queries. A choice among
settings is made on the odd queries of a set and reported on the even ones.

    python benchmarks/share.py SET... [--half even] [--json]        the share, of the trainings that are kept
    python benchmarks/share.py SET... --train [--cell NAME KEY=VALUE...]... [--seeds 3]
                                                                    trains and measures what is not there yet
    python benchmarks/share.py SET... --judge QUERIES               asks the teacher: its own order of so many even queries
    python benchmarks/share.py SET... --write QUERIES               asks the teacher: new labels, by runs in --work

``SET`` is a BEIR folder, DIR or DIR@SPLIT, or ``stdlib-questions``. Where ``select.released`` names releases, such as those
that ship with the package, they are the labels. A cell is a name and the settings in which it differs from the default
preset; the first is ``default``. Each training's results are kept per query in ``LABELS/results/CELL/NAME-SEED.json``, so a
call that was killed goes on. The last line is JSON of the default cell: ``share``, ``share_ci95``, ``gain``, ``gain_ci95``,
``teacher_gain``, ``sets``; gains in points of nDCG@10. ``--plot FILE.svg`` draws its gains. A cell is compared with the
default, or with the cell that ``--base`` names, on the trainings of the same seeds.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gecko.config.load import load_config
from gecko.config.run import RunConfig
from gecko.config.training import WITHOUT_EFFECT
from gecko.core.counts import Counts
from gecko.core.files import digest, read_json, write_bytes, write_json
from gecko.core.progress import Terminal
from gecko.core.records import Example, Passage
from gecko.corpus import ingest
from gecko.encoder import load_encoder, resolve_model
from gecko.evaluation.beir import RetrievalSet, parse_spec
from gecko.evaluation.builtin import STDLIB_QUESTIONS
from gecko.evaluation.cache import KeptEmbeddings
from gecko.evaluation.evaluate import HEADLINE, dense_run
from gecko.evaluation.metrics import Array, macro_ci, per_query, share_ci
from gecko.evaluation.sets import load_set
from gecko.evaluation.teacher.answers import load_form
from gecko.evaluation.teacher.value import ValueConfig, connect, measure_orders, sample_queries
from gecko.fret.release import FILE, load_release
from gecko.report.plots import gains, standalone
from gecko.report.table import ResultRow
from gecko.report.text import markdown_table
from gecko.run.folder import Run
from gecko.stages import lexical, publish
from gecko.stages.runner import Pipeline
from gecko.weights.cache import cache_folder

LABELS = Path(__file__).parent / "labels"
DEFAULT = "default"
HALVES = {"odd": 1, "even": 0}


def main() -> None:
    """Read the options; write, judge, train, and print."""
    given = _options()
    ui = Terminal()
    cells = {DEFAULT: []} | {name: changes for name, *changes in given.cells}
    sets = [(spec, load_set(spec)) for spec in given.sets]
    for spec, data in sets:
        if given.write:
            _write_labels(given, spec, data.name, ui)
        if given.judge:
            _judge(given.labels / data.name, data, given.judge, _config(given, spec), ui)
    if given.train:
        for name, changes in cells.items():
            for seed in range(given.seeds):
                for spec, data in sets:
                    _train(given, name, _config(given, spec, changes), data, seed, ui)
    measured = [data for _, data in sets]
    if shown := [name for name in cells if any(_kept(given, name, data) for data in measured)]:
        rows = {name: _summary(given, name, measured) for name in shown}
        if not given.json:
            print(_sets_table(rows[shown[0]], given.half))
            print("\n" + _cells_table(rows, given.half))
            print(*(_paired(given, name, measured) for name in shown if name != given.base), sep="\n")
        if given.plot:
            write_bytes(given.plot, _plot(rows[shown[0]]).encode("utf-8"))
        print(json.dumps(rows[shown[0]]))


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("sets", nargs="+", metavar="SET")
    options.add_argument("--labels", type=Path, default=LABELS)
    options.add_argument("--train", action="store_true")
    options.add_argument("--cell", dest="cells", action="append", nargs="+", default=[], metavar=("NAME", "KEY=VALUE"))
    options.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="in all cells")
    options.add_argument("--base", default=DEFAULT, metavar="CELL", help="what the other cells are compared with")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--keep", type=Path, metavar="DIR", help="keep each trained model as DIR/CELL/NAME-SEED")
    options.add_argument("--half", choices=["even", "odd", "all"], default="even")
    options.add_argument("--json", action="store_true", help="print the last line alone")
    options.add_argument("--plot", type=Path, metavar="FILE")
    options.add_argument("--judge", type=int, metavar="QUERIES")
    options.add_argument("--write", type=int, metavar="QUERIES")
    options.add_argument("--work", type=Path, default=Path("runs/labels"))
    return options.parse_args()


def _config(given: argparse.Namespace, spec: str, changes: Sequence[str] = ()) -> RunConfig:
    source = "stdlib" if spec == STDLIB_QUESTIONS else str(parse_spec(spec, None)[0] / "corpus.jsonl")
    base = {"corpus": {"sources": [source], "chunk_tokens": None}}
    return load_config(None, [*given.changes, *changes], base)


# --- what asks the teacher


def _write_labels(given: argparse.Namespace, spec: str, name: str, ui: Terminal) -> None:
    config = _config(given, spec, [f"generate.queries={given.write}"])
    with Run(given.work / name, config, say=ui.say) as run:
        pipeline = Pipeline(run, ui)
        pipeline.ingest()
        pipeline.through("select")
    publish.main([str(given.work / name), "-o", str(given.labels / name)])


def _judge(folder: Path, data: RetrievalSet, queries: int, config: RunConfig, ui: Terminal) -> None:
    """The teacher's order of the start model's candidates, of even queries; a larger number adds to what is kept."""
    half = data.asking({key for key, _ in data.queries[::2]})
    value = ValueConfig(queries=queries, candidates=config.mine.n)
    form = load_form(value.forms[0])
    [measured] = measure_orders([half], [form], value, *connect(config.llm, config.backbone, value, ui))[form.name]
    chosen = sample_queries(half, queries, value.seed).qrels
    assert list(measured.data.qrels) == list(chosen), "the teacher refused a pair"
    orders = {order: _by_query(chosen, values) for order, values in measured.orders.items()}
    write_json(folder / "teacher.json", {"llm": config.llm, "queries": len(chosen), "orders": orders})


def _by_query(keys: Any, values: Array) -> dict[str, float]:
    return {key: round(float(value), 4) for key, value in zip(keys, values, strict=True)}


# --- what trains


def _train(
    given: argparse.Namespace, cell: str, config: RunConfig, data: RetrievalSet, seed: int, ui: Terminal
) -> None:
    file = given.labels / "results" / cell / f"{data.name}-{seed}.json"
    form, trained = config.train.formats[0], config.train.model_dump_json(exclude=WITHOUT_EFFECT)
    settings = digest(
        *(form, trained, config.select.model_dump_json(), config.backbone, str(config.student)),
        *([config.lexical.model_dump_json()] if config.lexical.sentences else []),
    )
    kept = given.keep / cell / file.stem if given.keep else None
    if file.exists() and read_json(file)["settings"] == settings and (kept is None or kept.exists()):
        return
    from gecko.training import train

    passages, rows = _rows(given.labels / data.name, config, seed)
    ui.say(f"{cell}, {data.name}, seed {seed}: {len(rows)} rows")
    with tempfile.TemporaryDirectory() as work:
        folder, points = Path(work) / "model", given.work / "checkpoints" / cell / f"{data.name}-{seed}" / "points"
        start = resolve_model(config.student or config.backbone)
        began = time.perf_counter()
        if config.lexical.sentences:
            start = _taught(
                Path(work) / "lexical", list(passages.values()), rows, config.model_copy(update={"seed": seed}), ui
            )
        train(rows, start, folder, form, config.train, seed, checkpoints=points, say=ui.say, passages=passages)
        seconds = time.perf_counter() - began
        student = _ndcg(data, str(folder))
        shutil.rmtree(points.parent, ignore_errors=True)
        if kept:
            shutil.copytree(folder, kept, dirs_exist_ok=True)
    result = {"settings": settings, "rows": len(rows), "seconds": round(seconds, 1), "student": student}
    write_json(file, result | {"start": _ndcg(data, config.backbone)})


def _taught(folder: Path, passages: list[Passage], rows: list[Example], config: RunConfig, ui: Terminal) -> str:
    """The start model after BM25's order (``lexical.sentences``), as in a run."""
    encoder = load_encoder(config.backbone)
    found = KeptEmbeddings(encoder, cache_folder() / "embeddings").passages(passages)
    lexical.learn(folder, passages, np.asarray(found), encoder, rows, config, ui)
    return str(lexical.learned(folder) or resolve_model(config.backbone))


def _rows(folder: Path, config: RunConfig, seed: int) -> tuple[dict[str, Passage], list[Example]]:
    passages = {passage.id: passage for passage in ingest(config.corpus, Counts())}
    releases = config.select.released or [str(folder / FILE)]
    return passages, [
        row for one in releases for row in load_release(one, passages, config.select).examples(config.select, seed)
    ]


def _ndcg(data: RetrievalSet, model: str) -> dict[str, float]:
    encoder = KeptEmbeddings(load_encoder(model), cache_folder() / "embeddings")
    return _by_query(data.qrels, per_query(dense_run(data, encoder), data.qrels, (HEADLINE,))[HEADLINE])


# --- the numbers


def _kept(given: argparse.Namespace, cell: str, data: RetrievalSet) -> dict[str, dict[str, Any]]:
    """The results of a cell's trainings on a set, by seed."""
    files = sorted((given.labels / "results" / cell).glob(f"{data.name}-*.json"))
    return {file.stem.rpartition("-")[2]: read_json(file) for file in files}


def _gains(trainings: Iterable[dict[str, Any]], keys: Sequence[str]) -> Array:
    """(queries,) the student's gain in points, the mean over its trainings."""
    each = [[one["student"][key] - one["start"][key] for key in keys] for one in trainings]
    points: Array = 100 * np.mean(each, axis=0)
    return points


def _keys(given: argparse.Namespace, data: RetrievalSet) -> list[str]:
    keys = [key for key, _ in data.queries if key in data.qrels]
    return keys if given.half == "all" else keys[HALVES[given.half] :: 2]


def _summary(given: argparse.Namespace, cell: str, sets: Sequence[RetrievalSet]) -> dict[str, Any]:
    """Gains of all queries of the half; the share of those that the teacher ordered."""
    found, parts, wholes, each = [], [], [], {}
    for data in sets:
        if not (kept := list(_kept(given, cell, data).values())):
            continue
        keys = _keys(given, data)
        found.append(_gains(kept, keys))
        file = given.labels / data.name / "teacher.json"
        start = 100 * np.mean([kept[0]["start"][key] for key in keys])
        each[data.name] = {
            "queries": len(keys),
            "rows": kept[0]["rows"],
            "seeds": len(kept),
            "seconds": round(float(np.mean([one["seconds"] for one in kept])), 1),
            "start": round(float(start), 1),
            "student": round(float(start + found[-1].mean()), 1),
            "gain": [round(value, 2) for value in macro_ci(found[-1:])],
        }
        if file.exists():
            orders = read_json(file)["orders"]
            if ordered := [key for key in keys if key in orders["rrf"]]:
                parts.append(_gains(kept, ordered))
                wholes.append(100 * np.array([orders["rrf"][key] - orders["retriever"][key] for key in ordered]))
                each[data.name] |= _share(parts[-1:], wholes[-1:]) | {"ordered": len(ordered)}
    gain, *ends = macro_ci(found)
    whole = _share(parts, wholes) if parts else {"share": None, "share_ci95": None, "teacher_gain": None}
    return whole | {
        "gain": round(gain, 2),
        "gain_ci95": [round(end, 2) for end in ends],
        "sets": each,
    }


def _share(parts: Sequence[Array], wholes: Sequence[Array]) -> dict[str, Any]:
    found = share_ci(parts, wholes)
    return {
        "share": None if found is None else round(found[0], 3),
        "share_ci95": None if found is None else [round(end, 3) for end in found[1:]],
        "teacher_gain": round(float(np.mean([whole.mean() for whole in wholes])), 2),
    }


def _sets_table(row: dict[str, Any], half: str) -> str:
    """The default on each set, and in the mean."""
    lines = [[f"set ({half} queries)", "rows", "start", "student", "gain", "the teacher's gain (queries)", "share"]]
    for name, one in row["sets"].items():
        teacher = f"{one['teacher_gain']:+.1f} ({one['ordered']:,})" if "ordered" in one else ""
        counts = [f"{name} ({one['queries']:,})", f"{one['rows']:,}", f"{one['start']:.1f}", f"{one['student']:.1f}"]
        lines.append([*counts, _interval(one["gain"]), teacher, _percent(one)])
    queries, rows, ordered = (
        sum(one.get(key, 0) for one in row["sets"].values()) for key in ("queries", "rows", "ordered")
    )
    means = [f"{np.mean([one[key] for one in row['sets'].values()]):.1f}" for key in ("start", "student")]
    teacher = "" if row["teacher_gain"] is None else f"{row['teacher_gain']:+.1f} ({ordered:,})"
    gain = _interval([row["gain"], *row["gain_ci95"]])
    return markdown_table([*lines, [f"mean ({queries:,})", f"{rows:,}", *means, gain, teacher, _percent(row)]])


def _cells_table(rows: dict[str, dict[str, Any]], half: str) -> str:
    names = list(dict.fromkeys(name for row in rows.values() for name in row["sets"]))
    lines = [[f"gain, {half} queries", *names, "macro", "share"]]
    for cell, row in rows.items():
        columns = [_interval(row["sets"][name]["gain"]) if name in row["sets"] else "" for name in names]
        lines.append([cell, *columns, _interval([row["gain"], *row["gain_ci95"]]), _percent(row)])
    return markdown_table(lines)


def _interval(numbers: Sequence[float]) -> str:
    mean, low, high = numbers
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _percent(row: dict[str, Any]) -> str:
    """A share with its interval; nothing where the teacher's own gain is not clearly above 0."""
    return "" if row.get("share") is None else "{:.0%} [{:.0%}, {:.0%}]".format(row["share"], *row["share_ci95"])


def _paired(given: argparse.Namespace, cell: str, sets: Sequence[RetrievalSet]) -> str:
    """A cell's gain over that of ``--base`` on the same queries, of the trainings of the same seeds."""
    gaps, seeds = [], []
    for data in sets:
        base, other = (_kept(given, name, data) for name in (given.base, cell))
        if both := base.keys() & other.keys():
            one, two = ([kept[seed] for seed in both] for kept in (base, other))
            gaps.append(_gains(two, _keys(given, data)) - _gains(one, _keys(given, data)))
            seeds.append(len(both))
    if not gaps:
        return f"{cell}: no training in common with {given.base}"
    return f"{cell} over {given.base}, {sum(seeds)} trainings on {len(gaps)} sets: {_interval(macro_ci(gaps))}"


def _plot(row: dict[str, Any]) -> str:
    """The gain on each set with its interval, as SVG."""
    points = {name: [value / 100 for value in one["gain"]] for name, one in row["sets"].items()}
    drawn = gains([ResultRow(name, 0, "student", True, 0, None, *gain) for name, gain in points.items()])
    assert drawn is not None
    return standalone(drawn.svg)


if __name__ == "__main__":
    main()
