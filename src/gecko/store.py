"""A run is a folder; a stage writes parquet shards and a manifest into a folder of its own there.

::

    RUN/config.json                     the settings
    RUN/relabel/part-00007.parquet      one shard: the unit of resuming
    RUN/relabel/manifest.json           fingerprint, shards with checksums, drops by reason, tokens, seconds
    RUN/archive/relabel-1a2b3c4d/       what an earlier fingerprint made; it comes back when that one does

The **fingerprint** covers a stage's inputs (the identity of the stages it reads), the settings it reads, and its
version, a number that is raised by hand when its results change. Same fingerprint: the shards are used as they are.
Another: the store says which part changed, puts the old output into ``archive/`` and starts afresh. The **identity** of a
finished stage covers its shards' checksums, never the seconds it took nor the settings: what is equal stays paid for.

Files appear under their names only when they are complete (written aside, synced, renamed), and the manifest is
rewritten after each shard, so a killed run continues at the next shard. Shards that a cluster finishes before an earlier one
wait for their turn in ``worker-ahead.json`` beside it.

A run **grows** when only the amount of work changed (``config.FREE``): :meth:`Run.earlier` finds what the teacher was
paid for under the other amounts, and the stages that it works for (``paid.py``) take it over.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from gecko.config import FREE, RunConfig, changed_keys, make_config
from gecko.config_paths import absolute_paths, moved_paths
from gecko.device import texts_together
from gecko.disk import disk_errors
from gecko.errors import ConfigError, RunError
from gecko.given import folder_of
from gecko.records import SCHEMAS, from_table, to_table
from gecko.text import half_of_pair
from gecko.work import EXAMPLES, LOCAL, Counts, Engine, Job, Task

LAYOUT = 1
CARD = "README.md"
AHEAD = "worker-ahead.json"
_ASIDE = re.compile(r"\..+\.\d+")  # the names that write_bytes uses until a file is whole
_Bar = Callable[[int], contextlib.AbstractContextManager[Callable[[int], None]]]
R = TypeVar("R")
Item = TypeVar("Item")


def digest(*parts: str | bytes) -> str:
    """A hash of several strings in which their borders count; 16 hexadecimal digits."""
    return digest_of(parts)


def digest_of(parts: Iterable[str | bytes]) -> str:
    """:func:`digest` of strings that come one by one."""
    joined = hashlib.sha256()
    for part in parts:
        # surrogatepass: names of files need not be UTF-8.
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        joined.update(len(data).to_bytes(8, "little") + data)
    return joined.hexdigest()[:16]


def drawn_by(*parts: str) -> float:
    """A number from 0 on and below 1 that these strings decide, for good: for drawing by share or weight."""
    return float(int(digest(*parts)[:12], 16) / 16**12)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it exists whole or not at all.

    Raises:
        StorageError: the disk is full or read-only.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, whole or not at all."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    if half_of_pair(text):  # the name of a file that is not UTF-8; as an escape it comes back as it was
        text = json.dumps(value, indent=1)
    write_bytes(path, f"{text}\n".encode())


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; run the stage that writes it") from error
    except (ValueError, OSError) as error:
        raise RunError(
            f"{path} is damaged ({error}); it is kept as it is; move it away to have it made again"
        ) from error


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


def lock_folder(path: Path, wait: float = 0) -> FileLock:
    """Make a folder if need be, and keep other processes out of it until the lock is released.

    Args:
        path: the folder.
        wait: seconds in which another process may end.

    Raises:
        RunError: another process works there, or it is a file.
        StorageError: it cannot be made or written.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; give the path of a folder")
    lock = FileLock(path / ".lock")
    try:
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=wait)
    except Timeout:
        raise RunError(f"another process works in {path}; wait for it to end, or use another folder") from None
    return lock


