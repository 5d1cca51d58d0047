"""The ablations of one run or of several, as one table."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from gecko.core.errors import RunError
from gecko.evaluation.ablate import Ablation
from gecko.evaluation.ablation_grid import Cell
from gecko.evaluation.ablation_table import merged, table


def study(ablations: Sequence[Ablation]) -> dict[str, Any]:
    """The cells of one run, or of several as one table (see :meth:`Ablation.result`), its macro mean over all sets.

    A cell's difference is then one that held on several corpora, each student against the start model on its own corpus.
    Cells that one of the runs was too small for are left out.

    Raises RunError: of several runs, one has no test set, two have one of the same name, or no cell is the same in all.
    """
    first, *others = ablations
    if not others:
        return first.work()
    cells, names = _shared_cells(ablations), [data.name for ablation in ablations for data in ablation.sets]
    for ablation in ablations:
        ablation.ui.say(f"\n{ablation.run.path}")
        ablation.train_left()
    found = [ablation.values() for ablation in ablations]
    values = {
        cell.label: [merged([one[cell.label][seed] for one in found]) for seed in range(first.options.seeds)]
        for cell in cells
    }
    sizes: Counter[str] = Counter()
    for ablation in ablations:
        sizes.update(ablation.sizes())
    return table(cells, values, sizes, merged([ablation.start_values for ablation in ablations]), names) | {
        "sets": {data.name: len(data.queries) for ablation in ablations for data in ablation.sets},
        "heldout": 0,
        "form": first.form,
        "epochs": " or ".join(dict.fromkeys(str(ablation.epochs) for ablation in ablations)),
        "seeds": first.options.seeds,
        "rerankers": [],
        "dims": [],
    }


def _shared_cells(ablations: Sequence[Ablation]) -> list[Cell]:
    """The cells that are trained in every run, told before the first training."""
    names = [data.name for ablation in ablations for data in ablation.sets]
    if any(not ablation.sets for ablation in ablations) or len(set(names)) < len(names):
        raise RunError(f"each run needs test sets of its own; there are: {', '.join(names) or 'none'}")
    if len({(ablation.form, ablation.options.seeds, ablation.options.epochs) for ablation in ablations}) > 1:
        raise RunError("the runs differ in format, seeds or epochs, so their cells are not the same; set them for all")
    cells = [cell for cell in ablations[0].planned if all(cell in other.planned for other in ablations)]
    if not cells:
        raise RunError(f"no cell is trained in all of the {len(ablations)} runs; name some that are with --cells")
    return cells
