"""The pages for people and programs: links lead somewhere, commands parse, and quoted messages are those of the code."""

import ast
import re
import shlex
from collections.abc import Iterable, Iterator
from functools import cache
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from gecko.cli.main import app
from gecko.config.load import load_config
from gecko.core import errors

from .conftest import load_script

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        ROOT / "llms.txt",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "docs").rglob("*.ipynb"),
        *(ROOT / "recipes").rglob("*.md"),
        *(ROOT / "skills").rglob("*.md"),
        *(ROOT / ".github").rglob("*.md"),
    ]
)
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r'\]\(\s*<?([^)>\s]+)>?(?:\s+"[^"]*")?\s*\)|(?:src|srcset|href)=\\?"([^"\\]+)')
HEADING = re.compile(r"^#{1,6} +(.+?)(?: *\{#([\w.-]+)\})? *#*$", re.MULTILINE)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def generated() -> dict[Path, str]:
    """Pages that the site makes from the code."""
    hooks = load_script(ROOT / "docs" / "hooks.py")
    return {ROOT / "docs" / path: make() for path, make in hooks.PAGES.items()}


def links(text: str) -> list[str]:
    """Targets of a page outside of its code."""
    prose = SPAN.sub("", FENCE.sub("", text))
    return [unescape(one or other) for one, other in LINK.findall(prose)]


def anchors(text: str) -> set[str]:
    """The names of a page's headings, as GitHub and as the site write them."""
    found: set[str] = set(re.findall(r'(?:id|name)="([^"]+)"', text))
    for title, name in HEADING.findall(FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\s-]", "", plain).strip().lower()
        found |= {name} if name else {re.sub(r"\s", "-", slug), re.sub(r"[-\s]+", "-", slug)}
    return found


def dead(page: Path, text: str) -> Iterator[str]:
    for link in links(text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z+]+:", link):
            continue  # another site
        path = (page.parent / target).resolve() if target else page
        if not (path.exists() or path in generated()):
            yield f"{link}: no such file"
        elif anchor and path.suffix == ".md":
            there = generated().get(path) or path.read_text(encoding="utf-8")
            if anchor not in anchors(there):
                yield f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_dead_link(page: Path) -> None:
    assert list(dead(page, page.read_text(encoding="utf-8"))) == []


def test_generated_pages_have_no_dead_link() -> None:
    assert [found for page, text in generated().items() for found in dead(page, text)] == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A title, with `code`\n\n```\n# no title\n```\n## Named {#here}\n")
    good = "[a](other.md) [b](other.md#a-title-with-code) [c](other.md#here) [d](https://x.example/none) `[e](none.md)`"
    bad = ["none.md", "other.md#no-title", "other.md#named", "#none", "none.png"]
    text = f'{good} [1](none.md) [2](other.md#no-title) [3](other.md#named) [4](#none) <img\nsrc="none.png">'
    page = tmp_path / "page.md"
    page.write_text(text)
    assert [each.partition(": ")[0] for each in dead(page, text)] == bad


# Commands


def calls(lines: Iterable[str]) -> Iterator[list[str]]:
    """The words behind ``gecko`` of each line that is a call; not lines of a usage."""
    for line in lines:
        called = re.match(r"(?:[$] |[A-Z_]+=\S+ )*gecko (.+)", line.strip(), re.DOTALL)
        if not called or re.search(r"…|\[-|\.\.\.|COMMAND|\[OPTIONS\]", called[1]):
            continue
        words = shlex.split(called[1], comments=True)
        end = [place for place, word in enumerate(words) if word in ("|", ">", "&&", "&", "<", "2>")]
        yield words[: end[0]] if end else words


def commands(text: str) -> Iterator[list[str]]:
    """The calls of a page's blocks."""
    return calls("\n".join(FENCE.findall(text)).replace("\\\n", " ").splitlines())


def mentions(text: str) -> Iterator[list[str]]:
    """The calls of its code spans, where an argument may be left out."""
    return calls(found[0].strip("`") for found in SPAN.finditer(FENCE.sub("", text)))


def parse(words: list[str], *, whole: bool = True) -> None:
    """Raises an error where the command line would refuse them, or where a setting of a run is none; runs nothing."""
    group: Any = get_command(app)
    context = group.make_context("gecko", list(words), resilient_parsing=True)
    if words[0].startswith("-"):
        return
    command = group.get_command(context, words[0])
    assert command, f"no command {words[0]}"
    context = command.make_context(words[0], words[1:], parent=context, resilient_parsing=not whole)
    if words[0] in ("demo", "distill", "train", "relabel"):
        asked = context.params.get("queries")
        load_config(None, context.params["sets"] or (), {"asked": {"sources": asked}} if asked else {})


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text(encoding="utf-8")
    gone = [["rate"]]  # the commands that CHANGELOG.md and the lessons speak of as removed
    for words, whole in [*((words, True) for words in commands(text)), *((words, False) for words in mentions(text))]:
        try:
            _ = words in gone or parse(words, whole=whole)
        except Exception as error:
            pytest.fail(f"gecko {shlex.join(words)}: {error!r} {error}")
    if page.parent.name != "research":  # whose commands are those that were run then
        assert "is now" not in capsys.readouterr().err  # a former name of an option


