"""A run is a folder; a stage writes parquet shards and a manifest into a folder of its own there.

::

    RUN/config.json                     the settings
    RUN/relabel/part-00007.parquet      one shard: the unit of resuming
    RUN/relabel/manifest.json           fingerprint, shards with checksums, drops by reason, tokens, seconds
    RUN/archive/relabel-1a2b3c4d/       what an earlier fingerprint made; it comes back when that one does

The **fingerprint** covers a stage's inputs (the identity of the stages it reads), the settings it reads, and its
version, a number that is raised by hand when its results change. Same fingerprint: the shards are used as they are.
Another: the run says which part changed, puts the old output into ``archive/`` and starts afresh. The **identity** of a
finished stage covers its shards' checksums, never the seconds it took nor the settings: what is equal stays paid for.

Files appear under their names only when they are complete (written aside, synced, renamed), and the manifest is
rewritten after each shard, so a killed run continues at the next shard. Shards that a cluster finishes before an earlier one
wait for their turn in ``worker-ahead.json`` beside it.

A run **grows** when only the amount of work changed (``FREE`` in :mod:`gecko.config.run`): :meth:`Run.earlier` finds what
the teacher was paid for under the other amounts, and :mod:`gecko.stages.reuse` takes it over.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import pyarrow.parquet as pq

from gecko.config.run import RunConfig
from gecko.core.arguments import folder_of
from gecko.core.disk import disk_errors
from gecko.core.errors import RunError
from gecko.core.files import digest, file_sha256, write_json
from gecko.core.records import SCHEMAS, from_table
from gecko.prompts import Prompt, make_prompt, read_files
from gecko.run.lock import lock_folder, sweep
from gecko.run.manifest import Manifest, Shard, differing, fixed_parts, manifest_of, read_manifest
from gecko.run.prompts import kept_files
from gecko.run.settings import settle

R = TypeVar("R")


class Run(AbstractContextManager["Run"]):
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
        self.say = say
        # What makes a stage's folder, for messages; whoever knows the stages sets it.
        self.command_of: Callable[[str], str] = lambda folder: {"asked": "generate"}.get(
            folder, folder.partition("-")[0]
        )
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; give the path of a folder for the run")
        if config is None and not (path / "config.json").exists():
            raise RunError(
                f"{path} is not a run (it has no config.json); start one with: gecko distill CORPUS -o {path}"
            )
        self._held = ExitStack()
        self._held.enter_context(lock_folder(path))
        try:
            sweep(path)
            settled = settle(path, config, force=force, keep=keep, same_prompts=same_prompts, say=say)
        except BaseException:
            self.__exit__()
            raise
        self.config, self.changed, self._prompt_files = settled.config, settled.changed, settled.prompt_files

    def prompt(self, role: str) -> Prompt:
        """The prompt for ``role``, a key of ``prompts``: the run's copy, or what the settings name.

        Raises:
            ConfigError: there is no such prompt, or it lacks what its form needs.
            RunError: the copy is damaged.
        """
        name = getattr(self.config.prompts, role)
        return make_prompt(name, self._prompt_files.get(role) or kept_files(self.path, role, name) or read_files(name))

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def taught(self) -> Path | None:
        """The start model after BM25's order; none where the run has not learned it."""
        folder = self.path / "lexical" / "learned" / "model"
        return folder if self.config.lexical.sentences and folder.exists() else None

    def manifest(self, stage: str) -> Manifest | None:
        """What ``stage`` has done so far, if anything.

        Raises:
            RunError: the manifest is damaged or of another layout.
        """
        return manifest_of(self.path / stage)

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
            command = self.command_of(stage)
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
        self.verify(path, shard)
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
            if fixed_parts(manifest.parts, growing) == fixed_parts(parts, growing):
                ahead = self.ahead(folder, manifest)
                manifest.shards += [ahead[index] for index in sorted(ahead)]
                if manifest.shards:
                    found.append((folder, manifest))
        return sorted(found, key=lambda entry: (-entry[1].rows, entry[0].name))

    def archived(self, stage: str) -> Iterator[tuple[Path, Manifest]]:
        """What a stage made under earlier fingerprints: folder and manifest."""
        for folder in sorted((self.path / "archive").glob(f"{stage}-*")):
            manifest = manifest_of(folder)
            if manifest is not None and manifest.stage == stage:
                yield folder, manifest

    def made(self, stage: str, identity: str, kind: type[R]) -> list[R] | None:
        """The records of whichever output of ``stage``, current or archived, has this identity; none: there is none."""
        current = self.manifest(stage)
        for folder, manifest in [*([(self.path / stage, current)] if current else []), *self.archived(stage)]:
            if manifest.done and manifest.identity == identity:
                return self._rows(folder, manifest, kind)
        return None

    def verify(self, path: Path, shard: Shard) -> None:
        """Raise RunError if a shard's file is missing, damaged or edited."""
        again = f"gecko {self.command_of(path.parent.name)} {self.path} makes it again"
        mend = f"delete it, and {again}"
        if path.parent.parent != self.path:
            mend = again = f"delete the folder {path.parent}, and what it holds is paid for again"
        if not path.exists():
            raise RunError(f"shard {path} is missing; {again}")
        if file_sha256(path) != shard.sha256:
            raise RunError(f"shard {path} does not match its checksum (damaged or edited); {mend}")

    def ahead(self, folder: Path, manifest: Manifest) -> dict[int, Shard]:
        """The shards in a stage's folder that wait for their turn in ``manifest``, by number.

        Raises:
            RunError: they are of other work.
        """
        listed = {shard.file for shard in manifest.shards}
        found: dict[int, Shard] = {}
        for file in sorted(folder.glob("worker-*.json")):
            part = read_manifest(file)
            if part.fingerprint != manifest.fingerprint:
                changed = ", ".join(differing(part.parts, manifest.parts))
                raise RunError(
                    f"{file} is of other work than {folder / 'manifest.json'} ({changed} differ); move it out of the folder, "
                    "with the shards that it names"
                )
            for shard in part.shards:
                if shard.file not in listed and (folder / shard.file).exists():
                    found[shard.index] = shard
        return found

    def prepare(self, stage: str, parts: dict[str, str], growing: Collection[str] = ()) -> Manifest:
        """The manifest to go on with for these ``parts``: the current one, an archived one, or a new one."""
        fingerprint = digest(stage, *(text for item in sorted(parts.items()) for text in item))
        current = self.manifest(stage)
        if current is not None and current.fingerprint != fingerprint:
            changed = differing(parts, current.parts)
            grown = fixed_parts(parts, growing) == fixed_parts(current.parts, growing)
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

    def save(self, manifest: Manifest) -> None:
        """Write a manifest, whole or not at all."""
        write_json(self.path / manifest.stage / "manifest.json", asdict(manifest))
