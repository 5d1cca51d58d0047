"""What a stage has done so far, as the file ``manifest.json`` in its folder tells."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gecko.core.counts import EXAMPLES
from gecko.core.errors import RunError
from gecko.core.files import digest, read_json
from gecko.core.records import SCHEMAS

LAYOUT = 1
AHEAD = "worker-ahead.json"


@dataclass
class Shard:
    """One file of a stage, as the manifest knows it. ``key`` says what it was asked for, where the stage tells."""

    file: str
    rows: int
    sha256: str
    seconds: float
    tokens: int
    drops: dict[str, int]
    notes: dict[str, int]
    key: str = ""
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def index(self) -> int:
        """Its number in the stage, from 0, where it holds records."""
        return int(self.file.removeprefix("part-").removesuffix(".parquet"))


@dataclass
class Manifest:
    """What a stage has done so far. ``done`` is set with the last shard."""

    stage: str
    fingerprint: str
    parts: dict[str, str]
    shards: list[Shard] = field(default_factory=list)
    done: bool = False
    layout: int = LAYOUT

    @property
    def identity(self) -> str:
        """Hash of what was made: the shards' checksums. Equal content from other settings is still equal."""
        return digest(self.stage, *(shard.sha256 for shard in self.shards))

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Tokens that the teacher read or wrote."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def seconds(self) -> float:
        """Working time, over all the sessions it took."""
        return sum(shard.seconds for shard in self.shards)

    @property
    def drops(self) -> Counter[str]:
        """Rows dropped, by reason."""
        return sum((Counter(shard.drops) for shard in self.shards), Counter[str]())

    @property
    def examples(self) -> dict[str, list[str]]:
        """The first few of what was dropped, by reason."""
        found: dict[str, list[str]] = {}
        for shard in self.shards:
            for reason, shown in shard.examples.items():
                kept = found.setdefault(reason, [])
                kept += shown[: EXAMPLES - len(kept)]
        return found

    @property
    def notes(self) -> Counter[str]:
        """Other things that were counted (passages cut, say)."""
        return sum((Counter(shard.notes) for shard in self.shards), Counter[str]())


def fixed_parts(parts: Mapping[str, str], growing: Collection[str]) -> dict[str, Any]:
    """What was paid for hangs on these parts: those not in ``growing``, where ``settings.x`` is a key of a JSON part."""
    left: dict[str, Any] = {key: value for key, value in parts.items() if key not in growing}
    for name in growing:
        part, _, key = name.partition(".")
        if key and part in left:
            values = left[part] if isinstance(left[part], dict) else json.loads(left[part])
            left[part] = {one: value for one, value in values.items() if one != key}
    return left


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The names of the parts in which two fingerprints differ."""
    return [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]


def schema_digest(kind: type) -> str:
    """Hash of a record's schema: a part of the fingerprint of the stage that writes it."""
    return digest(str(SCHEMAS[kind]))


def manifest_of(folder: Path) -> Manifest | None:
    """The manifest in a stage's folder, if there is one. Raises RunError: it is damaged or of another layout."""
    file = folder / "manifest.json"
    return read_manifest(file) if file.exists() else None


def read_manifest(file: Path) -> Manifest:
    """A manifest, as :func:`manifest_of`."""
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise RunError(f"{file} is damaged (no table); delete the folder {file.parent} to do the stage again")
    if raw.get("layout") != LAYOUT:
        raise RunError(
            f"{file} has layout {raw.get('layout')}, this version reads {LAYOUT}; "
            "use the version that made the run, or another folder"
        )
    try:
        return Manifest(**{**raw, "shards": [Shard(**shard) for shard in raw["shards"]]})
    except (TypeError, KeyError) as error:
        raise RunError(f"{file} is damaged ({error}); delete the folder {file.parent} to do the stage again") from error
