"""An ablation as a table for the terminal and for Markdown, and as a plot that stands alone."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gecko.core.files import write_bytes, write_json
from gecko.core.text import difference, points
from gecko.report.plots import ACCENT, INK, SECOND, draw_svg, draw_widths, standalone
from gecko.report.text import markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_ablation(result: Mapping[str, Any], folder: Path) -> None:
    """Write ``ablation.md``, ``ablation.json``, ``ablation.svg`` and, where widths were measured, ``dims.svg``."""
    files = {"ablation.md": markdown(result), "ablation.svg": plot(result), "dims.svg": dims_plot(result)}
    for name, text in files.items():
        if text is not None:
            write_bytes(folder / name, text.encode("utf-8"))
    write_json(folder / "ablation.json", result)


def cell_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells as rows of text, the header first; measures are in points."""
    header = ("question", "setting", "rows", _named(result), "against start, 95 %", "against", "seeds, ±")
    rows: list[tuple[str, ...]] = [(*header, "agreement, against start")]
    start = result["start"]
    agreed = "" if start["agreement"] is None else points(start["agreement"])
    rows.append(("start model", "", "", points(start["score"]), "", "", "", agreed))
    for cell in result["cells"]:
        other = ""
        if cell["reference"] is not None and cell["reference"] != cell["name"]:
            other = f"{difference(cell['delta_reference'], cell['ci95_reference'])} ({cell['reference']})"
        agreement = cell["agreement"]
        agreed = (
            f"{points(agreement['score'])} {difference(agreement['delta'], agreement['ci95'])}" if agreement else ""
        )
        rows.append(
            (
                cell["group"],
                cell["name"],
                f"{cell['rows']:,}",
                points(cell["score"]),
                difference(cell["delta_start"], cell["ci95_start"]),
                other,
                points(statistics.stdev(cell["seeds"]) if len(cell["seeds"]) > 1 else 0.0),
                agreed,
            )
        )
    return rows


def reranker_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rerankers as rows of text, the header first."""
    rows: list[tuple[str, ...]] = [
        (
            "order of the candidates",
            "queries",
            "MRR of the seed",
            "against the retriever, 95 %",
            "seed first",
            "nDCG@10",
        )
    ]
    for row in result["rerankers"]:
        delta = "" if row["delta"] is None else difference(row["delta"], row["ci95"])
        judged = "" if row["ndcg@10"] is None else f"{points(row['ndcg@10'])} ({row['judged']:,} judged)"
        first = f"{points(row['seed_first'])} %"
        rows.append((row["order"], f"{row['queries']:,}", points(row["seed_mrr"]), delta, first, judged))
    return rows


def dim_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The run's model at several widths as rows of text, the header first; no row where it was not measured."""
    rows: list[tuple[str, ...]] = [("dimensions", "start model", "the run's model", "difference, 95 %")]
    for row in result["dims"]:
        start = points(row["start"]) if "start" in row else ""
        delta = difference(row["delta"], row["ci95"]) if "delta" in row else ""
        rows.append((str(row["dim"]), start, points(row["score"]), delta))
    return rows


def markdown(result: Mapping[str, Any]) -> str:
    """The tables as Markdown, with what they were measured on."""
    sets = ", ".join(f"{name} ({count:,} queries)" for name, count in result["sets"].items()) or "no test set"
    heldout = f"; {result['heldout']:,} held-out queries" if result["heldout"] else ""
    said = (
        f"Measured on {sets}{heldout}. {result['form'].capitalize()} format, epochs: {result['epochs']}, "
        f"seeds: {result['seeds']}. Measures are in points of 100; intervals are paired 95 % intervals over queries."
    )
    tables = [cell_rows(result), reranker_rows(result), dim_rows(result)]
    return "\n\n".join([said, *(markdown_table(rows) for rows in tables if len(rows) > 1)]) + "\n"


def plot(result: Mapping[str, Any]) -> str:
    """Each cell's difference to the start model with its interval, as an SVG file of its own; strokes are single seeds."""
    cells = result["cells"]

    def draw(axes: "Axes") -> None:
        groups = list(dict.fromkeys(cell["group"] for cell in cells))
        for place, cell in enumerate(cells):
            low, high = (100 * end for end in cell["ci95_start"])
            colour = (ACCENT, SECOND)[groups.index(cell["group"]) % 2]
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot([100 * cell["delta_start"]], [place], marker="o", color=colour)
            seeds = [100 * (value - result["start"]["score"]) for value in cell["seeds"]]
            axes.plot(seeds, [place] * len(seeds), marker="|", linestyle="", color=INK, markersize=6)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(cells)), [f"{cell['group']}: {cell['name']}" for cell in cells], parse_math=False)
        axes.invert_yaxis()
        axes.set_xlabel(f"{_named(result)} against the start model, points")

    return standalone(draw_svg("ablation", 1.0 + 0.28 * len(cells), draw))


def dims_plot(result: Mapping[str, Any]) -> str | None:
    """The run's model and the start model against their width, as an SVG file of its own; none if not measured."""
    rows = result["dims"]
    if not rows:
        return None

    def draw(axes: "Axes") -> None:
        models = (("score", ACCENT, "the run's model"), ("start", SECOND, "start model"))
        draw_widths(axes, rows, models, "dimensions", f"{_named(result)}, points")

    return standalone(draw_svg("dims", 3.0, draw))


def _named(result: Mapping[str, Any]) -> str:
    return str(result["headline"]).replace("ndcg", "nDCG")
