"""The tutorials show what their commands print."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import load_script

TOOL = Path(__file__).parents[1] / "tools" / "tutorials.py"


@pytest.fixture(scope="module")
def tutorials() -> ModuleType:
    return load_script(TOOL)


PAGE = """
```toml title="one.toml"
a = 1
```

```sh
cat one.toml; echo "took 12 s, 3 rows" >&2
```

```text
a = 1
took 99 s, 3 rows
```

```
not run
```
"""


def test_a_changed_output_is_found_and_written(tutorials: ModuleType, tmp_path: Path, monkeypatch) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(tutorials, "PAGES", [page])
    page.write_text(PAGE, encoding="utf-8")
    assert tutorials.differences(tmp_path / "same", write=True) == []
    assert page.read_text(encoding="utf-8") == PAGE  # another time, but nothing that is compared

    page.write_text(PAGE.replace("99 s, 3 rows", "99 s, 4 rows"), encoding="utf-8")
    found = "\n".join(tutorials.differences(tmp_path / "other"))
    assert "-took 0.0 s, 4 rows" in found and "+took 0.0 s, 3 rows" in found
    assert tutorials.differences(tmp_path / "written", write=True)
    assert page.read_text(encoding="utf-8") == PAGE.replace("99 s", "12 s")


def test_a_failing_command_stops(tutorials: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"(?s)echo why.*why.*ended with 3"):
        tutorials.run("echo why; (exit 3); echo not reached\n", tmp_path)


def test_what_is_not_compared(tutorials: ModuleType) -> None:
    same = [
        ("│ start model │ 49.3    │", "│ start model │ 8.1 │"),
        ("about 0.3 minutes", "about 12.7 minutes"),
        ("(measured: 41589 tokens/s read, 41589 written)", "(measured: 5 tokens/s read, 6 written)"),
        ("Rows   30 made here in 0.2 s", "Rows 30 made here in 7 s"),
        ("judging\njudging: 3 of 9 parts, about 2 minutes left\ndone", "judging\ndone"),
        ("training: 31 s so far\ndone", "done"),
        ("Learned   yes        agreement 7.1", "Learned   unproven   agreement 8.2"),
    ]
    for one, other in same:
        assert tutorials.compared(one) == tutorials.compared(other)
    for one, other in [
        ("30 rows", "31 rows"),
        ("│ 2 │ Saws", "│ 3 │ Saws"),
        ("Better search yes", "Better search worse"),
    ]:
        assert tutorials.compared(one) != tutorials.compared(other)


def test_the_notebook_has_outputs_and_no_traces_of_a_machine(tutorials: ModuleType) -> None:
    text = tutorials.NOTEBOOK.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
    assert "/tmp" not in text and "stderr" not in text


@pytest.mark.slow
def test_the_pages(tutorials: ModuleType, tmp_path: Path) -> None:
    found = tutorials.differences(tmp_path / "run")
    assert not found, "python tools/tutorials.py --write\n" + "\n".join(found)


@pytest.mark.slow
def test_the_notebook(tutorials: ModuleType, tmp_path: Path) -> None:
    tutorials.prepare(tmp_path / "run")
    found = tutorials.notebook_differences(tmp_path / "run")
    assert not found, "python tools/tutorials.py --write\n" + "\n".join(found)
