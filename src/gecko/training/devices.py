"""Training on several devices: a process each, started by torchrun, that share every batch.

The rows of all processes are each other's negatives, so that n devices do what one would do with the same batch.
"""

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gecko.config.training import TrainConfig
from gecko.core.errors import GeckoError, TrainingError
from gecko.core.formats import InputFormat
from gecko.core.records import Example, Passage, Text
from gecko.training.batches import Sampling


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training did.

    Attributes:
        rows: training rows.
        steps: optimizer steps, over all sessions.
        seconds: of this call, loading and saving included.
        losses: (step, mean loss since the entry before), in order.
        dims: trained widths, the full one first.
        form: the input format of the rows, and so of the model.
        heldout: (step, loss of the held-out rows), in order; empty unless some were held out.
    """

    rows: int
    steps: int
    seconds: float
    losses: list[tuple[int, float]]
    dims: list[int]
    form: InputFormat
    heldout: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Job:
    """The arguments of :func:`gecko.training.train`, to be handed to other processes."""

    examples: list[Example]
    start: str
    folder: Path
    form: InputFormat
    config: TrainConfig
    seed: int
    checkpoints: Path
    sampling: Sampling | None
    passages: Mapping[str, Passage | Text] | None


def on_devices(job: Job, say: Callable[[str], None]) -> TrainReport:
    """Run a job in ``job.config.devices`` processes of this machine.

    Raises GeckoError: what the first process raised. TrainingError: the processes ended without a word.
    """
    with tempfile.TemporaryDirectory(prefix="gecko-") as scratch:
        task, answer = Path(scratch) / "task", Path(scratch) / "answer"
        task.write_bytes(pickle.dumps(job))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={job.config.devices}", "-m", "gecko.training.process", str(task), str(answer)]
        say(f"training in {job.config.devices} processes that share each batch of {job.config.batch} rows")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                say(line.rstrip())
        if not answer.exists():
            raise TrainingError(
                f"the {job.config.devices} training processes ended with status {process.returncode}; what they wrote "
                "on standard error says why. Whole checkpoints are kept: the same command continues"
            )
        result = pickle.loads(answer.read_bytes())  # noqa: S301 - written by our own process, in a folder of our own
    if isinstance(result, GeckoError):
        raise result
    assert isinstance(result, TrainReport)
    return result
