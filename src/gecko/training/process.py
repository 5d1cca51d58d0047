"""One of the processes of a training on several devices; ``torchrun -m gecko.training.process TASK ANSWER``."""

import os
import pickle
import sys
from pathlib import Path

import torch

from gecko.core.errors import GeckoError
from gecko.core.files import write_bytes
from gecko.training.devices import Job, TrainReport
from gecko.training.trainer import train_here


def main(task: Path, answer: Path) -> None:
    """Train, and if this is the first process, leave the report or the error in ``answer``."""
    job: Job = pickle.loads(task.read_bytes())  # noqa: S301 - written by the process that started this one
    result: TrainReport | GeckoError
    try:
        result = train_here(job, lambda text: print(text, flush=True))
    except GeckoError as error:
        result = error
    if os.environ["RANK"] == "0":
        write_bytes(answer, pickle.dumps(result))
    if isinstance(result, GeckoError):
        sys.exit(1)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
