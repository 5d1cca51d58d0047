"""One general model from the rows of many corpora, measured on test sets of other corpora.

    python recipes/general_model.py OUT SET... [--rows data/fret-open] [--released fret-stdlib]... [--most 150]
                                               [--seeds 3] [--set KEY=VALUE]...

ROWS is a data set of ``recipes/fret-open``: its passages are inside. ``--released`` adds rows that ship with gecko, whose
passages are the documentation of the running Python. ``--most`` rows of a corpus are drawn at random, so that no large
corpus decides. ``--set`` changes the default preset: ``train.freeze=passages`` trains the side of the queries alone, so
that an index of the start model stays valid.

OUT gets ``seed-N``, one model for each seed; one that is there is not trained again. SET is a BEIR folder, DIR or
DIR@SPLIT, or ``stdlib-questions``. Nothing of a set is read before it is measured, and ``recipes/fret-open`` has removed
queries that are near one of its ``--tests``. The table has the start model and the mean of the seeds, with paired bootstrap
intervals over queries; the last line is JSON.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from gecko.config.load import load_config
from gecko.config.run import RunConfig
from gecko.config.stages import CorpusConfig, SelectConfig
from gecko.config.training import WITHOUT_EFFECT
from gecko.core.counts import Counts
from gecko.core.files import digest, read_json, write_json
from gecko.core.progress import Terminal
from gecko.core.records import Example, Passage, Query
from gecko.core.text import difference, points
from gecko.corpus import ingest
from gecko.encoder import load_encoder, resolve_model
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.builtin import STDLIB_QUESTIONS
from gecko.evaluation.cache import KeptEmbeddings
from gecko.evaluation.evaluate import HEADLINE, evaluate_retrieval
from gecko.evaluation.metrics import macro_ci
from gecko.evaluation.sets import load_set
from gecko.fret.release import load_release, ranked_labels
from gecko.fret.select import select
from gecko.report.text import markdown_table
from gecko.training import train
from gecko.weights.cache import cache_folder

FRET_OPEN = Path(__file__).parent.parent / "data" / "fret-open"
SETTINGS = "general_model.json"  # in a model's folder
Texts = dict[str, Passage]


def main(arguments: list[str] | None = None) -> None:
    """Read the options, train what is not there, measure, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path)
    options.add_argument("sets", nargs="+", metavar="SET")
    options.add_argument("--rows", type=Path, default=FRET_OPEN)
    options.add_argument("--released", action="append", default=[], metavar="NAME", help="such as fret-stdlib")
    options.add_argument("--most", type=int, default=150, metavar="N", help="rows of a corpus")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    given = options.parse_args(arguments)
    if given.released and STDLIB_QUESTIONS in given.sets:
        options.error(f"{STDLIB_QUESTIONS} asks about the corpus of {', '.join(given.released)}; leave one of them out")
    config = load_config(None, ["train.formats=['native']", *given.changes], {})
    if len(config.train.formats) > 1:
        options.error(f"train.formats = {config.train.formats}; a model has one")
    sets = [load_set(spec) for spec in given.sets]  # first, so that a mistake in them shows before anything is trained
    passages, corpora = read_rows(given.rows, given.released, config.select)
    if not any(corpora.values()):
        options.error(f"{given.rows} has no rows to train on; make it with: python recipes/fret-open/build.py")
    for name, rows in corpora.items():
        print(f"{name}: {min(len(rows), given.most)} of {len(rows)} rows")
    models = []
    for seed in range(given.seeds):
        rng = np.random.default_rng(seed)
        rows = [of[at] for of in corpora.values() for at in sorted(rng.permutation(len(of))[: given.most])]
        models.append(train_model(given.out / f"seed-{seed}", rows, passages, config, seed))
    measure(sets, config.backbone, models)


def read_rows(folder: Path, released: Sequence[str], config: SelectConfig) -> tuple[Texts, dict[str, list[Example]]]:
    """The passages of all corpora by id, and each corpus's rows for training, chosen as ``select`` would."""
    passages: Texts = {}
    corpora: dict[str, list[Example]] = {}
    for path in sorted((folder / "train").glob("*.parquet")):
        queries, labels = [], {}
        for row in pq.read_table(path).to_pylist():
            for entry in row["candidates"]:
                passages[entry["passage_id"]] = Passage(entry["passage_id"], entry["title"], entry["text"])
            queries.append(Query(row["query_id"], row["task"], row["query"], row["seed_id"], row["writer"]))
            labels[row["query_id"]] = ranked_labels(row, config)
        corpora[path.stem] = list(select(queries, labels, passages, config, 0, Counts()))
    if released:
        library = {passage.id: passage for passage in ingest(CorpusConfig(), Counts())}
        passages |= library
        corpora |= {name: load_release(name, library, config).examples(config) for name in released}
    return passages, corpora


def train_model(folder: Path, rows: Sequence[Example], passages: Texts, config: RunConfig, seed: int) -> Path:
    """The model of a seed, trained unless it is there."""
    chosen = sorted(row.query_id for row in rows)
    how = (config.train.model_dump_json(exclude=WITHOUT_EFFECT), config.select.model_dump_json(), config.backbone)
    settings = {"of": digest(*config.train.formats, *how, *chosen), "rows": len(rows)}
    if (folder / SETTINGS).exists():
        if read_json(folder / SETTINGS) != settings:
            raise SystemExit(f"{folder} was trained on other rows or with other settings; name another OUT")
        return folder
    [form] = config.train.formats
    points, start = folder.parent / "checkpoints" / folder.name, resolve_model(config.backbone)
    train(rows, start, folder, form, config.train, seed, checkpoints=points, say=Terminal().say, passages=passages)
    write_json(folder / SETTINGS, settings)
    return folder


def measure(sets: Sequence[RetrievalSet], backbone: str, models: Sequence[Path]) -> None:
    """Print the start model beside the mean of the models, set by set."""
    folder = cache_folder() / "embeddings"
    encoders = {str(path): KeptEmbeddings(load_encoder(str(path)), folder) for path in [backbone, *models]}
    found = evaluate_retrieval(sets, encoders, bm25=False)
    gains, each, lines = [], {}, [["set (queries)", "start", "model", "gain"]]
    for data in sets:
        scores = {name: values[HEADLINE] for name, values in found[data.name].per_query.items()}
        start, model = scores[backbone], np.mean([scores[str(path)] for path in models], axis=0)
        gains.append(model - start)
        mean, *ends = each[data.name] = macro_ci(gains[-1:])
        label = f"{data.name} ({len(start):,})"
        lines.append([label, points(start.mean()), points(model.mean()), difference(mean, ends)])
    mean, *ends = macro = macro_ci(gains)
    lines.append(["mean", "", "", difference(mean, ends)])
    print(markdown_table(lines))
    [gain, *gain_ci95], *rows = [[round(100 * value, 2) for value in one] for one in (macro, *each.values())]
    print(json.dumps({"gain": gain, "gain_ci95": gain_ci95, "sets": dict(zip(each, rows, strict=True))}))


if __name__ == "__main__":
    main()