def test_the_skill_shows_what_it_is_about() -> None:
    page = (ROOT / "skills" / "gecko" / "SKILL.md").read_text(encoding="utf-8")
    front = re.match(r"---\nname: ([a-z0-9-]{1,64})\ndescription: (.{50,1024})\n---\n", page)
    assert front and front[1] == "gecko"
    shown = list(commands(page))
    assert {"distill", "check-teacher", "inspect", "eval"} <= {words[0] for words in shown}
    assert any("--dry-run" in words for words in shown) and "summary.json" in page
    assert "skills/gecko/SKILL.md" in (ROOT / "llms.txt").read_text(encoding="utf-8")
    assert len(page) < 6000


def test_a_command_that_would_be_refused_is_found() -> None:
    page = (
        "```\ngecko inspect runs/x --josn\nA=1 gecko demo \\\n  --llm x | cat # so\n```\n`gecko eval m` `gecko push …`"
    )
    assert list(commands(page)) == [["inspect", "runs/x", "--josn"], ["demo", "--llm", "x"]]
    assert list(mentions(page)) == [["eval", "m"]]
    for words in (
        ["inspect", "runs/x", "--josn"],
        ["eval", "m"],
        ["eval", "m", "s", "--top", "many"],
        ["demo", "--set", "mine.m=2"],
    ):
        with pytest.raises(Exception, match=r"josn|(?i:missing)|valid integer|mine\.m"):
            parse(words)
    parse(["eval", "m"], whole=False)
    with pytest.raises(AssertionError, match="no command nothing"):
        parse(["nothing"], whole=False)


# Messages


NAMES = {
    "SECTION": "train"
}  # a section of the settings that is named by its class; messages of the page are of [train]


def pieces(node: ast.expr, names: dict[str, str]) -> str:
    """A text of the source, with … where a value is put in that no name in capitals gives."""
    match node:
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(pieces(each, names) for each in node.values)
        case ast.FormattedValue(value=ast.Name(id=name) | ast.Attribute(attr=name)) if name in names:
            return names[name]
        case ast.FormattedValue(conversion=conversion) if conversion == ord("r"):
            return "'…'"
    return "…"


def constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The texts that a module gives names to."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets, values = [getattr(each, "elts", [each]) for each in (node.targets[0], node.value)]
            for target, value in zip(targets, values, strict=False):
                if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield target.id, value.value


@cache
def texts() -> str:
    """All texts of the source, one a line."""
    source = ROOT / "src"
    modules = {
        ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
        for path in source.rglob("*.py")
    }
    found = []
    for tree in modules.values():
        names = dict(constants(tree)) | NAMES
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                there = dict(constants(modules[node.module]))
                names |= {each.name: there[each.name] for each in node.names if each.name in there}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                found.append(pieces(node, names).replace("\n", " "))
    return "\n".join(found)


def occurs(message: str) -> bool:
    """Whether a message, with … for any text, can be one of the source's."""
    return re.search(".*".join(map(re.escape, message.split("…"))), texts()) is not None


TROUBLES = (ROOT / "docs" / "how-to" / "troubleshooting.md").read_text(encoding="utf-8")
ROWS = [
    (heading, [cell.strip() for cell in line.strip("|").split(" | ")])
    for part in re.split(r"^#{2,3} ", TROUBLES, flags=re.MULTILINE)[1:]
    for heading, lines in [(part.splitlines()[0], part.splitlines())]
    for above, line in pairwise(lines)
    if line.startswith("| ") and above.startswith("|")
]


def test_every_error_has_its_part() -> None:
    classes = [name for name, each in vars(errors).items() if isinstance(each, type) and each is not errors.GeckoError]
    headings = {heading for heading, _ in ROWS}
    assert len(classes) > 8 and not [name for name in classes if name not in headings]


@pytest.mark.parametrize(
    ("heading", "cells"), ROWS, ids=lambda value: value if isinstance(value, str) else value[0][:60]
)
def test_a_message_is_one_of_the_code(heading: str, cells: list[str]) -> None:
    assert len(cells) == (2 if heading == "Other messages" else 3) and all(cells)
    quoted = re.findall(r"(?<!`)`([^`]+)`(?!`)", cells[0])
    assert quoted and not [message for message in quoted if not occurs(message)]
    assert all(len(message.replace("…", "").strip()) > 8 for message in quoted)


def test_an_invented_message_is_found() -> None:
    assert occurs("preset '…' does not exist")
    assert not occurs("preset '…' is not there")
