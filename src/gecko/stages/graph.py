"""All stages of a run, in the order of the work: derived from what each of them reads and comes after."""

from collections.abc import Iterator
from graphlib import TopologicalSorter

from gecko.config.run import RunConfig
from gecko.report import History
from gecko.run.folder import Run
from gecko.run.manifest import Manifest
from gecko.stages.agreement import AGREEMENT
from gecko.stages.check import CHECK
from gecko.stages.choose import CHOOSE
from gecko.stages.dataset import DATASET
from gecko.stages.embed import EMBED
from gecko.stages.evaluate import EVALUATE
from gecko.stages.generate import GENERATE
from gecko.stages.ingest import INGEST
from gecko.stages.lexical import LEXICAL
from gecko.stages.mine import EMBED_MINER, MINE, SEEDS
from gecko.stages.mixture import MIXTURE
from gecko.stages.plan import PLAN
from gecko.stages.relabel import RELABEL
from gecko.stages.select import SELECT
from gecko.stages.stage import Stage, always, identity_of
from gecko.stages.testset import TESTSET
from gecko.stages.train import TRAIN
from gecko.stages.user_queries import USER_QUERIES
from gecko.stages.warmup import EMBED_WARMUP, WARMUP

_ALL = (
    *(INGEST, EMBED, CHECK, USER_QUERIES, PLAN, GENERATE, WARMUP, EMBED_WARMUP, EMBED_MINER, MINE, SEEDS, RELABEL),
    *(SELECT, MIXTURE, LEXICAL, TRAIN, AGREEMENT, CHOOSE, EVALUATE, DATASET),
    TESTSET,
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


def _made_of(stage: Stage) -> set[Stage]:
    """A stage and all that it is made from, directly or not."""
    each = [stage.reads_each] if stage.reads_each else []
    return {stage}.union(*(_made_of(source) for source in (*stage.reads.values(), *each)))


RESULT = _made_of(EVALUATE) | _made_of(AGREEMENT)  # the stages that the model and its numbers come from


def upto(name: str) -> list[Stage]:
    """The stages that are made on the way to the one of this name, and that one, in order."""
    last = ORDER.index(STAGES[name])
    return [stage for stage in ORDER[:last] if stage.made == "on the way"] + [ORDER[last]]


def command(config: RunConfig, folder: str) -> str:
    """The command that makes a folder of a run with these settings."""
    for stage in ORDER:
        if folder in stage.folders_of(config):
            return stage.command or stage.name
    return folder.partition("-")[0]


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
    """In words, which stages were made of what has been made anew since: their numbers are not of what is there.

    A stage that others make when they need it is left out, unless the model or its numbers come from it.
    """
    made = manifests(run)
    return [
        f"{folder} was made from {source}"
        for stage in ORDER
        if stage in RESULT or stage.made != "on demand"
        for folder in stage.folders_of(run.config)
        if folder in made
        for source in _changed_sources(stage, made[folder], run, made)
    ]


def _changed_sources(stage: Stage, manifest: Manifest, run: Run, made: dict[str, Manifest]) -> Iterator[str]:
    sources: dict[str, Stage | str] = {**stage.reads, **stage.sources(run.config)}
    for part, source in sources.items():
        is_sure = isinstance(source, str) or source.applies is always  # else the part may rightly be missing
        folders = [source] if isinstance(source, str) else source.folders_of(run.config)
        there = [made[folder] for folder in folders if folder in made]
        if is_sure and len(there) < len(folders):
            continue  # nothing is there that it could differ from
        now = identity_of(there) if there else ""
        if manifest.parts.get(part, now if is_sure else "") != now:
            called = "" if isinstance(source, str) else source.called
            yield called or f"an earlier {source if isinstance(source, str) else source.name}"
