"""What happens beside the steps of a training: when to stop, what the batches are told, what is shown and logged."""

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from gecko.config.training import TrainConfig
from gecko.core.errors import TrainingError
from gecko.core.progress import Advance, progress_bar
from gecko.training.batches import SetBatches


class Patience(EarlyStoppingCallback):
    """Stops when the held-out loss has not fallen for so many measurements; that a resumed training has ended, too."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Also ends a training that had ended."""
        super().on_train_begin(args, state, control, **kwargs)  # type: ignore[no-untyped-call]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class Epochs(TrainerCallback):
    """Tells the batches their epoch, which is not passed on to them where several processes continue a training."""

    def __init__(self, batches: SetBatches) -> None:
        self.batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tells the batches which epoch begins."""
        self.batches.set_epoch(int(state.epoch + 1e-6))


class Bar(TrainerCallback, AbstractContextManager["Bar"]):
    """Shows how far a training is and its loss, on standard error. A context manager."""

    def __init__(self, *, shown: bool = True) -> None:
        self._open, self._shown = ExitStack(), shown
        self._advance: Advance | None = None

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins the bar, where the training continues."""
        if self._shown:
            left = state.max_steps - state.global_step
            self._advance = self._open.enter_context(progress_bar("training", left, "steps"))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Shows the loss."""
        if self._advance is not None and logs and "loss" in logs:
            self._advance(0, f"loss {logs['loss']:.3f}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        if self._advance is not None:
            self._advance(1)


def tensorboard(folder: Path, config: TrainConfig) -> TrainerCallback:
    """Logs for tensorboard, in a folder. Raises TrainingError: its package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            f"{config.SECTION}.tensorboard needs the package tensorboard ({error}); install it with: pip install tensorboard"
        ) from error
    return TensorBoardCallback(SummaryWriter(log_dir=str(folder)))  # type: ignore[no-untyped-call]
