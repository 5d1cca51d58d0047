"""How the shards of a stage are made and recorded: what is there is used, what is missing is made.

A stage whose shards are known before its work begins is made by :func:`run_local` in this process, or by :func:`run_shards`
with an executor, which may finish them out of turn. :func:`run_stream` is for a stage whose shards are only known while its
input is read, and :func:`build_file` for one that makes a file or a folder, or :func:`build_json` a file of JSON.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar, cast

from gecko.core.counts import Counts
from gecko.core.disk import disk_errors
from gecko.core.errors import RunError
from gecko.core.files import made_aside, read_json, remove, tree_sha256, write_json, write_table
from gecko.core.progress import Advance, Silent
from gecko.core.records import to_table
from gecko.run.engine import LOCAL, Executor, Job, Task
from gecko.run.folder import Run
from gecko.run.manifest import AHEAD, Manifest, Shard

Bar = Callable[[int], contextlib.AbstractContextManager[Advance]]
R = TypeVar("R")
Item = TypeVar("Item")


def run_local(
    run: Run,
    stage: str,
    kind: type[R],
    parts: dict[str, str],
    shards: Sequence[Item],
    work: Callable[[Item, Counts], Iterable[R]],
    bar: Bar | None = None,
) -> Manifest:
    """:func:`run_shards` in this process and in order; ``work`` makes the records of one item."""
    job: Job[Item, R] = Job(work, lambda index, _: shards[index])
    return run_shards(run, stage, kind, parts, shards, lambda _: job, LOCAL, bar)


def run_shards(
    run: Run,
    stage: str,
    kind: type[R],
    parts: dict[str, str],
    shards: Sequence[Item],
    job: Callable[[Mapping[int, Shard]], Job[Task, R]],
    engine: Executor,
    bar: Bar | None = None,
    *,
    growing: Collection[str] = (),
    key: Callable[[Item], str] = lambda _: "",
) -> Manifest:
    """Make a stage: what is there is used, what is not is made by an executor, which may finish shards out of turn.

    Args:
        run: the run folder, held.
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
    manifest = _reopened(run, run.prepare(stage, parts, growing))
    if manifest.done:
        return manifest
    folder = run.path / manifest.stage
    for shard in manifest.shards:
        run.verify(folder / shard.file, shard)
    if manifest.shards:
        run.say(f"{manifest.stage}: continues at part {len(manifest.shards) + 1} of {len(shards)}")
    known = {shard.index: shard for shard in manifest.shards}
    ahead = run.ahead(folder, manifest)
    for shard in ahead.values():
        run.verify(folder / shard.file, shard)
    known.update(ahead)
    if ahead:
        run.say(f"{manifest.stage}: {len(ahead)} of {len(shards)} parts were made out of turn, and are taken over")
    if ahead or not shards:
        _record(run, manifest, known, len(shards))
    wanted = [index for index in range(len(shards)) if index not in known]
    if not wanted:
        return manifest
    work = job(known)
    with bar(len(wanted)) if bar else Silent().bar("", None, "") as advance:
        for index, rows, counts, seconds in _made(run, engine, work, wanted, known):
            known[index] = _write_shard(run, manifest.stage, index, kind, rows, counts, seconds)
            known[index].key = key(shards[index])
            _record(run, manifest, known, len(shards))
            advance(1)
    return manifest


def run_stream(
    run: Run, stage: str, kind: type[R], parts: dict[str, str], batches: Callable[[], Iterable[tuple[list[R], Counts]]]
) -> Manifest:
    """:func:`run_shards` of a stage whose shards are only known while its input is read, in order.

    ``batches`` makes the rows and the counts of each shard, always the same for the same ``parts``. A stage that was killed
    makes them again from the first, and writes those that are missing; so does one of which a shard was deleted. A RunError
    is also raised where the input is not what it was when the stage began.
    """
    manifest = run.prepare(stage, parts)
    lost = _lost(run, manifest)
    if manifest.done and not lost:
        return manifest
    written = len(manifest.shards)
    for place, shard in enumerate(manifest.shards):
        if place not in lost:
            run.verify(run.path / stage / shard.file, shard)
    if written and not manifest.done:
        run.say(f"{stage}: continues at part {written + 1}")
    start = time.perf_counter()
    for index, (rows, counts) in enumerate(batches()):
        if index < written and not (
            len(rows) == manifest.shards[index].rows  # of a shard that was deleted only their number is known
            and (index in lost or rows == run.read_shard(run.path / stage, manifest.shards[index], kind))
        ):
            raise RunError(
                f"{run.path / stage}: the input of part {index + 1} has changed while the stage was not running, or "
                f"this version reads it otherwise; delete the folder to do it again"
            )
        if index >= written or index in lost:
            seconds = time.perf_counter() - start - counts.waited
            manifest.shards[index : index + 1] = [_write_shard(run, stage, index, kind, rows, counts, seconds)]
            run.save(manifest)
        start = time.perf_counter()
    manifest.done = True
    run.save(manifest)
    return manifest


