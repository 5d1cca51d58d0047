"""A generation prompt in the manner of queries that people asked.

What a small teacher writes is decided by the examples of its prompt. Here they are queries that people asked, each with the
passage that the teacher found best for it, in place of those that ship::

    RUN (asked, judged) ─write_prompt─▶ mine.toml ─prompts.generate─▶ queries like them for every passage
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gecko.core.errors import RunError
from gecko.core.files import digest, write_bytes
from gecko.core.formats import render_passage
from gecko.core.records import Example
from gecko.fret.fuse import Label
from gecko.prompts import load_prompt, shielded

EXAMPLE_CHARS = 600
_SLOT = re.compile(r"\{(passage|task|query|examples|variables)\}")
_HEAD = """\
# P_QG in the manner of queries that people asked: made by `gecko examples`, and yours to change.
name = "generate, in the manner of queries that people asked"
form = "completion"
stop = ["\\n\\n", "\\nPassage:", "\\nTask:", " Passage:", " Task:"]
example = \"\"\"
Passage: {passage}
Task: {task}
Query: {query}

\"\"\"
template = \"\"\"
For each passage, a query that somebody typed who needed it. All queries are of one kind: as long, in the same manner, and for the same sort of need as the first ones.

{examples}Passage: {passage}
Task:\"\"\"
"""  # noqa: E501


def write_prompt(
    rows: Sequence[Example], labels: Mapping[str, Sequence[Label]], path: Path, count: int, seed: int
) -> list[Example]:
    """Write a generation prompt whose ``count`` examples are rows of queries that people asked; those rows, in their order.

    They are drawn by ``seed`` from the half of those rows whose positive the teacher is surest of (by the ``labels``),
    those with a passage of at most 600 characters first; no passage comes twice. A longer passage is cut behind a word.
    Rows with a seed are passed over, as are those with a prompt's slot such as ``{query}`` in their text. Raises
    RunError: there are too few. StorageError: the disk refuses the file.
    """
    asked = [row for row in rows if not row.seed_id and not _SLOT.search(f"{row.query}{_content(row)}")]
    sure = {
        row.query_id: next(label.rc for label in labels[row.query_id] if label.passage_id == row.positive.id)
        for row in asked
    }
    best = sorted(asked, key=lambda row: -sure[row.query_id])[: max(count, (len(asked) + 1) // 2)]
    best.sort(key=lambda row: (len(_content(row)) > EXAMPLE_CHARS, digest(str(seed), row.query_id)))
    chosen = list({row.positive.id: row for row in reversed(best)}.values())[::-1][:count]
    if len(chosen) < count:
        raise RunError(
            f"{len(chosen)} queries that people asked can be an example, and {count} are wanted; name more of them in "
            "asked.sources (--queries), or take a smaller --count"
        )
    form = load_prompt("generate_completion")  # the fields are the same
    parts = [_HEAD]
    for row in chosen:
        texts = {"passage": _cut(_content(row)), "task": row.task, "query": row.query}
        shown = {name: json.dumps(shielded(form, text), ensure_ascii=False) for name, text in texts.items()}
        parts.append("[[examples]]\n" + "".join(f"{name} = {text}\n" for name, text in shown.items()))
    write_bytes(path, "\n".join(parts).replace("\x7f", "").encode("utf-8"))
    return chosen


def _content(row: Example) -> str:
    return render_passage(row.positive, "native").strip()


def _cut(text: str) -> str:
    if len(text) <= EXAMPLE_CHARS:
        return text
    return f"{text[:EXAMPLE_CHARS].rsplit(maxsplit=1)[0]} …"
