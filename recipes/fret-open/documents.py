"""From a package's files to documents that gecko reads: HTML as it is, manual pages as Markdown, dictionaries as JSONL."""

import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gecko.core.errors import CorpusError
from gecko.core.text import words

GROFF = ("groff", "-k", "-t", "-mandoc", "-Tutf8", "-P-cbou", "-rLL=4000n", "-rHY=0")
# A document as it is staged: the name of its file, the path in the package's source, its content.
Document = tuple[str, str, bytes]


def html(name: str, path: Path) -> Iterator[Document]:
    """A page, as it is."""
    yield flat(name), name, path.read_bytes()


def flat(name: str) -> str:
    """A path as the name of a file."""
    return name.replace("/", "__")


def man(name: str, path: Path) -> Iterator[Document]:
    """A manual page as Markdown: sections become headings, paragraphs one line each.

    Raises:
        CorpusError: groff is missing.
    """
    if shutil.which(GROFF[0]) is None:
        raise CorpusError("manual pages need groff; install the package groff-base")
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    stem = name.removesuffix(".gz")
    if data.startswith(b".so "):
        return  # another name of a page that is there
    done = subprocess.run(GROFF, input=data, capture_output=True, check=False)
    page, _, section = stem.rpartition("/")[2].rpartition(".")
    text = man_markdown(f"{page}({section})", done.stdout.decode("utf-8", "replace"))
    yield f"{flat(stem)}.md", stem, text.encode("utf-8")


def man_markdown(title: str, rendered: str) -> str:
    """Markdown of a page that groff has rendered: headings are what stands to the left of the text.

    A block of indented lines without space between them is one paragraph, and the tag of an option stays before its text.
    """
    lines = [line.rstrip() for line in rendered.splitlines()]
    found: list[str] = [f"# {title}"]
    for line in lines[1:-1]:  # the first and the last are the page's header and footer
        indent = len(line) - len(line.lstrip())
        if not line:
            found.append("")
        elif indent == 0:
            found += ["", f"## {line}", ""]
        elif indent == 3:
            found += ["", f"### {line.strip()}", ""]
        else:
            found.append(re.sub(r"^#", r"\\#", re.sub(r"\s{2,}", "  ", line.strip())))  # a comment, no heading
    return re.sub(r"\n{3,}", "\n\n", "\n".join(found)).strip() + "\n"


def wordnet(name: str, path: Path) -> Iterator[Document]:
    """The synsets of a data file: the words as the title, the gloss with its examples as the text."""
    rows = []
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        fields, bar, gloss = line.partition(" | ")
        if line.startswith("  ") or not bar:
            continue  # the licence stands before the data
        parts = fields.split(" ")
        kind = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}[parts[2]]
        terms = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in parts[4 : 4 + 2 * int(parts[3], 16) : 2]]
        rows.append({"id": f"{parts[2]}{parts[0]}", "title": f"{', '.join(terms)} ({kind})", "text": gloss.strip()})
    yield f"{flat(name)}.jsonl", name, _jsonl(rows)


_ENTRY = re.compile(r"^(\S.*?) \\(.+?)\\(.*)$")
_TAG = re.compile(r"\s*\[(?:1913 Webster|Webster 1913 Suppl\.|PJC|WordNet [\d.]+|AS|Century Dict\. 1906)[^\]]*\]")
_SOUND = re.compile(r"^\s*(?:[,;]?\s*\([^)]*[\"`\[*][^)]*\))?,?\s*")
_BRACKETED = re.compile(r"\[(?:[=^~`'.:,]?[a-zA-Z]{1,2}[\^]?|[a-z]mac|[a-z]+[-.'`]+)\]")


def gcide(name: str, path: Path) -> Iterator[Document]:
    """The entries of the dictionary, without pronunciations and the editors' marks; what is spelt in codes is left out."""
    rows: list[dict[str, str]] = []
    seen: dict[str, int] = {}
    text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    for block in re.split(r"\n(?=\S[^\n]* \\)", text):
        first, _, rest = block.partition("\n")
        if not (head := _ENTRY.match(first)):
            continue
        word, grammar = head[1].strip(), _SOUND.sub("", head[3])
        body = _TAG.sub("", f"{grammar}\n{rest}")
        body = re.sub(r"\{([^}]*)\}", r"\1", body)
        body = "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", body) if part.strip())
        if _BRACKETED.search(body) or len(words(body)) < 12:
            continue
        number = seen[word] = seen.get(word, 0) + 1
        rows.append({"id": f"{word}.{number}", "title": word, "text": body})
    yield "gcide.jsonl", name, _jsonl(rows)


def _jsonl(rows: Sequence[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")


READERS: dict[str, Callable[[str, Path], Iterator[Document]]] = {
    "html": html,
    "man": man,
    "wordnet": wordnet,
    "gcide": gcide,
}
