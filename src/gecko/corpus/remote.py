"""Rows that come from elsewhere: Hugging Face datasets and SQL queries, streamed.

A dataset is pinned to the revision that its hub names now, and a query's rows are hashed once before they are read, so
that a run knows when what it reads has changed.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from gecko.core.errors import ConfigError, CorpusError, StorageError
from gecko.core.files import digest, digest_of, read_json, tree_sha256, write_json
from gecko.weights.cache import cache_folder

Row = tuple[str, Mapping[str, Any], str]

_HF = re.compile(r"hf:(?P<name>[^:@]+)(?::(?P<config>[^@]+))?(?:@(?P<split>.+))?")
ROWS_AT_ONCE = 1000
INSTALL = "install it with: pip install 'gecko-embed[corpus]'"


def read_rows(spec: str) -> Iterator[Row]:
    """(place, row, source) for each row of ``hf:…`` or of a SQL query.

    Raises CorpusError: the spec is not of that form, a package is missing, or the other side refuses.
    """
    yield from _dataset(spec) if spec.startswith("hf:") else _query(spec)


def rows_identity(spec: str) -> str:
    """A hash of what :func:`read_rows` gives: a dataset's revision, or the rows of a query themselves."""
    if spec.startswith("hf:"):
        name = _parsed(spec)["name"] or ""
        return digest(spec, tree_sha256(Path(name)) if Path(name).exists() else _revision(name))
    return digest_of(repr(sorted(row.items())) for _, row, _ in _query(spec))


def _parsed(spec: str) -> dict[str, str | None]:
    match = _HF.fullmatch(spec)
    if match is None:
        raise CorpusError(f"corpus source {spec!r}: write hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG@SPLIT")
    return match.groupdict()


def hub_commit(name: str) -> str:
    """The commit of a data set on the hub, or the last that was seen where it does not answer; empty for a local folder.

    Raises CorpusError: it cannot be found, and was never seen.
    """
    from huggingface_hub import HfApi

    if Path(name).exists():
        return ""
    seen = None
    with suppress(ConfigError):
        seen = cache_folder() / "commits" / f"{digest(name)}.json"
    try:
        commit = HfApi().dataset_info(name, timeout=10).sha or ""
    except Exception as error:  # the hub, the network and the name each fail in their own way
        if seen is not None and seen.exists():
            return str(read_json(seen)["commit"])
        raise CorpusError(
            f"hf:{name}: cannot be found ({_first_line(error)}); check its name and the network"
        ) from error
    if seen is not None:
        with suppress(StorageError, OSError):
            write_json(seen, {"name": name, "commit": commit})
    return commit


_revision = cache(hub_commit)  # a run reads the revision by which it knows the set


def hub_rows(name: str, config: str | None, split: str, revision: str | None = None) -> Iterator[Any]:
    """The rows of a data set on the hub, streamed. Raises CorpusError: it cannot be loaded, or a row of it cannot."""
    from datasets import load_dataset

    wanted = f"{name}{f' ({config})' if config else ''}, split {split}"
    try:
        rows = load_dataset(name, config, split=split, streaming=True, revision=revision)
    except Exception as error:  # unknown name, unknown configuration or split, no network: many kinds
        raise CorpusError(
            f"the data set {wanted} cannot be loaded: {_first_line(error)}. Check name, config and split, or give "
            "local files; of a data set that is still a script, those of its branch refs/convert/parquet"
        ) from error
    try:
        yield from rows
    except Exception as error:
        raise CorpusError(f"reading the data set {wanted} failed: {_first_line(error)}") from error


def _dataset(spec: str) -> Iterator[Row]:
    parts = _parsed(spec)
    name = parts["name"] or ""
    rows = hub_rows(name, parts["config"], parts["split"] or "train", _revision(name) or None)
    try:
        for number, row in enumerate(rows, start=1):
            yield f"{spec}: row {number}", row, name
    except CorpusError as error:
        raise CorpusError(f"{spec}: {error}") from error


def _query(spec: str) -> Iterator[Row]:
    address, mark, query = spec.partition("#")
    if not mark or not query.strip():
        raise CorpusError(f"corpus source {spec!r} has no query; write it after a #: sqlite:///FILE#SELECT …")
    try:
        from sqlalchemy import create_engine, text
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise CorpusError(f"{address}: reading a database needs SQLAlchemy; {INSTALL}") from error
    try:
        url = make_url(address)
        options: dict[str, Any] = {"stream_results": True, "yield_per": ROWS_AT_ONCE}
        if url.password:
            raise CorpusError(
                f"{url.render_as_string()}: the settings of a run are saved, so a source must hold no password; "
                "put it into PGPASSWORD or ~/.pgpass"
            )
        if url.get_backend_name() == "sqlite":
            file = Path(url.database or "")
            if not file.is_file():  # SQLite would make an empty one
                raise CorpusError(f"corpus source {address}: there is no file {file}; write sqlite:///PATH#SELECT …")
            url = url.set(database=f"file:{file.absolute()}", query={"mode": "ro", "uri": "true"})
        else:
            url = url.set(drivername="postgresql+psycopg")
            options["postgresql_readonly"] = True
        with create_engine(url).connect().execution_options(**options) as connection:
            statement = text(query.replace(":", r"\:"))  # a colon is a colon: the query has no parameters
            for number, row in enumerate(connection.execute(statement).mappings(), start=1):
                yield f"{address}: row {number}", dict(row), url.get_backend_name()
    except ImportError as error:  # there is no driver, or none that finds the library it needs
        raise CorpusError(f"{address}: its driver is missing ({error}); {INSTALL}") from error
    except SQLAlchemyError as error:
        raise CorpusError(f"{address}: {_first_line(getattr(error, 'orig', None) or error)}; mend the query") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
