"""Both stages of the paper: the rows as a dataset, the loss, the trainer.

The names are imported on first use: whoever only asks how long a training will be waits for no library that trains.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gecko.training.batches import Sampling as Sampling
    from gecko.training.collate import Collator as Collator
    from gecko.training.devices import TrainReport as TrainReport
    from gecko.training.loss import GeckoLoss as GeckoLoss
    from gecko.training.loss import RowIds as RowIds
    from gecko.training.loss import gecko_loss as gecko_loss
    from gecko.training.loss import matryoshka_loss as matryoshka_loss
    from gecko.training.rows import to_dataset as to_dataset
    from gecko.training.trainer import train as train

_HOMES = {
    "Collator": "collate",
    "GeckoLoss": "loss",
    "RowIds": "loss",
    "Sampling": "batches",
    "TrainReport": "devices",
    "gecko_loss": "loss",
    "matryoshka_loss": "loss",
    "to_dataset": "rows",
    "train": "trainer",
}

__all__ = [*_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gecko.training' has no attribute {name!r}")
    return getattr(import_module(f"gecko.training.{_HOMES[name]}"), name)