class Run:
    """A run folder, held by one process at a time. Use it as a context manager.

    Args:
        path: the folder; it is made if need be.
        config: the run's settings; none: those saved in the folder.
        force: go on in a folder that was made with other settings.
        keep: save the settings; without it, a folder that has some keeps those, and this object alone has the new ones.
        same_prompts: a prompt that is named as before is the run's own copy; otherwise its file is read again.
        say: where a sentence for the user goes.

    Raises:
        RunError: another process holds the folder, its settings differ, or it is no run.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: RunConfig | None = None,
        *,
        force: bool = False,
        keep: bool = True,
        same_prompts: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.path = path = folder_of(path)
        self.prompt_files: dict[str, list[bytes]] = {}  # of the prompts whose files were read just now, by role
        self.say = say
        self.changed = False  # whether the folder's settings were replaced just now, by more than an amount
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; give the path of a folder for the run")
        if config is None and not (path / "config.json").exists():
            raise RunError(
                f"{path} is not a run (it has no config.json); start one with: gecko distill CORPUS -o {path}"
            )
        self._lock = lock_folder(path)
        try:
            self._sweep()
            self.config = self._settle(config, force, keep, same_prompts)
        except BaseException:
            self.__exit__()
            raise

    def _sweep(self) -> None:
        """Remove what killed writes left: nobody else can be writing, since the lock is held."""
        for path in [*self.path.glob(".*"), *self.path.glob("*/.*")]:
            if _ASIDE.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink()

    def _settle(self, config: RunConfig | None, force: bool, keep: bool, same_prompts: bool) -> RunConfig:
        from gecko.run_prompts import keep_prompts, read_prompts

        file = self.path / "config.json"
        saved = self._saved(file) if file.exists() else None
        if config is None:
            if saved is None:
                raise RunError(f"{file} is missing")
            return _with_batch(saved, saved)
        config = _with_batch(absolute_paths(config, saved), saved)
        before = config if saved is None else moved_paths(saved, config)
        self.prompt_files, changes = read_prompts(
            self.path, config, saved or config, before, same_prompts and saved is not None, self.say
        )
        changes += [change for change in changed_keys(before, config) if change.partition(":")[0] not in FREE]
        self.changed = bool(changes) and saved is not None
        if self.changed and not force and self._is_paid():
            listed = "\n  ".join(changes)
            raise RunError(
                f"{self.path} holds a run with other settings:\n  {listed}\n"
                "Use another folder, or --force to go on here with the new ones: the stages they touch are done again, "
                f"and their old output is kept in {self.path / 'archive'}"
            )
        if keep or saved is None:
            write_json(file, config.model_dump())
            keep_prompts(self.path, config, self.prompt_files)
        return config

    def _saved(self, file: Path) -> RunConfig:
        """The settings in the folder; keys that came later than they did have their defaults."""
        values = read_json(file)
        if not isinstance(values, dict):
            raise RunError(f"{file} is damaged (no table); it is kept as it is; move it away to have it made again")
        try:
            return make_config(values, str(file))
        except ConfigError as error:
            raise ConfigError(
                f"{error}\nThe run was made by another version of Gecko, whose settings this one cannot read: "
                "use that version, mend the file, or take another folder"
            ) from error

    def _is_paid(self) -> bool:
        """Whether a teacher has worked for this run; before that, other settings cost nothing."""
        return any(any((self.path / stage).glob("part-*.parquet")) for stage in ("generate", "relabel"))

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def manifest(self, stage: str) -> Manifest | None:
        """What ``stage`` has done so far, if anything.

        Raises:
            RunError: the manifest is damaged or of another layout.
        """
        return self._manifest(self.path / stage)

    def _manifest(self, folder: Path) -> Manifest | None:
        file = folder / "manifest.json"
        return self._read_manifest(file) if file.exists() else None

    def _read_manifest(self, file: Path) -> Manifest:
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
            raise RunError(
                f"{file} is damaged ({error}); delete the folder {file.parent} to do the stage again"
            ) from error

    def finished(self, stage: str) -> Manifest:
        """The manifest of a stage that must be complete.

        Raises:
            RunError: it is not.
        """
        manifest = self.manifest(stage)
        if manifest is None or not manifest.done:
            if (self.path / "pretrain").exists() and not (self.path / "ingest").exists():
                raise RunError(
                    f"{self.path} is a run of gecko pretrain and has no stage {stage}; use its model, {self.path / 'model'}"
                )
            command = _command(stage)
            raise RunError(f"{self.path}: stage {stage} is not finished; run: gecko {command} {self.path}")
        return manifest

    def read(self, stage: str, kind: type[R]) -> list[R]:
        """All records of a finished stage.

        Raises:
            RunError: the stage is not finished, or a shard is missing or does not match its checksum.
        """
        return self._rows(self.path / stage, self.finished(stage), kind)

    def read_so_far(self, stage: str, kind: type[R]) -> list[R]:
        """All records that a stage has made, whether it came to its end or not.

        Raises:
            RunError: it never began, or a shard is missing or does not match its checksum.
        """
        manifest = self.manifest(stage)
        if manifest is None or not manifest.shards:
            raise RunError(f"{self.path}: stage {stage} has made nothing yet; run: gecko {stage} {self.path}")
        return self._rows(self.path / stage, manifest, kind)

    def _rows(self, folder: Path, manifest: Manifest, kind: type[R]) -> list[R]:
        return [row for shard in manifest.shards for row in self.read_shard(folder, shard, kind)]

    def read_shard(self, folder: Path, shard: Shard, kind: type[R]) -> list[R]:
        """The records of one shard in a stage's folder.

        Raises:
            RunError: it is missing, does not match its checksum, or holds records of another version of Gecko.
        """
        path = folder / shard.file
        self._verify(path, shard)
        table = pq.read_table(path)
        try:
            return list(from_table(kind, table))
        except (TypeError, KeyError) as error:
            raise RunError(
                f"shard {path} was written by another version of Gecko: it has the fields {', '.join(table.column_names)}, "
                f"a {kind.__name__} of this version has {', '.join(SCHEMAS[kind].names)}; use the version that made the "
                f"run, another folder, or delete the folder {folder} to do the stage again"
            ) from error

    def earlier(
        self, stage: str, parts: Mapping[str, str], growing: Collection[str], alike: Collection[str] = ()
    ) -> list[tuple[Path, Manifest]]:
        """What the stage made before of the same ``parts``, but for those named in ``growing``; the longest first.

        Its shards may be fewer than were planned: a stage that never ended has paid for those it has. The stages named in
        ``alike`` do the same work, so that what they made counts, too.
        """
        found = []
        made = [entry for name in dict.fromkeys((stage, *alike)) for entry in self.archived(name)]
        for name in alike:
            if name != stage and (manifest := self.manifest(name)) is not None:
                made.append((self.path / name, manifest))
        for folder, manifest in made:
            if _fixed(manifest.parts, growing) == _fixed(parts, growing):
                ahead = self._ahead(folder, manifest)
                manifest.shards += [ahead[index] for index in sorted(ahead)]
                if manifest.shards:
                    found.append((folder, manifest))
        return sorted(found, key=lambda entry: (-entry[1].rows, entry[0].name))

    def archived(self, stage: str) -> Iterator[tuple[Path, Manifest]]:
        """What a stage made under earlier fingerprints: folder and manifest."""
        for folder in sorted((self.path / "archive").glob(f"{stage}-*")):
            manifest = self._manifest(folder)
            if manifest is not None and manifest.stage == stage:
                yield folder, manifest

    def made(self, stage: str, identity: str, kind: type[R]) -> list[R] | None:
        """The records of whichever output of ``stage``, current or archived, has this identity; none: there is none."""
        current = self.manifest(stage)
        for folder, manifest in [*([(self.path / stage, current)] if current else []), *self.archived(stage)]:
            if manifest.done and manifest.identity == identity:
                return self._rows(folder, manifest, kind)
        return None

    def _verify(self, path: Path, shard: Shard) -> None:
        again = f"gecko {_command(path.parent.name)} {self.path} makes it again"
        mend = f"delete it, and {again}"
        if path.parent.parent != self.path:
            mend = again = f"delete the folder {path.parent}, and what it holds is paid for again"
        if not path.exists():
            raise RunError(f"shard {path} is missing; {again}")
        if file_sha256(path) != shard.sha256:
            raise RunError(f"shard {path} does not match its checksum (damaged or edited); {mend}")

    def _lost(self, manifest: Manifest) -> list[int]:
        """The places of the shards whose files were deleted. They are made again, the others are kept."""
        folder = self.path / manifest.stage
        lost = [place for place, shard in enumerate(manifest.shards) if not (folder / shard.file).exists()]
        if lost:
            self.say(f"{manifest.stage}: {len(lost)} of {len(manifest.shards)} parts are missing, and are made again")
        return lost

    def _reopened(self, manifest: Manifest) -> Manifest:
        """A manifest up to the first shard that is lost; those behind it wait for their turn, as if made ahead."""
        if lost := self._lost(manifest):
            folder = self.path / manifest.stage
            behind = {shard.index: shard for shard in manifest.shards[lost[0] :]} | self._ahead(folder, manifest)
            self._write_part(folder / AHEAD, manifest, behind)  # first, so that a kill in between loses none
            manifest.shards, manifest.done = manifest.shards[: lost[0]], False
            self.save(manifest)
        return manifest

    def execute(
        self,
        stage: str,
        kind: type[R],
        parts: dict[str, str],
        shards: Sequence[Item] | Callable[[], Sequence[Item]],
        work: Callable[[Item, Counts], Iterable[R]],
        bar: _Bar | None = None,
        *,
        growing: Collection[str] = (),
        key: Callable[[Item], str] = lambda _: "",
    ) -> Manifest:
        """Run one stage: reuse what is there, do what is not.

        Args:
            stage: its name, and its folder's.
            kind: the record it makes.
            parts: what the result depends on, by name; hashed into the fingerprint.
            shards: one item a shard, always the same for the same ``parts``; a function is called only when needed.
            work: makes the records of one shard.
            bar: opens a progress bar over so many shards.
            growing: the parts whose change leaves what was paid for of use.
            key: what a shard is asked for; kept with it.

        Raises:
            RunError: a shard on disk is damaged.
            StorageError: the disk is full.
        """
        manifest = self._reopened(self.prepare(stage, parts, growing))
        if manifest.done:
            return manifest
        items = shards() if callable(shards) else shards
        job: Job[Item, R] = Job(work, lambda index, _: items[index])
        return self._fill(manifest, kind, items, lambda _: job, LOCAL, bar, key)

    def spread(
        self,
        stage: str,
        kind: type[R],
        parts: dict[str, str],
        shards: Sequence[Item],
        job: Callable[[Mapping[int, Shard]], Job[Task, R]],
        engine: Engine,
        bar: _Bar | None = None,
        *,
        growing: Collection[str] = (),
        key: Callable[[Item], str] = lambda _: "",
    ) -> Manifest:
        """Like :meth:`execute`, for work that an engine does, which may finish shards out of turn.

        Args:
            stage: its name, and its folder's.
            kind: the record it makes.
            parts: what the result depends on, by name; hashed into the fingerprint.
            shards: one item a shard, always the same for the same ``parts``.
            job: makes the work, if there is some to do; gets the shards that are there, by number, as they come.
            engine: does it.
            bar: opens a progress bar over so many shards.
            growing: the parts whose change leaves what was paid for of use.
            key: what a shard is asked for; kept with it.

        Raises:
            RunError: a shard on disk is damaged.
            StorageError: the disk is full.
        """
        manifest = self._reopened(self.prepare(stage, parts, growing))
        if manifest.done:
            return manifest
        return self._fill(manifest, kind, shards, job, engine, bar, key)

    def _fill(
        self,
        manifest: Manifest,
        kind: type[R],
        items: Sequence[Item],
        make_job: Callable[[Mapping[int, Shard]], Job[Task, R]],
        engine: Engine,
        bar: _Bar | None,
        key: Callable[[Item], str],
    ) -> Manifest:
        folder = self.path / manifest.stage
        for shard in manifest.shards:
            self._verify(folder / shard.file, shard)
        if manifest.shards:
            self.say(f"{manifest.stage}: continues at part {len(manifest.shards) + 1} of {len(items)}")
        known = {shard.index: shard for shard in manifest.shards}
        ahead = self._ahead(folder, manifest)
        for shard in ahead.values():
            self._verify(folder / shard.file, shard)
        known.update(ahead)
        if ahead:
            self.say(f"{manifest.stage}: {len(ahead)} of {len(items)} parts were made out of turn, and are taken over")
        if ahead or not items:
            self._record(manifest, known, len(items))
        wanted = [index for index in range(len(items)) if index not in known]
        if not wanted:
            return manifest
        job = make_job(known)
        with bar(len(wanted)) if bar else contextlib.nullcontext(lambda _: None) as advance:
            for index, rows, counts, seconds in self._made(engine, job, wanted, known):
                known[index] = self._write_shard(manifest.stage, index, kind, rows, counts, seconds)
                known[index].key = key(items[index])
                self._record(manifest, known, len(items))
                advance(1)
        return manifest

    def _made(
        self, engine: Engine, job: Job[Task, R], wanted: Sequence[int], known: Mapping[int, Shard]
    ) -> Iterator[tuple[int, list[R], Counts, float]]:
        """Number, rows, counts and seconds of each of the shards ``wanted``, as they are finished."""
        waiting = list(wanted)
        asked: dict[int, tuple[Counts, float]] = {}

        def take() -> tuple[int, Task] | None:
            for index in waiting:
                if all(before in known for before in job.after(index)):
                    waiting.remove(index)
                    counts, start = Counts(), time.perf_counter()
                    task = job.ask(index, counts)
                    asked[index] = counts, time.perf_counter() - start
                    return index, task
            return None

        while waiting:
            for index, done in engine.run(job.do, take):
                counts, seconds = asked.pop(index)
                counts.add(done.counts)
                yield index, done.rows, counts, seconds + done.seconds - counts.waited + counts.spent

    def _record(self, manifest: Manifest, known: Mapping[int, Shard], count: int) -> None:
        """Save a manifest with the shards whose turn it is, and set down the others beside it."""
        while (shard := known.get(len(manifest.shards))) is not None:
            manifest.shards.append(shard)
        manifest.done = len(manifest.shards) == count
        self.save(manifest)
        folder = self.path / manifest.stage
        ahead = {index: shard for index, shard in known.items() if index >= len(manifest.shards)}
        if ahead:
            self._write_part(folder / AHEAD, manifest, ahead)
        for file in folder.glob("worker-*.json"):
            if not ahead or file.name != AHEAD:
                file.unlink()

    def _write_part(self, file: Path, manifest: Manifest, shards: Mapping[int, Shard]) -> None:
        part = Manifest(
            manifest.stage, manifest.fingerprint, manifest.parts, [shards[index] for index in sorted(shards)]
        )
        write_json(file, asdict(part))

    def _ahead(self, folder: Path, manifest: Manifest) -> dict[int, Shard]:
        """The shards in a stage's folder that wait for their turn in ``manifest``, by number.

        Raises:
            RunError: they are of other work.
        """
        listed = {shard.file for shard in manifest.shards}
        found: dict[int, Shard] = {}
        for file in sorted(folder.glob("worker-*.json")):
            part = self._read_manifest(file)
            if part.fingerprint != manifest.fingerprint:
                changed = ", ".join(_differing(part.parts, manifest.parts))
                raise RunError(
                    f"{file} is of other work than {folder / 'manifest.json'} ({changed} differ); move it out of the folder, "
                    "with the shards that it names"
                )
            for shard in part.shards:
                if shard.file not in listed and (folder / shard.file).exists():
                    found[shard.index] = shard
        return found

    def stream(
        self, stage: str, kind: type[R], parts: dict[str, str], batches: Callable[[], Iterable[tuple[list[R], Counts]]]
    ) -> Manifest:
        """Like :meth:`execute`, for a stage whose shards are only known while its input is read, in order.

        Args:
            stage: its name, and its folder's.
            kind: the record it makes.
            parts: what the result depends on, by name; hashed into the fingerprint.
            batches: makes the rows and the counts of each shard, always the same for the same ``parts``. A stage that
                was killed makes them again from the first, and writes those that are missing; so does one of which a
                shard was deleted.

        Raises:
            RunError: a shard on disk is damaged, or the input is not what it was when the stage began.
            StorageError: the disk is full.
        """
        manifest = self.prepare(stage, parts)
        lost = self._lost(manifest)
        if manifest.done and not lost:
            return manifest
        written = len(manifest.shards)
        for place, shard in enumerate(manifest.shards):
            if place not in lost:
                self._verify(self.path / stage / shard.file, shard)
        if written and not manifest.done:
            self.say(f"{stage}: continues at part {written + 1}")
        start = time.perf_counter()
        for index, (rows, counts) in enumerate(batches()):
            if index < written and not self._is_as_written(stage, manifest.shards[index], kind, rows, index in lost):
                raise RunError(
                    f"{self.path / stage}: the input of part {index + 1} has changed while the stage was not running, or "
                    f"this version reads it otherwise; delete the folder to do it again"
                )
            if index >= written or index in lost:
                seconds = time.perf_counter() - start - counts.waited
                manifest.shards[index : index + 1] = [self._write_shard(stage, index, kind, rows, counts, seconds)]
                self.save(manifest)
            start = time.perf_counter()
        manifest.done = True
        self.save(manifest)
        return manifest

    def _is_as_written(self, stage: str, shard: Shard, kind: type[R], rows: list[R], is_lost: bool) -> bool:
        """Whether a shard was made from these rows; of one that was deleted only their number is known."""
        return len(rows) == shard.rows and (is_lost or rows == self.read_shard(self.path / stage, shard, kind))

    def prepare(self, stage: str, parts: dict[str, str], growing: Collection[str] = ()) -> Manifest:
        """The manifest to go on with for these ``parts``: the current one, an archived one, or a new one."""
        fingerprint = digest(stage, *(text for item in sorted(parts.items()) for text in item))
        current = self.manifest(stage)
        if current is not None and current.fingerprint != fingerprint:
            changed = _differing(parts, current.parts)
            grown = _fixed(parts, growing) == _fixed(current.parts, growing)
            again = "what was paid for is used again" if grown else "so it is done again"
            self.say(f"{stage}: {', '.join(changed)} changed, {again}; the old output is kept in archive/")
            self._move(self.path / stage, self._archived(stage, current.fingerprint))
            current = None
        if current is None and (archived := self._archived(stage, fingerprint)).exists():
            self.say(f"{stage}: taken back from archive/")
            self._move(archived, self.path / stage)
            current = self.manifest(stage)
        if current is None:
            folder = self.path / stage
            if any(folder.glob("part-*.parquet")):
                aside = self._archived(stage, "without-manifest")
                self.say(f"{stage}: its manifest is missing; the shards are put into {aside}, and it is done again")
                self._move(folder, aside)
            elif folder.exists():  # only debris of a run that ended before its first shard
                shutil.rmtree(folder)
            current = Manifest(stage, fingerprint, parts)
            self.save(current)
        return current

    def _archived(self, stage: str, fingerprint: str) -> Path:
        return self.path / "archive" / f"{stage}-{fingerprint}"

    def _move(self, source: Path, target: Path) -> None:
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            source.rename(target)

    def _write_shard(
        self, stage: str, index: int, kind: type[R], rows: list[R], counts: Counts, seconds: float
    ) -> Shard:
        sink = pa.BufferOutputStream()
        pq.write_table(to_table(kind, rows), sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
        path = self.path / stage / f"part-{index:05d}.parquet"
        write_bytes(path, data)
        return Shard(
            file=path.name,
            rows=len(rows),
            sha256=hashlib.sha256(data).hexdigest(),
            seconds=seconds,
            tokens=counts.tokens,
            drops=dict(sorted(counts.drops.items())),
            notes=dict(sorted(counts.notes.items())),
            examples=dict(sorted(counts.examples.items())),
        )

    def save(self, manifest: Manifest) -> None:
        """Write a manifest, whole or not at all."""
        write_json(self.path / manifest.stage / "manifest.json", asdict(manifest))

    def artifact(self, stage: str, parts: dict[str, str], file: str, make: Callable[[Path], None]) -> Path:
        """For a stage whose output is a file or folder (a model, a report) and not records.

        ``make`` gets the path to write, below the stage's folder; a folder is made aside and renamed when complete.
        """
        manifest = self.prepare(stage, parts)
        final = self.path / stage / file
        if manifest.done and final.exists():
            if tree_sha256(final) != manifest.shards[0].sha256:
                raise RunError(
                    f"{final} does not match its checksum (damaged or edited); "
                    f"delete the folder {final.parent} to do the stage again"
                )
            return final
        aside = final.with_name(f".{final.name}.partial")
        start = time.perf_counter()
        with disk_errors(final, Exception):  # the libraries that write models have errors of their own for a full disk
            _remove(aside)  # what a killed attempt left must not be mixed into this one
            make(aside)
            _remove(final)
            aside.replace(final)
        manifest.shards = [Shard(file, 1, tree_sha256(final), time.perf_counter() - start, 0, {}, {})]
        manifest.done = True
        self.save(manifest)
        return final


def _with_batch(config: RunConfig, saved: RunConfig | None) -> RunConfig:
    """The settings with a batch of ``generate``: what it was when the run began, else what this machine is best given.

    It is settled once a run, since shards are counted by it: another machine goes on with the same.
    """
    batch = config.generate.batch or (saved and saved.generate.batch) or texts_together(config.llm)
    return config.model_copy(update={"generate": config.generate.model_copy(update={"batch": batch})})


def _command(stage: str) -> str:
    """The command that makes a stage."""
    return {"asked": "generate"}.get(stage, stage.partition("-")[0])  # relabel-2 is a part of relabel


def _fixed(parts: Mapping[str, str], growing: Collection[str]) -> dict[str, Any]:
    """What was paid for hangs on these parts: those not in ``growing``, where ``settings.x`` is a key of a JSON part."""
    left: dict[str, Any] = {key: value for key, value in parts.items() if key not in growing}
    for name in growing:
        part, _, key = name.partition(".")
        if key and part in left:
            values = left[part] if isinstance(left[part], dict) else json.loads(left[part])
            left[part] = {one: value for one, value in values.items() if one != key}
    return left


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The names of the parts in which two fingerprints differ."""
    return [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def publish(source: Path, target: Path) -> None:
    """Make ``target`` an equal copy of the folder ``source``, whole or not at all; nothing is done if it is one.

    A card (``README.md``) that was written into the copy makes no difference.
    """
    if target.exists() and tree_sha256(target, besides=CARD) == tree_sha256(source, besides=CARD):
        return
    aside = target.with_name(f".{target.name}.partial")
    with disk_errors(target):
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        shutil.rmtree(target, ignore_errors=True)
        aside.replace(target)


def tree_sha256(path: Path, besides: str = "") -> str:
    """One hash for a file, or for a folder's files with their names, without the one named ``besides``."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(entry for entry in path.rglob("*") if entry.is_file() and entry != path / besides)
    return digest(*(text for entry in files for text in (str(entry.relative_to(path)), file_sha256(entry))))


def schema_digest(kind: type) -> str:
    """Hash of a record's schema: a part of the fingerprint of the stage that writes it."""
    return digest(str(SCHEMAS[kind]))
