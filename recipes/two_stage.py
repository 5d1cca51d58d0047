"""From a raw language model (SmolLM2-135M) to an embedder in the paper's two stages, measured after each.

    python recipes/two_stage.py DATA OUT [--size smoke|small|full] [--rows RUN] [--set KEY=VALUE]

DATA holds ``pairs/`` (files of query, title, text), ``passages/`` (files of title, text) and ``tasks/NAME/train.jsonl`` for
the sets that the recipe names; to measure on, ``retrieval/NAME`` (BEIR folders), ``tasks/stsb_en`` and ``tasks/sick``. OUT
gets ``stage1`` (after the pairs), ``fret`` (stage 2 on FRet alone) and ``gecko`` (stage 2 on FRet and the sets); the model of
each is OUT/NAME/model, and the table of all of them OUT/table.md, which is printed at the end. The same command goes on
where it was stopped.

The size chooses ``two-stage-SIZE.toml`` and how much is measured; every number can be given instead: ``--set
pretrain.limit=5000`` (pairs of a source), ``--set generate.queries=2000``, ``--passages``, ``--test-queries``,
``--test-passages``. With ``--rows`` the rows of that run of gecko distill are trained on, and no teacher is asked.
"""

import argparse
import json
import os
import platform
import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gecko.config.load import load_config
from gecko.config.run import RunConfig
from gecko.core.errors import ConfigError, GeckoError
from gecko.core.files import digest, read_json, write_json

HERE = Path(__file__).parent
STS = ("stsb_en", "sick")
WIDTH = 256  # beside the full one


@dataclass(frozen=True)
class Size:
    """How much is read besides what the recipe says; none: all of it."""

    passages: int | None = None
    test_queries: int | None = None
    test_passages: int | None = None


SIZES = {"smoke": Size(60, 4, 8), "small": Size(3000, 100, 1000), "full": Size()}

COPY = ".copy"  # marks a run's folder that two_stage.py has copied, and may replace


def main(arguments: list[str] | None = None) -> None:
    """Read the options, train what is not there yet, measure, print."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("data", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--size", choices=SIZES, default="full")
    options.add_argument("--model", default="smollm2", help="the raw model: smollm2, hf:NAME or a folder")
    options.add_argument("--llm", help="the teacher, where the recipe's is not wanted")
    options.add_argument("--rows", type=Path, help="a run of gecko distill whose rows are used")
    options.add_argument("--passages", type=int, help="of the corpus, drawn at random")
    options.add_argument("--test-queries", type=int, help="of each retrieval set")
    options.add_argument("--test-passages", type=int, help="of each retrieval set, and pairs of each similarity set")
    options.add_argument("--set", action="append", default=[], help="a setting, as for gecko; can be repeated")
    given = options.parse_args(arguments)
    chosen = {name: getattr(given, name) for name in Size.__dataclass_fields__ if getattr(given, name) is not None}
    size = replace(SIZES[given.size], **chosen)
    given.out.mkdir(parents=True, exist_ok=True)
    sets = test_sets(given, size)  # first, so that a mistake in them shows before anything is trained
    table = measure(given, size, sets, train(given, size))
    (given.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


# --- training


def train(given: argparse.Namespace, size: Size) -> dict[str, Path]:
    """The run folder of each stage, trained now where it is not there."""
    data, out = given.data.resolve(), given.out.resolve()
    recipe = out / "recipe.toml"  # with the sources' full paths
    recipe.write_text(
        placed((HERE / f"two-stage-{given.size}.toml").read_text(encoding="utf-8"), data), encoding="utf-8"
    )
    settings = [word for text in given.set for word in ("--set", text)]
    stage1, fret, both = (out / name for name in ("stage1", "fret", "gecko"))
    gecko("pretrain", data / "pairs", "-o", stage1, "-c", recipe, "--start", given.model, *settings)
    settings += ["--set", f"student={stage1}/model"]
    alone = ["--set", "mixture.sets=[]"]
    if given.rows:
        copied(given.rows, fret)
        recipe.write_text(second_stage(recipe.read_text(encoding="utf-8")), encoding="utf-8")
        gecko("train", fret, "-c", recipe, *settings, *alone)
    else:
        corpus = data / "passages" if size.passages is None else drawn_corpus(data / "passages", size.passages, out)
        teacher = ["--llm", given.llm] if given.llm else []
        gecko("distill", corpus, "-o", fret, "-c", recipe, *teacher, *settings, *alone)
    copied(fret, both)
    gecko("train", both, "-c", recipe, *settings)
    return {"stage1": stage1, "fret": fret, "gecko": both}


def gecko(*words: object) -> None:
    """Run a command of gecko in this process, and show it."""
    from gecko.cli.main import app

    arguments = [str(word) for word in words]
    print("$ gecko", *arguments, flush=True)
    app(arguments, standalone_mode=False)


def placed(recipe: str, data: Path) -> str:
    """The recipe with the data's folder in front of its sources."""
    return recipe.replace('source = "', f'source = "{data.as_posix()}/')