def build_file(run: Run, stage: str, parts: dict[str, str], file: str, make: Callable[[Path], None]) -> Path:
    """For a stage whose output is a file or folder (a model, a report) and not records.

    ``make`` gets the path to write, below the stage's folder; a folder is made aside and renamed when complete.
    """
    manifest = run.prepare(stage, parts)
    final = run.path / stage / file
    if manifest.done and final.exists():
        if tree_sha256(final) != manifest.shards[0].sha256:
            raise RunError(
                f"{final} does not match its checksum (damaged or edited); "
                f"delete the folder {final.parent} to do the stage again"
            )
        return final
    start = time.perf_counter()
    # The libraries that write models have errors of their own for a full disk.
    with disk_errors(final, Exception), made_aside(final) as aside:
        make(aside)
        remove(final)
    manifest.shards = [Shard(file, 1, tree_sha256(final), time.perf_counter() - start, 0, {}, {})]
    manifest.done = True
    run.save(manifest)
    return final


def build_json(run: Run, stage: str, parts: dict[str, str], file: str, make: Callable[[], R]) -> R:
    """:func:`build_file` of what ``make`` gives, as JSON; returns what is in the file."""
    return cast(R, read_json(build_file(run, stage, parts, file, lambda path: write_json(path, make()))))


def _lost(run: Run, manifest: Manifest) -> list[int]:
    """The places of the shards whose files were deleted. They are made again, the others are kept."""
    folder = run.path / manifest.stage
    lost = [place for place, shard in enumerate(manifest.shards) if not (folder / shard.file).exists()]
    if lost:
        run.say(f"{manifest.stage}: {len(lost)} of {len(manifest.shards)} parts are missing, and are made again")
    return lost


def _reopened(run: Run, manifest: Manifest) -> Manifest:
    """A manifest up to the first shard that is lost; those behind it wait for their turn, as if made ahead."""
    if lost := _lost(run, manifest):
        folder = run.path / manifest.stage
        behind = {shard.index: shard for shard in manifest.shards[lost[0] :]} | run.ahead(folder, manifest)
        _write_part(run, folder / AHEAD, manifest, behind)  # first, so that a kill in between loses none
        manifest.shards, manifest.done = manifest.shards[: lost[0]], False
        run.save(manifest)
    return manifest


def _made(
    run: Run, engine: Executor, job: Job[Task, R], wanted: Sequence[int], known: Mapping[int, Shard]
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


def _record(run: Run, manifest: Manifest, known: Mapping[int, Shard], count: int) -> None:
    """Save a manifest with the shards whose turn it is, and set down the others beside it."""
    while (shard := known.get(len(manifest.shards))) is not None:
        manifest.shards.append(shard)
    manifest.done = len(manifest.shards) == count
    run.save(manifest)
    folder = run.path / manifest.stage
    ahead = {index: shard for index, shard in known.items() if index >= len(manifest.shards)}
    if ahead:
        _write_part(run, folder / AHEAD, manifest, ahead)
    for file in folder.glob("worker-*.json"):
        if not ahead or file.name != AHEAD:
            file.unlink()


def _write_part(run: Run, file: Path, manifest: Manifest, shards: Mapping[int, Shard]) -> None:
    part = Manifest(manifest.stage, manifest.fingerprint, manifest.parts, [shards[index] for index in sorted(shards)])
    write_json(file, asdict(part))


def _write_shard(
    run: Run, stage: str, index: int, kind: type[R], rows: list[R], counts: Counts, seconds: float
) -> Shard:
    path = run.path / stage / f"part-{index:05d}.parquet"
    data = write_table(path, to_table(kind, rows))
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
