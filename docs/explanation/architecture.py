"""Draws ``architecture.svg`` from the contract of the rooms in ``pyproject.toml``; run it when that changes."""

import tomllib
from pathlib import Path

HERE = Path(__file__).parent
CAPTIONS = {
    "cli": "commands",
    "stages": "the steps of a run and their order",
    "report": "pages, tables, cards",
    "evaluation": "sets, measures, intervals",
    "fret": "queries and rows",
    "training": "loss, trainer",
    "serving": "HTTP server",
    "search": "index",
    "llm": "teachers",
    "corpus": "files to passages",
    "encoder": "embedding models",
    "run": "the folder of a run, and who does its work",
    "prompts": "prompts as data",
    "weights": "where models are",
    "config": "settings",
    "compute": "device, kernels",
    "core": "records, errors, files",
}
WIDTH, LEFT, TALL, GAP = 760, 70, 46, 12  # pixels
STYLE = """
  rect { fill: #eef2f7; stroke: #5b6b7f }
  text { fill: #1b2430; font: 12px sans-serif; text-anchor: middle }
  .name { font: bold 14px monospace }
  path { fill: none; stroke: #5b6b7f; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    rect { fill: #253040; stroke: #90a4bc }
    text { fill: #e6edf5 }
    path { stroke: #90a4bc }
  }
"""


def floors() -> list[list[str]]:
    """The rooms of each floor, the highest first."""
    settings = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    return [floor.replace(":", "|").replace(" ", "").split("|") for floor in contract["layers"]]


def draw(floors: list[list[str]]) -> str:
    """The picture as SVG, readable on a light and on a dark page."""
    height = len(floors) * (TALL + GAP) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title">',
        '<title id="title">The rooms of gecko, floor by floor; a room imports from the floors below it</title>',
        f"<style>{STYLE}</style>",
        f'<path d="M 28 {GAP} V {height - GAP} m -7 -10 l 7 10 l 7 -10"/>',
        f'<text transform="translate(18 {height / 2:g}) rotate(-90)">may import</text>',
    ]
    for number, rooms in enumerate(floors):
        top, wide = GAP + number * (TALL + GAP), (WIDTH - LEFT - GAP * len(rooms)) / len(rooms)
        lines.append(f'<text x="52" y="{top + TALL / 2 + 4:g}">{len(floors) - number}</text>')
        for place, room in enumerate(rooms):
            x = LEFT + place * (wide + GAP)
            lines += [
                f'<rect x="{x:.1f}" y="{top}" width="{wide:.1f}" height="{TALL}" rx="6"/>',
                f'<text class="name" x="{x + wide / 2:.1f}" y="{top + 19}">{room}</text>',
                f'<text x="{x + wide / 2:.1f}" y="{top + 36}">{CAPTIONS[room]}</text>',
            ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    (HERE / "architecture.svg").write_text(draw(floors()), encoding="utf-8")
