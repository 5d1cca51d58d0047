"""Where `make` takes torch from, with a pip that says what it is told to and writes down what it was asked."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import load_script

TOOL = Path(__file__).parents[1] / "tools" / "torch_index.py"
VERSIONS = "torch (2.13.0+cpu)\nAvailable versions: 2.13.0+cpu, 2.12.1+cpu\n"
FAKE = """
import json, sys, time
from pathlib import Path
said = json.loads(Path(__file__).with_name("said.json").read_text())
kind = "config" if "config" in sys.argv else "versions"
with Path(__file__).with_name("asked").open("a") as asked:
    print(*sys.argv[1:], file=asked)
time.sleep(said["sleeps"] if kind == "versions" else 0)
if said[kind] is None:
    sys.exit(1)
print(said[kind], end="")
"""


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, on Linux without an NVIDIA device."""
    module = load_script(TOOL)
    monkeypatch.setattr(module, "has_nvidia", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")
    return module


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Takes pip's place; the file returned has a line for each call of it."""
    folder = tmp_path / "pip"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "__main__.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def says(config: str = "", versions: str | None = VERSIONS, sleeps: float = 0) -> Path:
        (folder / "said.json").write_text(json.dumps({"config": config, "versions": versions, "sleeps": sleeps}))
        return folder / "asked"

    return says


def test_the_cpu_build_where_nothing_else_is_said(tool: ModuleType, pip: Callable[..., Path]) -> None:
    asked = pip(config=":env:.default-timeout='180'\nglobal.cert='/a/index-url'\n")
    assert tool.choose("torch==2.13.0") == (tool.CPU_INDEX, "the CPU build, since there is no NVIDIA device")
    config, probe = asked.read_text().splitlines()
    assert config.endswith("config list")
    assert probe.endswith(f"index versions torch --index-url {tool.CPU_INDEX} --timeout 5 --retries 0")


@pytest.mark.parametrize(
    "setting", ["global.index-url", ":env:.find-links", "install.extra-index-url", "user.no-index"]
)
def test_a_pip_that_is_told_where_to_look_is_left_alone(
    tool: ModuleType, pip: Callable[..., Path], setting: str
) -> None:
    asked = pip(config=f"global.timeout='5'\n{setting}='https://me:secret@host'\n")
    assert tool.choose("torch==2.13.0") == ("", f"as pip is configured by {setting}")
    assert len(asked.read_text().splitlines()) == 1  # and nobody is asked


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"versions": None}, "did not answer within 5 seconds"),
        ({"sleeps": 60}, "did not answer within 0.5 seconds"),
        ({"versions": "torch (2.13.0.1+cpu)\nAvailable versions: 2.13.0.1+cpu\n"}, "has no torch==2.13.0"),
    ],
    ids=["refused", "slow", "another version"],
)
def test_the_plain_index_where_the_other_does_not_serve(
    tool: ModuleType, pip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, answer: dict[str, object], why: str
) -> None:
    asked = pip(**answer)
    if "sleeps" in answer:
        monkeypatch.setattr(tool, "SECONDS", 0.5)
    index, reason = tool.choose("torch==2.13.0")
    assert index == "" and why in reason and "TORCH_INDEX=URL" in reason
    assert asked.read_text().count("index versions") <= 1  # no retry


def test_the_plain_index_with_a_gpu_or_another_system(
    tool: ModuleType, pip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pip()
    with monkeypatch.context() as patch:
        patch.setattr(tool, "has_nvidia", lambda: True)
        assert tool.choose("torch==2.13.0") == ("", "the plain index, since there is an NVIDIA device")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tool.choose("torch==2.13.0")[0] == ""
    assert "index versions" not in asked.read_text()


def test_an_index_by_hand_asks_nobody_and_is_printed_for_pip(pip: Callable[..., Path]) -> None:
    asked = pip(config="global.index-url='https://a'\n")
    command = [sys.executable, str(TOOL), "torch==2.13.0", "https://my.index"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout == "--index-url https://my.index\n"
    assert done.stderr == "torch: as TORCH_INDEX says (https://my.index)\n"
    assert not asked.exists()
