"""What a run gives away: its rows as a dataset, its model, and a card for each.

``python -m gecko.publish RUN... -o FOLDER`` writes the rows of one run or several as one release.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gecko.fret.release import FILE, released_rows, write_release
from gecko.store import Run


def dataset_rows(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The judged queries of several runs, each query once.

    Raises:
        RunError: a run is not relabelled.
    """
    rows: dict[str, dict[str, Any]] = {}
    for folder in folders:
        with Run(folder) as run:
            for row in released_rows(run):
                rows.setdefault(row["query_id"], row)
    return list(rows.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a release from runs."""
    parser = argparse.ArgumentParser(prog="python -m gecko.publish", description="Write the rows of runs as a release.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    rows = dataset_rows(options.runs)
    path = options.out / FILE
    write_release(rows, path)
    print(f"{path}: {len(rows):,} rows, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
