"""What an index was made from, with which options, and how far it is."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gecko.core.arguments import one_of
from gecko.core.errors import RunError
from gecko.search.bulk import check_shard

LAYOUT = 1
WORDS = 2  # how texts are split for BM25; raised when that changes, and older indices are split anew
FILES = ("manifest.json", "passages.sqlite", "vectors.f32", "index.faiss")

UPDATE = "update-"  # what the names of the folders that updates write begin with

Kind = Literal["auto", "flat", "hnsw"]
Store = Literal["auto", "float32", "int8", "binary"]


@dataclass(frozen=True)
class IndexConfig:
    """How an index is built.

    Attributes:
        kind: ``flat`` compares a query with every vector, ``hnsw`` walks a graph; ``auto``: by the corpus' size.
        store: the form of the vectors in memory; ``auto``: float32 when flat, int8 in a graph.
        dim: dimensions to keep.
        shard_rows: passages of one shard: the unit of resuming, and what is held in memory.

    Raises:
        ConfigError: a value is none of these.
    """

    kind: Kind = "auto"
    store: Store = "auto"
    dim: int | None = None
    shard_rows: int = 8192

    def __post_init__(self) -> None:
        one_of("kind", self.kind, get_args(Kind))
        one_of("store", self.store, get_args(Store))
        check_shard(self.dim, self.shard_rows)


@dataclass
class IndexManifest:
    """What an index was made from, and how far it is; ``texts`` chains the hashes of the shards.

    ``words`` is the :data:`WORDS` that its texts were split by; an index that does not say it is older than that. ``state``
    is that of the sources, and ``files`` the folder below the index's that holds its files; empty: its own.
    """

    parts: dict[str, Any]
    dim: int
    rows: int = 0
    texts: str = ""
    shards: int = 0
    kind: str = ""
    store: str = ""
    done: bool = False
    layout: int = LAYOUT
    words: int = 1
    state: str = ""
    files: str = ""

    def is_other(self, state: str) -> bool:
        """Whether the sources are known to be in another state."""
        return bool(state) and state != self.state


def damaged(file: Path, why: object) -> RunError:
    """The error of an index in whose file something is wrong."""
    folder = file.parent.parent if file.parent.name.startswith(UPDATE) else file.parent
    return RunError(f"{file} is damaged ({why}); remove {folder} and build the index again")


@contextlib.contextmanager
def reading(file: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong while a file of an index is read into an error that names the file and the mend.

    ``errors`` are what its library raises on damage. Raises RunError: it cannot be read, is missing or damaged.
    """
    damage: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except PermissionError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}; change its permissions") from error
    except FileNotFoundError as error:
        raise damaged(file, "it is missing") from error
    except damage as error:
        raise damaged(file, error) from error


def read_manifest(folder: Path, parts: dict[str, Any] | None) -> IndexManifest | None:
    """The manifest of an index; none: the folder is empty or not there.

    ``parts`` are what it must have been made from; none: anything. Raises RunError: the folder holds something else,
    another layout, a damaged index, or one that was made otherwise.
    """
    file = folder / "manifest.json"
    with reading(file, ValueError):
        if not file.exists():
            _check_empty(folder)
            return None
        raw = json.loads(file.read_text(encoding="utf-8"))
    raw = raw if isinstance(raw, dict) else {"no table": raw}
    layout = raw.get("layout", LAYOUT)
    if layout != LAYOUT:
        raise RunError(
            f"{folder} was made by another version of Gecko (layout {layout}, this one reads {LAYOUT}); use that version, or "
            f"remove {folder} and build the index again"
        )
    try:
        manifest = _checked(raw)
    except TypeError as error:
        raise RunError(
            f"{file} is not the manifest of an index ({error}); give another folder, or remove this one and build the "
            "index again"
        ) from error
    if "state" not in raw and parts and "sources" in manifest.parts:
        # An earlier version hashed the files' times with them.
        manifest.parts |= {key: value for key, value in parts.items() if key == "sources"}
    changed = [key for key, value in (parts or {}).items() if value != manifest.parts.get(key)]
    if changed and parts:
        if changed == ["sources"]:
            raise RunError(
                f"{folder} holds an index of other passages: its sources were others; give another folder with --index, or "
                "remove this one"
            )
        listed = ", ".join(f"{key} {manifest.parts.get(key)} there, {parts[key]} now" for key in changed)
        raise RunError(f"{folder} holds an index made otherwise: {listed}; use another folder, or the same options")
    return manifest


def _check_empty(folder: Path) -> None:
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if lost := [name for name in found if name in FILES]:
        raise RunError(
            f"{folder / 'manifest.json'} is missing, and {', '.join(lost)} are there; copy it too, or remove {folder} and "
            "build the index again"
        )
    if strange := [name for name in found if not name.startswith(".")]:
        raise RunError(f"{folder} holds other files ({', '.join(strange[:3])}); give a new or an empty folder")


def _checked(raw: dict[str, Any]) -> IndexManifest:
    """The manifest, if its keys and values are those of an index; otherwise a TypeError that names one."""
    if strange := [key for key in raw if key not in IndexManifest.__dataclass_fields__]:
        raise TypeError(f"it has {strange[0]}")
    if lost := [key for key in ("parts", "dim") if key not in raw]:
        raise TypeError(f"no {lost[0]}")
    manifest = IndexManifest(**raw)
    parts = manifest.parts if isinstance(manifest.parts, dict) else {}
    wrong = [f"parts.{key}" for key in ("model", "form") if not isinstance(parts.get(key), str)]
    wrong += [key for key in ("dim", "rows", "shards", "words") if type(getattr(manifest, key)) is not int]
    wrong += [
        key
        for key, kind in (("texts", str), ("done", bool), ("state", str), ("files", str))
        if type(getattr(manifest, key)) is not kind
    ]
    if manifest.done:
        known = {"kind": get_args(Kind)[1:], "store": get_args(Store)[1:]}
        wrong += [key for key, values in known.items() if getattr(manifest, key) not in values]
    if wrong:
        raise TypeError(f"{wrong[0]} is missing or of another kind")
    return manifest
