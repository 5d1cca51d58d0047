"""One change at a time, over several runs: the cells of `gecko ablate`, each trained on every run's own labels.

A cell is one setting against the run's own: what is selected, how it is trained, how many rows. No language model is asked. A
run's students are measured on the run's own test sets (``evaluate.sets``), and a cell's number is the mean over all sets, so
that a change counts which helps on more than one corpus. Killed, it goes on at the next training.

    python benchmarks/study.py RUN... -o OUT [--cells GROUP|GROUP/NAME ...] [--seeds 3] [--epochs N] [--dry-run]

Written: ``OUT/study.md``, ``study.json`` and ``study.svg``; each run's own tables are what `gecko ablate RUN` writes from the
same trainings. In the last line ``ratio`` is the best cell's macro nDCG@10 over the start model's; there is no limit to name.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path

from gecko.evaluation.ablate import Ablation, Options, combined
from gecko.pipeline import Pipeline
from gecko.progress import Terminal
from gecko.report.ablation import markdown, plot
from gecko.report.text import duration
from gecko.store import Run, write_bytes, write_json


def main() -> None:
    """Read the options, train, write and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    options.add_argument("-o", "--out", type=Path, required=True)
    options.add_argument("--cells", nargs="+", default=[], help="groups, or cells as group/name; none: all")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--epochs", type=int)
    options.add_argument("--format", choices=["native", "unified"], default="native")
    options.add_argument("--dry-run", action="store_true")
    given = options.parse_args()
    ui = Terminal()
    chosen = Options(tuple(given.cells), given.seeds, given.epochs, form=given.format)
    with ExitStack() as held:
        runs = [held.enter_context(Run(path, say=ui.say)) for path in given.runs]
        ablations = [Ablation(run, chosen, ui, Pipeline(run).released) for run in runs]
        if given.dry_run:
            for ablation in ablations:
                left = ablation.estimate()
                print(
                    f"{ablation.run.path}: {left.trainings} trainings to do, about {duration(left.seconds)}; "
                    f"{left.kept} are there already"
                )
            return
        for ablation in ablations:
            ui.say(f"\n{ablation.run.path}")
            ablation.work()
        result = combined(ablations)
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / "study.json", result)
    write_bytes(given.out / "study.svg", plot(result).encode("utf-8"))
    text = markdown(result)
    write_bytes(given.out / "study.md", text.encode("utf-8"))
    print(text)
    best = max(cell["score"] for cell in result["cells"])
    print(json.dumps({"ratio": round(best / result["start"]["score"], 4), "limit_share": None}))


if __name__ == "__main__":
    main()
