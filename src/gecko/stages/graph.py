"""All stages of a run, in the order of the work: derived from what each of them reads and comes after."""

from collections.abc import Iterator
from graphlib import TopologicalSorter

from gecko.report import History
from gecko.run.folder import Run
from gecko.run.manifest import Manifest
from gecko.stages.agreement import AGREEMENT
from gecko.stages.check import CHECK
from gecko.stages.choose import CHOOSE
from gecko.stages.embed import EMBED, EMBED_MINER, EMBED_WARMUP
from gecko.stages.evaluate import EVALUATE
from gecko.stages.generate import GENERATE
from gecko.stages.ingest import INGEST
from gecko.stages.mine import MINE, SEEDS
from gecko.stages.plan import PLAN
from gecko.stages.relabel import RELABEL
from gecko.stages.select import SELECT
from gecko.stages.stage import Stage, always, identity_of
from gecko.stages.train import TRAIN
from gecko.stages.user_queries import USER_QUERIES
from gecko.stages.warmup import WARMUP

_ALL = (
    *(INGEST, EMBED, CHECK, USER_QUERIES, PLAN, GENERATE, WARMUP, EMBED_WARMUP, EMBED_MINER, MINE, SEEDS, RELABEL),
    *(SELECT, TRAIN, AGREEMENT, CHOOSE, EVALUATE),
)


def _before(stage: Stage) -> list[Stage]:
    each = [stage.reads_each] if stage.reads_each else []
    return [*stage.reads.values(), *each, *stage.after]


def _ordered(stages: tuple[Stage, ...]) -> list[Stage]:
    place = {stage: index for index, stage in enumerate(stages)}
    sorter = TopologicalSorter({stage: _before(stage) for stage in stages})
    sorter.prepare()
    found: list[Stage] = []
    waiting: list[Stage] = []
    while sorter.is_active():
        waiting = sorted([*waiting, *sorter.get_ready()], key=place.__getitem__)
        found.append(first := waiting.pop(0))
        sorter.done(first)
    return found


ORDER = _ordered(_ALL)
STAGES = {stage.name: stage for stage in ORDER}


def upto(name: str) -> Iterator[Stage]:
    """The stages that are made on the way to the one of this name, and that one, in order."""
    for stage in ORDER:
        if stage.made == "on the way" or stage.name == name:
            yield stage
        if stage.name == name:
            return


def command(folder: str) -> str:
    """The command that makes a stage's folder."""
    stage = STAGES.get(folder) or STAGES.get(folder.partition("-")[0])  # relabel-2 is a folder of relabel
    return (stage and (stage.command or stage.name)) or folder.partition("-")[0]


def history(run: Run) -> History:
    """What the stages of a run have done, for its report."""
    return History(
        manifests(run),
        [stage.name for stage in ORDER if stage.record is not None],
        [stage.name for stage in ORDER if stage.asks],
        stale(run),
    )


def manifests(run: Run) -> dict[str, Manifest]:
    """What the stages of a run have made so far, by folder, in the order of the work."""
    folders = (folder for stage in ORDER for folder in stage.folders_of(run.config))
    found = {folder: run.manifest(folder) for folder in folders}
    return {folder: manifest for folder, manifest in found.items() if manifest is not None}


def stale(run: Run) -> list[str]:
    """In words, a run's stages whose input has been made anew since: their numbers are not of the rows that are there."""
    made = manifests(run)
    return [
        f"{folder} was made from an earlier {source}"
        for stage in ORDER
        for folder in stage.folders_of(run.config)
        if folder in made
        for source in _changed_sources(stage, made[folder], run, made)
    ]


def _changed_sources(stage: Stage, manifest: Manifest, run: Run, made: dict[str, Manifest]) -> Iterator[str]:
    sources: dict[str, Stage | str] = {**stage.reads, **stage.sources(run.config)}
    for part, source in sources.items():
        folders = [source] if isinstance(source, str) else source.folders_of(run.config)
        if all(folder in made for folder in folders):
            now = identity_of([made[folder] for folder in folders]) if folders else ""
            is_sure = isinstance(source, str) or source.applies is always  # else the part may rightly be missing
            if manifest.parts.get(part, now if is_sure else "") != now:
                yield source if isinstance(source, str) else source.name
