"""What a stage is: a declaration of what it makes, from what, and how.

Everything that has to know the stages is derived from their declarations: the fingerprint of each, the order of the work
(:mod:`gecko.stages.graph`), what is out of date, what the report lists, and what a message says to run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from gecko.config.run import RunConfig
from gecko.core.files import digest
from gecko.run.folder import Run
from gecko.run.manifest import Manifest, schema_digest

if TYPE_CHECKING:
    from gecko.stages.context import Context

Setting = Callable[[RunConfig], str]


def value(key: str) -> Setting:
    """The text of one setting, by its dotted name."""
    return lambda config: str(attrgetter(key)(config))


def section(name: str, only: set[str] | None = None, without: set[str] | None = None) -> Setting:
    """The JSON of a section, or of the keys ``only``, or of all keys ``without`` these."""
    return lambda config: str(getattr(config, name).model_dump_json(include=only, exclude=without))


def identity_of(manifests: Sequence[Manifest]) -> str:
    """Hash of what is in the folders of a stage: of one of them its own."""
    found = [manifest.identity for manifest in manifests]
    return digest(*found) if len(found) > 1 else found[0]


def always(_: RunConfig) -> bool:
    """Every run has the stage."""
    return True


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage of a run.

    Attributes:
        name: its name, and that of its folder where it has one.
        version: raised by hand when the stage gives other results for the same input; not for what is of the size of a
            rounding, as between two processors: queries and scores are paid for.
        make: makes it, or finds it made.
        record: the kind of record it makes; none: a file or a folder.
        reads: the stages it is made from, by the name of the part of its fingerprint.
        reads_each: a stage of several folders, each of which is a part, named by what follows the stage's name.
        settings: the settings that its result depends on, by the name of the part.
        depends: what else its result depends on.
        grows: the parts that only change how much is made: what was paid for under others is used again. ``settings.x`` is
            one key of a part.
        made: by its own command alone, on the way to any later stage, or on demand of a stage that needs it.
        after: stages that come before it though it reads nothing of them.
        command: the command that makes it; empty: that of its name.
        applies: whether a run with these settings has it.
        folders: the names of its folders, where there may be several.
        asks: whether the teacher's time is spent on it.
        called: what a message calls what it has made; empty: an earlier one of its name.
    """

    name: str
    version: int
    make: "Callable[[Context], Any]"
    record: type | None = None
    reads: "Mapping[str, Stage]" = field(default_factory=dict)
    reads_each: "Stage | None" = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    depends: "Callable[[Context], Mapping[str, str]]" = lambda _: {}
    grows: frozenset[str] = frozenset()
    made: Literal["by its command", "on the way", "on demand"] = "on demand"
    after: "tuple[Stage, ...]" = ()
    command: str = ""
    applies: Callable[[RunConfig], bool] = always
    folders: Callable[[RunConfig], list[str]] | None = None
    asks: bool = False
    called: str = ""

    def folders_of(self, config: RunConfig) -> list[str]:
        """The names of the stage's folders in a run with these settings, in order; none where the run does not have it."""
        if not self.applies(config):
            return []
        return self.folders(config) if self.folders else [self.name]

    def each(self, config: RunConfig) -> dict[str, str]:
        """The stage's folders by what follows its name: ``train-native`` by ``native``."""
        return {folder.removeprefix(f"{self.name}-"): folder for folder in self.folders_of(config)}

    def identity(self, run: Run) -> str:
        """Hash of what the stage has made in a run: of all its folders, if there are several.

        Raises:
            RunError: it is not finished.
        """
        return identity_of([run.finished(folder) for folder in self.folders_of(run.config)])

    def sources(self, config: RunConfig) -> "dict[str, Stage | str]":
        """Of a run with these settings, what the stage is made from by the name of the part: a stage, or a folder."""
        found: dict[str, Stage | str] = {part: stage for part, stage in self.reads.items() if stage.folders_of(config)}
        return found | (self.reads_each.each(config) if self.reads_each else {})

    def parts(self, context: "Context") -> dict[str, str]:
        """What every folder of the stage depends on, by name: hashed into its fingerprint, with what is the folder's own.

        Raises:
            RunError: a stage that it reads is not finished.
        """
        run, config = context.run, context.config
        found = dict(self.depends(context))  # first: a prompt or a model that cannot be had is the better error
        found |= {
            part: run.finished(source).identity if isinstance(source, str) else source.identity(run)
            for part, source in self.sources(config).items()
        }
        found |= {part: text(config) for part, text in self.settings.items()}
        if self.record is not None:
            found["schema"] = schema_digest(self.record)
        return found | {"version": str(self.version)}
