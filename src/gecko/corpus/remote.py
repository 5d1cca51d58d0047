"""Rows that come from elsewhere: Hugging Face datasets and SQL queries, streamed.

A dataset is pinned to the revision that its hub names now, and a query's rows are hashed once before they are read, so
that a run knows when what it reads has changed.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from gecko.errors import CorpusError
from gecko.store import digest, digest_of, tree_sha256

Row = tuple[str, Mapping[str, Any], str]

_HF = re.compile(r"hf:(?P<name>[^:@]+)(?::(?P<config>[^@]+))?(?:@(?P<split>.+))?")
ROWS_AT_ONCE = 1000
INSTALL = "install it with: pip install 'gecko-embed[corpus]'"


def read_rows(spec: str) -> Iterator[Row]:
    """(place, row, source) for each row of ``hf:…`` or of a SQL query.

    Raises:
        CorpusError: the spec is not of that form, a package is missing, or the other side refuses.
    """
    yield from _dataset(spec) if spec.startswith("hf:") else _query(spec)


def rows_identity(spec: str) -> str:
    """A hash of what :func:`read_rows` gives: a dataset's revision, or the rows of a query themselves."""
    if spec.startswith("hf:"):
        name = _parsed(spec)["name"] or ""
        return digest(spec, tree_sha256(Path(name)) if Path(name).exists() else str(_revision(name)))
    return digest_of(repr(sorted(row.items())) for _, row, _ in _query(spec))


def _parsed(spec: str) -> dict[str, str | None]:
    match = _HF.fullmatch(spec)
    if match is None:
        raise CorpusError(f"corpus source {spec!r}: write hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG@SPLIT")
    return match.groupdict()


@cache
def _revision(name: str) -> str | None:
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name).sha
    except Exception as error:  # the hub, the network and the name each fail in their own way
        raise CorpusError(
            f"hf:{name}: cannot be found ({_first_line(error)}); check its name and the network"
        ) from error


def _dataset(spec: str) -> Iterator[Row]:
    from datasets import load_dataset

    parts = _parsed(spec)
    name, split = parts["name"] or "", parts["split"] or "train"
    revision = None if Path(name).exists() else _revision(name)
    try:
        rows = load_dataset(name, parts["config"], split=split, streaming=True, revision=revision)
        for number, row in enumerate(rows, start=1):
            yield f"{spec}: row {number}", row, name
    except Exception as error:
        raise CorpusError(
            f"{spec}: {type(error).__name__}: {_first_line(error)}; write hf:NAME:CONFIG@SPLIT"
        ) from error


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
    except ModuleNotFoundError as error:
        raise CorpusError(f"{address}: its driver is missing ({error.name}); {INSTALL}") from error
    except SQLAlchemyError as error:
        raise CorpusError(f"{address}: {_first_line(getattr(error, 'orig', None) or error)}; mend the query") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
