"""FRet-open: queries, candidates and judgements over open corpora, with their passages.

::

    python recipes/fret-open/build.py --queries 5 --llm fake -o /tmp/fret-open      # a small one, from nothing
    python recipes/fret-open/build.py --passages-only                               # the corpora alone
    python recipes/fret-open/build.py --queries 500 --tests FOLDER_OF_TEST_SETS     # all of it; may be killed and run again

Each corpus is a run of gecko in ``WORK/NAME/run``, so what the teacher was paid for is kept, and a larger ``--queries`` adds
to it. A corpus's rows are written as soon as its run is done.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from corpora import FOLDER, Corpus, Made, load_corpora, make_passages
from release import write_card, write_corpus
from testsets import TestTexts, read_tests

from gecko.config.load import load_config
from gecko.config.run import RunConfig
from gecko.core.errors import GeckoError
from gecko.core.progress import Terminal, Ui
from gecko.fret.variables import LANGUAGE
from gecko.prompts import KIND
from gecko.run.folder import Run
from gecko.stages.runner import Pipeline

RECIPE = Path(__file__).parent / "run.toml"
PER_QUERY = 40  # passages: a small data set is made of small corpora, and one of 75 queries a corpus of whole ones


def settings(corpus: Corpus, made: Made, llm: str, queries: int, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of a corpus's run: those of ``run.toml``, its passages, and the kinds and languages of its queries."""
    asked = corpus.table("queries")
    generate = {"queries": queries, "min_seed_chars": asked.get("min_seed_chars", 150)}
    corpus_values: dict[str, object] = {"sources": [str(made.path)]}
    drawn = {name: asked[key] for key, name in (("kinds", KIND), ("languages", LANGUAGE)) if key in asked}
    if drawn:
        generate["variables"] = drawn
    if LANGUAGE in drawn:
        corpus_values["languages"] = [corpus.language]  # which names it, where a query is to be in the passage's own
    card = {"title": f"FRet-open: {corpus.name}", "corpus_license": ", ".join(made.facts["licences"])}
    base = {"corpus": corpus_values, "llm": llm, "generate": generate, "card": card}
    if "prompt" in asked:
        base["prompts"] = {"generate": str(RECIPE.with_name("prompts") / asked["prompt"])}
    if "max_title" in asked:
        base["select"] = {"max_title": asked["max_title"]}
    return load_config(RECIPE, overrides, base)


def build_corpus(
    corpus: Corpus,
    made: Made,
    config: RunConfig,
    tests: TestTexts,
    folders: tuple[Path, Path],
    ui: Ui,
    restart: bool = False,
) -> dict[str, int]:
    """Have a corpus's queries written and judged, and write its rows and the card; the number of rows by split.

    Args:
        corpus: which.
        made: its passages.
        config: of its run.
        tests: what no query may repeat.
        folders: of the work, and of the data set.
        ui: where sentences go.
        restart: go on in a run that was made with other settings.
    """
    work, out = folders
    with Run(work / corpus.name / "run", config, force=restart, say=ui.say) as run:
        pipeline = Pipeline(run, ui)
        pipeline.ingest()
        pipeline.through("select")
        counts = write_corpus(pipeline, corpus, made, tests, out)
    write_card(out)
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    """Build it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="*", help=f"names of {FOLDER.name}/*.toml; none: all of them")
    parser.add_argument("-o", "--out", type=Path, default=Path("data/fret-open"), help="the folder of the data set")
    parser.add_argument("--work", type=Path, default=Path("runs/fret-open"), help="packages, passages and runs")
    parser.add_argument("--queries", type=int, default=500, help="of each corpus")
    parser.add_argument("--passages", type=int, help=f"of each corpus, at most; none: {PER_QUERY} a query")
    parser.add_argument("--llm", default="default", help="the teacher")
    parser.add_argument("--mirror", default="", metavar="URL", help="a Debian archive; none: apt-get download")
    parser.add_argument("--tests", action="append", type=Path, default=[], metavar="FOLDER", help="test sets below it")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="of every run"
    )
    parser.add_argument("--passages-only", action="store_true", help="stop before the teacher")
    parser.add_argument("--restart", action="store_true", help="go on in runs that were made with other settings")
    options = parser.parse_args(arguments)
    ui = Terminal()
    tests = read_tests(options.tests)
    ui.say(f"{len(tests.texts):,} texts of {len(tests.names)} test sets are kept out")
    for corpus in load_corpora(FOLDER, options.corpora):
        most = options.passages or PER_QUERY * max(options.queries, 1)
        made = make_passages(corpus, options.work, options.mirror, most)
        drops = ", ".join(f"{count:,} {reason}" for reason, count in made.facts["drops"].items())
        ui.say(f"{corpus.name}: {made.facts['passages']:,} passages of {made.facts['documents']:,} documents ({drops})")
        if options.passages_only:
            continue
        config = settings(corpus, made, options.llm, options.queries, options.overrides)
        counts = build_corpus(corpus, made, config, tests, (options.work, options.out), ui, options.restart)
        ui.say(f"{corpus.name}: {', '.join(f'{count:,} {name}' for name, count in counts.items())}")


if __name__ == "__main__":
    try:
        main()
    except GeckoError as failure:
        raise SystemExit(f"error: {failure}") from None
