"""Both stages of the paper: the rows as a dataset, the loss, the trainer."""

from gecko.training.batches import Sampling
from gecko.training.collate import Collator
from gecko.training.devices import TrainReport
from gecko.training.loss import GeckoLoss, RowIds, gecko_loss, matryoshka_loss
from gecko.training.rows import to_dataset
from gecko.training.trainer import train

__all__ = [
    "Collator",
    "GeckoLoss",
    "RowIds",
    "Sampling",
    "TrainReport",
    "gecko_loss",
    "matryoshka_loss",
    "to_dataset",
    "train",
]
