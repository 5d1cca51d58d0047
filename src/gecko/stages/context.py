"""What a stage works with: the run as it is read, its models, who does the work, and where sentences go."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from gecko.core.errors import RunError, TeacherRefused
from gecko.core.progress import Silent, Ui
from gecko.fret.view import RunView
from gecko.run.engine import LOCAL, Executor
from gecko.run.folder import Run
from gecko.stages.models import Models

T = TypeVar("T")


class Context(RunView):
    """All that the stages of one run share.

    Args:
        run: the run folder, held.
        ui: where sentences and progress go.
        force: go on with a teacher that the check refuses.
        asks: whether a teacher may be loaded; what would ask one is an error otherwise.
        engine: embeds the corpus, generates, mines and relabels.
    """

    def __init__(
        self, run: Run, ui: Ui | None = None, *, force: bool = False, asks: bool = True, engine: Executor = LOCAL
    ) -> None:
        super().__init__(run)
        self.ui: Ui = ui or Silent()
        self.engine = engine
        self.models = Models(run.config, self.ui, engine, self._may_ask)
        # Whoever changes settings has not yet seen what the teacher check says of them.
        self.override_check = force and not run.changed
        self.command = ""  # of the stage that is being made
        self._asks = asks
        self._kept: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What is dear to load and the same for the whole call: made when it is first asked for by this name."""
        if name not in self._kept:
            self._kept[name] = make()
        return cast(T, self._kept[name])

    def teacher_parts(self, *roles: str) -> dict[str, str]:
        """What a result of the teacher depends on: its weights and the prompts of these roles."""
        prompts = {f"prompt {role}": self.prompts[role].hash for role in roles}
        return {"teacher": self.models.teacher_identity} | prompts

    @property
    def precision_parts(self) -> dict[str, str]:
        """What a choice of ``relabel.precision`` adds to what a score depends on; nothing where it is left to the machine."""
        precision = self.config.relabel.precision
        return {} if precision == "auto" else {"precision": precision}

    def refusing(self, check: Callable[[], None]) -> None:
        """Run a check of the teacher; what it refuses is a warning with ``force``."""
        try:
            check()
        except TeacherRefused as refusal:
            if not self.override_check:
                raise
            self.ui.say(f"warning, going on because of --accept-teacher: {refusal}")

    def _may_ask(self) -> None:
        if not self._asks:
            raise RunError(
                f"{self.run.path}: the stage {self.command} has to ask the teacher (its settings changed, or it is not "
                f"finished); run: gecko {self.command} {self.run.path}"
            )