def second_stage(recipe: str) -> str:
    """What a recipe says of stage 2 alone, so that the rest of a run's settings stay."""
    return recipe[recipe.index("[train]") :]


def copied(run: Path, to: Path) -> None:
    """Copy a run's folder, whole or not at all; again, if it has other rows by now."""
    theirs, ours = (folder / "select" / "manifest.json" for folder in (run, to))
    if not theirs.exists():
        raise ConfigError(
            f"{run} has selected no rows yet; give the folder of a run that gecko distill has brought so far"
        )
    if not ours.exists() or ours.read_bytes() != theirs.read_bytes():
        if any(to.glob("relabel*/part-*")) and not (to / COPY).exists():
            raise ConfigError(
                f"{to} holds what a teacher was paid for, and is no copy; give another OUT, or move it away"
            )
        aside = to.with_name(f"{to.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(run, aside)
        for theirs_alone in (*aside.glob("train-*"), aside / "archive"):  # what it trained is not ours
            shutil.rmtree(theirs_alone, ignore_errors=True)
        # What a teacher was paid for on the mixture's sets is kept.
        for kept in (*to.glob("mine-*"), *to.glob("relabel-*")):
            if not (aside / kept.name).exists():
                shutil.copytree(kept, aside / kept.name)
        (aside / COPY).touch()
        shutil.rmtree(to, ignore_errors=True)
        aside.rename(to)


def drawn_corpus(folder: Path, count: int, out: Path) -> Path:
    """A file with some of the corpus's passages."""
    from gecko.config.stages import CorpusConfig
    from gecko.core.counts import Counts
    from gecko.corpus import ingest

    file = out / f"passages-{count}.jsonl"
    if not file.exists():
        passages = list(ingest(CorpusConfig(sources=[str(folder)]), Counts()))
        some = random.Random(0).sample(passages, min(count, len(passages)))
        lines = [json.dumps({"_id": one.id, "title": one.title, "text": one.text}) + "\n" for one in some]
        aside = file.with_suffix(".partial")
        aside.write_text("".join(lines), encoding="utf-8")
        aside.replace(file)
    return file


# --- measuring


def test_sets(given: argparse.Namespace, size: Size) -> Any:
    """What the models are measured on, cut to size."""
    from gecko.evaluation.sets import Sets

    sets = Sets(retrieval_sets(given.data / "retrieval", size), similarity_sets(given.data, given.out, size), [])
    if not sets.retrieval:
        raise ConfigError(f"{given.data}/retrieval holds no folder with a corpus.jsonl: there is nothing to measure on")
    return sets


def measure(given: argparse.Namespace, size: Size, sets: Any, stages: dict[str, Path]) -> str:
    """All models on all sets, as a Markdown table; what was measured before is not measured again."""
    config = load_config(HERE / f"two-stage-{given.size}.toml", given.set)
    stage1, fret, both = (str(stages[name] / "model") for name in ("stage1", "fret", "gecko"))
    wanted = [  # label, model, width, and what it is held against
        ("MiniLM", "minilm", None, None),
        (f"{given.model}, raw", given.model, None, None),
        ("stage 1", stage1, None, given.model),
        ("stage 1", stage1, WIDTH, stage1),
        ("FRet", fret, None, stage1),
        ("FRet", fret, WIDTH, fret),
        ("FRet and sets", both, None, fret),
        ("FRet and sets", both, WIDTH, both),
    ]
    labels = {model: label for label, model, _, _ in wanted}
    names = [data.name for data in (*sets.retrieval, *sets.tasks)]
    rows = [["model", "dims", *names[: len(sets.retrieval)], "mean", *names[len(sets.retrieval) :], "difference to"]]
    bm25: list[str] = []
    for label, model, width, against in wanted:
        found = measured(given.out / "measured", sets, config, size, model, width, against)
        each = list(found["sets"].values())
        each.append(found.get("macro", each[0]))  # a single set is its own mean
        bm25 = [f"{row['bm25']:.3f}" for row in each]
        cells = [f"{row['ndcg@10']:.3f}" for row in each] + [
            f"{row['score']:.3f}" for row in found.get("tasks", {}).values()
        ]
        change = ""
        if against:
            low, high = each[-1]["ci95"]
            before = "its full width" if against == model else labels[against]
            change = f"{before}: {each[-1]['delta']:+.3f} [{low:+.3f}, {high:+.3f}]"
        rows.append([label, str(found["width"]), *cells, change])
    rows.insert(1, ["BM25", "", *bm25, *[""] * len(sets.tasks), ""])
    return "\n".join([*markdown(rows), "", *notes(given, size, stages)])


def retrieval_sets(folder: Path, size: Size) -> list[Any]:
    """The BEIR folders, by name, each with the split on which models are compared, and cut to size."""
    from gecko.evaluation.beir import load_beir

    found = []
    for corpus in sorted(folder.glob("*/corpus.jsonl")):
        splits = {file.stem for file in (corpus.parent / "qrels").glob("*.tsv")}
        split = next(name for name in ("test", "dev", *sorted(splits)) if name in splits)
        found.append(cut(load_beir(f"{corpus.parent}@{split}"), size))
    return found


def cut(data: Any, size: Size) -> Any:
    """Some of a set's queries, with their relevant passages and others, drawn at random."""
    generator = random.Random(0)
    queries = data.queries
    if size.test_queries is not None:
        queries = generator.sample(queries, min(size.test_queries, len(queries)))
    qrels = {identifier: data.qrels[identifier] for identifier, _ in queries}
    passages = data.passages
    if size.test_passages is not None:
        judged = {one for grades in qrels.values() for one in grades}
        others = [one for one in passages if one.id not in judged]
        kept = [one for one in passages if one.id in judged]
        passages = kept + generator.sample(others, min(max(0, size.test_passages - len(kept)), len(others)))
    return replace(data, queries=queries, qrels=qrels, passages=passages)


def similarity_sets(data: Path, out: Path, size: Size) -> list[Any]:
    """The similarity sets that are there, cut to size."""
    from gecko.evaluation.tasks import load_folder

    found = []
    for name in STS:
        file = data / "tasks" / name / "test.jsonl"
        if not file.exists():
            continue
        if size.test_passages is not None:
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            some = random.Random(0).sample(lines, min(size.test_passages, len(lines)))
            file = out / f"test-{size.test_passages}" / name / "test.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(some), encoding="utf-8")
        found.append(load_folder(str(file.parent)))
    return found


def measured(
    folder: Path, sets: Any, config: RunConfig, size: Size, model: str, width: int | None, against: str | None
) -> dict[str, Any]:
    """What ``gecko eval --json`` prints, and the width; from ``folder`` if it is there.

    No model reads more than ``train.max_tokens`` of a text, so that the raw one, which has no bound of its own, has that of
    the others.
    """
    from gecko.core.progress import Terminal
    from gecko.encoder import load_encoder, model_identity
    from gecko.evaluation.cache import KeptEmbeddings
    from gecko.evaluation.sets import evaluate_sets
    from gecko.weights.cache import cache_folder

    def kept(spec: str, dim: int | None) -> KeptEmbeddings:
        encoder = load_encoder(spec, pad_token=config.pretrain.backbone.pad_token)
        encoder.model.max_seq_length = min(tokens, encoder.model.max_seq_length or tokens)
        return KeptEmbeddings(encoder.truncated(dim) if dim else encoder, cache_folder() / "embeddings")

    tokens = config.train.max_tokens
    models = [model_identity(spec) if spec else "" for spec in (model, against)]
    sizes = [f"{data.name}:{len(data.queries)}:{len(data.passages)}" for data in sets.retrieval]
    sizes += [data.name for data in sets.tasks]
    file = folder / f"{digest(*models, str(width), str(tokens), repr(size), *sizes)}.json"
    if not file.exists():
        print(f"measuring {model}" + (f", {width} dimensions" if width else ""), flush=True)
        compared = {"model": kept(model, width), **({"baseline": kept(against, None)} if against else {})}
        result = evaluate_sets(sets, compared, Terminal())
        write_json(file, {**result, "width": width or compared["model"].dim})
    found: dict[str, Any] = read_json(file)
    return found


def markdown(rows: list[list[str]]) -> list[str]:
    """A table of which the first row is the header."""
    header, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return [header, "|" + "---|" * len(rows[0]), *rest]


def notes(given: argparse.Namespace, size: Size, stages: dict[str, Path]) -> list[str]:
    """What was trained on what, and where."""
    import torch

    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {os.cpu_count()} CPUs"
    )
    lines = [f"Size `{given.size}`{''.join(f', `{text}`' for text in given.set)}. Machine: {device}."]
    for name, run in stages.items():
        for file in sorted(run.glob("*train*/training.json")):
            report = read_json(file)
            first, last = (sum(loss for _, loss in part) / len(part) for part in ends(report["losses"]))
            lines.append(
                f"- {name}: {report['rows']:,} rows, {report['steps']:,} steps, {report['seconds'] / 60:.1f} minutes; "
                f"loss {first:.2f}, at the end {last:.2f}."
            )
    if size.test_queries is not None or size.test_passages is not None:
        lines.append(
            f"- Measured on {size.test_queries or 'all'} queries and {size.test_passages or 'all'} passages of each set (and "
            "so many sentence pairs), so the numbers compare with each other only."
        )
    return lines


def ends(losses: list[list[float]]) -> tuple[list[list[float]], list[list[float]]]:
    """The first and the last tenth of the losses, at least one of each."""
    part = max(1, len(losses) // 10)
    return losses[:part], losses[-part:]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        main()
    except GeckoError as problem:
        raise SystemExit(f"error: {problem}") from problem
