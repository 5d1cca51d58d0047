"""The report's plots as SVG text to stand in an HTML page.

No pyplot and no global state. Equal data give equal bytes: no date, a fixed salt for ids, matplotlib's own defaults. Text
stays text, in the page's font, and the two colours become the page's, so that a plot follows light and dark.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gecko.report.table import ResultRow
from gecko.report.text import cut, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stand-ins while drawing: matplotlib knows no CSS.
INK, ACCENT, SECOND = "#010203", "#040506", "#070809"
_CSS = {INK: "currentColor", ACCENT: "var(--accent)", SECOND: "var(--second)"}
_ALONE = {"currentColor": "#222222", "var(--accent)": "#1a6e5c", "var(--second)": "#b0562a"}
_WIDTH = 6.4


@dataclass(frozen=True)
class Plot:
    """A plot with its caption and the text that stands for it where it cannot be seen."""

    caption: str
    alt: str
    svg: str


def gains(rows: Sequence[ResultRow]) -> Plot | None:
    """The difference to the start model on each set, with its interval, in points of nDCG@10."""
    students = [row for row in rows if row.delta is not None and row.label != "bm25"]
    if not students:
        return None

    def draw(axes: "Axes") -> None:
        for place, row in enumerate(students):
            assert row.delta is not None and row.low is not None and row.high is not None
            low, middle, high = 100 * row.low, 100 * row.delta, 100 * row.high
            colour = ACCENT if row.kept else SECOND
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot([middle], [place], marker="o", color=colour)
        axes.axvline(0, color=INK, linewidth=0.8)
        names = [f"{cut(shown(row.name), 30)}, {row.label}" for row in students]
        axes.set_yticks(range(len(students)), names, parse_math=False)
        axes.invert_yaxis()
        axes.margins(y=0.5 / len(students) + 0.1)
        axes.set_xlabel("points of nDCG@10 against the start model")

    alt = "; ".join(f"{row.name}, {row.label} format: {row.difference}" for row in students)
    svg = draw_svg("gain", 1.0 + 0.35 * len(students), draw)
    return Plot("Gain over the start model on each set, with its 95 % interval.", alt, svg)


def growth(name: str, points: Sequence[tuple[int, float, float, float]]) -> Plot | None:
    """Training rows against the gain on one set: (rows, difference, low, high), on 0–1; a plot needs two sizes."""
    ordered = sorted(points)
    if len({rows for rows, *_ in ordered}) < 2:
        return None

    def draw(axes: "Axes") -> None:
        for rows, _, low, high in ordered:
            axes.plot([rows, rows], [100 * low, 100 * high], color=ACCENT, linewidth=2)
        axes.plot([row[0] for row in ordered], [100 * row[1] for row in ordered], color=ACCENT, marker="o", linewidth=1)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("training rows")
        axes.set_ylabel("points of nDCG@10")

    alt = "; ".join(f"{rows:,} rows: {100 * delta:+.1f} points" for rows, delta, *_ in ordered)
    caption = f"Gain on {cut(shown(name), 40)} by the number of training rows, as this run grew, with 95 % intervals."
    return Plot(caption, alt, draw_svg("growth", 2.6, draw))


def widths(name: str, values: Sequence[Mapping[str, float]], student: str) -> Plot | None:
    """nDCG@10 (0–1) of the start model and of the student, by its label, cut to each trained width ``dim``."""
    if len(values) < 2:
        return None
    ordered = sorted(values, key=lambda entry: entry["dim"])

    def draw(axes: "Axes") -> None:
        models = ((student, ACCENT, "student"), ("start", SECOND, "start model"))
        draw_widths(axes, ordered, models, "dimensions that are kept", "nDCG@10")

    alt = "; ".join(
        f"{entry['dim']} dimensions: student {100 * entry[student]:.1f}"
        + (f", start {100 * entry['start']:.1f}" if "start" in entry else "")
        for entry in ordered
    )
    return Plot(f"Quality of shortened vectors on {cut(shown(name), 40)}.", alt, draw_svg("widths", 2.6, draw))


def draw_widths(
    axes: "Axes", rows: Sequence[Mapping[str, float]], models: Iterable[tuple[str, str, str]], across: str, up: str
) -> None:
    """A line a model of what it gets (0–1) at each width ``dim``; ``models`` are key, colour and label."""
    for key, colour, label in models:
        known = [row for row in rows if key in row]
        scores = [100 * row[key] for row in known]
        axes.plot([row["dim"] for row in known], scores, color=colour, marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks([row["dim"] for row in rows], [str(int(row["dim"])) for row in rows])
    axes.minorticks_off()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend(frameon=False)


def seed_ranks(places: Sequence[int]) -> Plot | None:
    """Where the seed stands among the candidates after relabelling, from 1."""
    if not places:
        return None
    last = max(places)
    heights = [places.count(place) for place in range(1, last + 1)]

    def draw(axes: "Axes") -> None:
        axes.bar(range(1, last + 1), heights, color=ACCENT)
        axes.locator_params(integer=True)
        axes.set_xlabel("the seed's rank after relabelling")
        axes.set_ylabel("queries")

    listed = ", ".join(f"rank {place}: {height}" for place, height in enumerate(heights, start=1) if height)
    return Plot("Where the teacher puts the passage that a query was written for.", listed, draw_svg("seed", 2.4, draw))


def relevance(values: Sequence[float]) -> Plot | None:
    """How relevant the teacher finds p_1: RC log-odds."""
    if not values:
        return None
    above = sum(value > 0 for value in values)

    def draw(axes: "Axes") -> None:
        axes.hist(values, bins=min(30, max(5, len(values) // 5)), color=ACCENT)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("RC log-odds of p_1")
        axes.set_ylabel("queries")

    middle = sorted(values)[len(values) // 2]
    alt = f"from {min(values):.1f} to {max(values):.1f}, median {middle:.1f}; above 0: {above} of {len(values)}"
    return Plot("How relevant the teacher finds its first passage; above 0 is yes.", alt, draw_svg("rc", 2.4, draw))


def losses(curves: dict[str, list[tuple[int, float]]]) -> Plot | None:
    """The training loss of each input format."""
    if not any(curves.values()):
        return None

    def draw(axes: "Axes") -> None:
        for (form, curve), colour in zip(curves.items(), (ACCENT, SECOND), strict=False):
            steps, values = [step for step, _ in curve], [loss for _, loss in curve]
            axes.plot(steps, values, color=colour, marker=".", label=form)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend(frameon=False)

    ends = [f"{form}: from {curve[0][1]:.3f} to {curve[-1][1]:.3f}" for form, curve in curves.items() if curve]
    return Plot("Training loss.", "; ".join(ends), draw_svg("loss", 2.6, draw))


def times(seconds: dict[str, float]) -> Plot | None:
    """Seconds of each stage."""
    if not seconds:
        return None

    def draw(axes: "Axes") -> None:
        axes.barh(list(seconds), list(seconds.values()), color=ACCENT)
        axes.invert_yaxis()
        axes.set_xlabel("seconds")

    alt = ", ".join(f"{stage}: {value:.1f}" for stage, value in seconds.items())
    return Plot("Working time of each stage, in seconds.", alt, draw_svg("time", 0.8 + 0.25 * len(seconds), draw))


def draw_svg(name: str, height: float, draw: Callable[["Axes"], None]) -> str:
    """Draw on fresh axes; ``name`` keeps this plot's ids apart from those of the page's other plots.

    The colours ``INK``, ``ACCENT`` and ``SECOND`` become the page's.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    settings = {
        "svg.hashsalt": "gecko",
        "svg.fonttype": "none",
        "font.size": 10.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    sink = io.StringIO()
    with style.context(["default", settings]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has one
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure.add_subplot())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(sink, format="svg", transparent=True, metadata=nothing)
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.DOTALL)
    return re.sub(r"<[^<>]+>", lambda tag: _for_page(tag[0], name), text)


def _for_page(tag: str, name: str) -> str:
    """One tag of matplotlib's SVG, fit for a page: own ids, the page's font and colours."""
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = tag.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    tag = re.sub(r" font-family: [^;\"]*;", "", tag)
    for stand_in, css in _CSS.items():
        tag = tag.replace(stand_in, css)
    return tag


def standalone(svg: str) -> str:
    """A plot made for a page, as a file of its own: with colours, a font and a background."""
    for page, alone in _ALONE.items():
        svg = svg.replace(page, alone)
    return svg.replace("<svg ", '<svg font-family="sans-serif" style="background: white" ', 1)
