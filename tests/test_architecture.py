"""What keeps the house as it is: sizes, no import circle, and tests that stand where the code stands."""

import ast
import re
import runpy
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

from gecko import stages

ROOT = Path(__file__).parents[1]
HOUSE = Path(stages.__file__).parents[1]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
LIMITS = {"file": 500, "class": 350, "function": 70}  # lines


def sizes(path: Path) -> Iterator[tuple[str, str, int]]:
    """(kind, name, lines) of a file, its classes and its functions."""
    text = path.read_text(encoding="utf-8")
    yield "file", path.name, len(text.splitlines())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            yield kind, f"{path.name}: {node.name}", (node.end_lineno or 0) - node.lineno + 1


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, the first once more at the end; empty: there are none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def folders_with(root: Path, pattern: str) -> set[Path]:
    return {path.parent.relative_to(root) for path in root.rglob(pattern)} - {Path()}


def test_files_classes_and_functions_are_short() -> None:
    found = [entry for path in sorted(HOUSE.rglob("*.py")) for entry in sizes(path)]
    assert {kind for kind, _, _ in found} == LIMITS.keys()
    assert [entry for entry in found if entry[2] > LIMITS[entry[0]]] == []


def test_no_modules_import_each_other() -> None:
    graph = grimp.build_graph("gecko", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert "gecko.report.cards" in imports["gecko.stages.publish"], "an import inside a function counts"
    assert "gecko.stages.context" not in imports["gecko.stages.stage"], "an import for the type checker alone does not"
    assert circle(imports) == []


@pytest.mark.parametrize(
    ("imports", "found"), [({"a": {"b"}, "b": {"c"}}, []), ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"])]
)
def test_a_circle_is_found(imports: dict[str, set[str]], found: list[str]) -> None:
    assert circle(imports) == found


def test_tests_stand_where_the_code_stands() -> None:
    rooms, tested = folders_with(HOUSE, "*.py"), folders_with(ROOT / "tests", "test_*.py")
    assert tested <= rooms
    assert {room for room in rooms if len(room.parts) == 1} <= tested


def test_the_page_shows_the_rooms_of_the_contract() -> None:
    drawing = runpy.run_path(str(PAGE.with_suffix(".py")))
    floors = drawing["floors"]()
    assert {room for rooms in floors for room in rooms} == {
        path.name for path in HOUSE.iterdir() if (path / "__init__.py").exists()
    }
    assert PAGE.with_suffix(".svg").read_text(encoding="utf-8") == drawing["draw"](floors)
    text = PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d) \| `(\w+)` \| \S.* \| (.*) \|$", text, re.MULTILINE)
    below = {1: "no other room", 2: "floor 1"}
    assert listed == [
        (str(number), room, below.get(number, f"floors 1 to {number - 1}"))
        for number, rooms in zip(range(len(floors), 0, -1), floors, strict=True)
        for room in rooms
    ]
    assert f"{len(listed)} rooms on {len(floors)} floors" in text
