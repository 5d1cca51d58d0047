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
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from gecko.compute.device import texts_together
from gecko.config.load import changed_keys, make_config
from gecko.config.paths import absolute_paths, moved_paths
from gecko.config.run import FREE, RunConfig
from gecko.core.arguments import folder_of
from gecko.core.counts import Counts
from gecko.core.disk import disk_errors
from gecko.core.errors import ConfigError, RunError
from gecko.core.files import _ASIDE, _remove, digest, file_sha256, read_json, tree_sha256, write_bytes, write_json
from gecko.core.records import SCHEMAS, from_table, to_table
from gecko.run.engine import LOCAL, Engine, Job, Task
from gecko.run.lock import lock_folder
from gecko.run.manifest import AHEAD, LAYOUT, Manifest, Shard, _command, _differing, _fixed

_Bar = Callable[[int], contextlib.AbstractContextManager[Callable[[int], None]]]
R = TypeVar("R")
Item = TypeVar("Item")


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
        from gecko.run.prompts import keep_prompts, read_prompts

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
