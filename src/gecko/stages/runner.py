"""The pipeline: the stages of one run, made in their order.

::

    ingest ─▶ embed ─▶ check ─▶ plan ─▶ generate ─▶ mine ─▶ relabel ─▶ select ─▶ train ─▶ evaluate ─▶ report
                        (queries of people) asked ─┘

A stage takes records and gives records; the run folder decides whether it has to run at all. Models are loaded when a stage
first needs them, so a run whose shards are all there loads none.
"""

from functools import partial
from pathlib import Path
from typing import Any

from gecko.core.files import write_json
from gecko.core.progress import Ui
from gecko.evaluation.builtin import STDLIB_QUESTIONS
from gecko.evaluation.sets import load_set
from gecko.report import closing, write_report
from gecko.run.engine import LOCAL, Executor
from gecko.run.folder import Run
from gecko.run.manifest import Manifest
from gecko.stages import graph, user_queries
from gecko.stages.context import Context
from gecko.stages.estimate import estimate
from gecko.stages.mixture import refuse_names
from gecko.stages.publish import write_cards


class Pipeline(Context):
    """All stages of one run; the arguments are those of :class:`gecko.stages.context.Context`."""

    def __init__(
        self, run: Run, ui: Ui | None = None, *, force: bool = False, asks: bool = True, engine: Executor = LOCAL
    ) -> None:
        super().__init__(run, ui, force=force, asks=asks, engine=engine)
        run.command_of = partial(graph.command, run.config)

    def make(self, name: str) -> Any:
        """Make one stage, or find it made; the stages that it reads must be finished.

        After ``evaluate``, ``RUN/summary.json`` says what the run showed.

        Args:
            name: of the stage.

        Returns:
            what the stage's ``make`` does: the manifest of one that makes records.

        Raises:
            GeckoError: see the stages.
        """
        stage = graph.STAGES[name]
        self.command = stage.command or stage.name
        made = stage.make(self)
        if name == "evaluate":
            write_json(self.run.path / closing.FILE, closing.run_summary(self.run, made))
        return made

    def through(self, name: str) -> Any:
        """Everything from the teacher check to the stage of this name; what is there and still valid is used as it is.

        A stage never works on what an earlier one made with other settings.

        Returns:
            what :meth:`make` gives for the stage of this name.
        """
        found = None
        for stage in graph.upto(name):
            found = self.make(stage.name)
        return found

    def ingest(self) -> Manifest:
        """Read the corpus."""
        manifest: Manifest = self.make("ingest")
        return manifest

    def train(self) -> Path:
        """Train the start model in each input format that is asked for, and keep one; the folder of the model."""
        folder: Path = self.make("choose")
        return folder

    def evaluate(self) -> dict[str, Any]:
        """Hold the start model, the trained ones and BM25 against the test sets."""
        result: dict[str, Any] = self.make("evaluate")
        return result

    def estimate(self) -> str:
        """What the run would cost, stage by stage, in words; embeds the corpus and measures teacher and start model."""
        return estimate(self)

    def report(self, figures: Path | None = None) -> Path:
        """Write ``RUN/report.html``, and the cards of the model and the rows; the plots, too, where a folder is named."""
        path = self.run.path / "report.html"
        write_report(self, graph.history(self.run), path, figures)
        write_cards(self)
        return path


def distill(run: Run, ui: Ui | None = None, *, force: bool = False, engine: Executor = LOCAL) -> dict[str, Any]:
    """All stages in order: from the corpus to the model, its numbers and the report.

    Args:
        run: the run folder, held.
        ui: where sentences and progress go.
        force: go on with a teacher that the check refuses.
        engine: see :class:`Pipeline`.

    Returns:
        what ``evaluate`` measured.

    Raises:
        GeckoError: see the stages.
    """
    refuse_names(run)
    pipeline = Pipeline(run, ui, force=force, engine=engine)
    for spec in run.config.evaluate.sets:
        if spec != STDLIB_QUESTIONS:
            load_set(spec)  # a mistake in it should show now, not after the teacher was paid
    user_queries.make(pipeline, again=True)
    pipeline.ingest()
    result: dict[str, Any] = pipeline.through("evaluate")
    pipeline.report()
    return result
