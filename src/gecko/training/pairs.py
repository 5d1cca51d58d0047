"""Pairs for the first stage (Section 3.1 of the paper): question and answer, title and body, term and meaning."""

from collections import Counter
from pathlib import Path

import numpy as np

from gecko.config.training import PretrainConfig
from gecko.core.errors import ConfigError, TrainingError
from gecko.core.records import Example, Text
from gecko.corpus.tables import ending_of, files_of, read_rows, require, text_of

KIND = "pairs"


def pair_sources(config: PretrainConfig) -> dict[str, str]:
    """The sources by name: of a file its name without ending; each file of a folder is a source of its own.

    Raises ConfigError: none are given, two have one name, or a task or a weight names one that is not there.
    TrainingError: one does not exist.
    """
    if not config.sources:
        raise ConfigError("gecko pretrain needs pairs: give files or folders, or set pretrain.sources in the recipe")
    found: dict[str, str] = {}
    for source in config.sources:
        files = [source] if source.startswith("hf:") else [str(file) for file in files_of(source, source)]
        for file in files:
            name = _name(file)
            if name in found:
                raise ConfigError(f"two sources are called {name!r}: {found[name]} and {file}; rename one")
            found[name] = file
    for key in ("tasks", "weights"):
        if unknown := sorted(getattr(config, key).keys() - found.keys()):
            raise ConfigError(f"pretrain.{key} names {', '.join(unknown)}, but the sources are {', '.join(found)}")
    return found


def _name(source: str) -> str:
    path = Path(source)
    return path.name.removesuffix(ending_of(path) or "")


def read_pairs(name: str, source: str, config: PretrainConfig, seed: int, drops: Counter[str]) -> list[Example]:
    """The pairs of one source, a file or ``hf:NAME``, as rows without negatives; ``name`` becomes ``Example.dataset``.

    The columns are ``query``, ``text`` and, if you like, ``title``. A pair without a query or a text, and one that was
    there before, is dropped and counted. The seed draws at most ``config.limit`` of them. Raises TrainingError: the
    source cannot be read, a column is missing, or nothing is left.
    """
    task = config.tasks.get(name, config.task)
    rows: list[Example] = []
    seen: set[tuple[str, str, str]] = set()
    for place, row in read_rows(name, source):
        require(row, ("query", "text"), place, KIND)
        query, text = text_of(row, "query", place, optional=True), text_of(row, "text", place, optional=True)
        title = text_of(row, "title", place, optional=True)
        if not query or not text:
            drops[f"empty {'text' if query else 'query'}"] += 1
            continue
        key = (query, title, text)
        if key in seen:
            drops["pair that was there before"] += 1
            continue
        seen.add(key)
        rows.append(Example(name, task, query, Text("", title, text)))
    if not rows:
        raise TrainingError(f"set {name!r}: {source} has no pair with a query and a text")
    if config.limit is not None and len(rows) > config.limit:
        drops["beyond pretrain.limit"] += len(rows) - config.limit
        chosen = np.random.default_rng([seed, *name.encode()]).choice(len(rows), config.limit, replace=False)
        rows = [rows[place] for place in sorted(chosen)]
    return rows
