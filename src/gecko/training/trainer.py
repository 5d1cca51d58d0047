"""Fine-tuning of a start model on rows (Section 3.3 of the paper), by the trainer of sentence-transformers.

Notable here:

- weights and optimizer are float32 (half-precision weights under AdamW collapse); bfloat16 is for the computing only;
- a checkpoint counts only once its file list with checksums, written last, agrees with what is there; the order of the
  rows depends on seed and epoch alone: so a killed run, started again, ends with the weights of one never killed;
- beside the checkpoints lies a fingerprint of start weights, rows, format, seed and settings; others' are not resumed;
- a loss or a weight that is not a number, and embeddings that have become all alike, are errors.
"""

import contextlib
import hashlib
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from transformers import PrinterCallback, TrainerCallback

from gecko.config import TrainConfig
from gecko.device import best_device, has_fast_bfloat16
from gecko.errors import RunError, TrainingError
from gecko.formats import InputFormat
from gecko.progress import quiet_libraries
from gecko.records import Example, Passage, Text
from gecko.store import digest, file_sha256, read_json, write_json
from gecko.training.batches import Sampling, SetBatches
from gecko.training.collate import CALL_TOKENS, CALL_TOKENS_ELSEWHERE, Collator
from gecko.training.loss import GeckoLoss
from gecko.training.rows import to_dataset

VERSION = 2  # part of the fingerprint; raised when the same rows and settings give other weights
FILES = "files.json"
FINGERPRINT = "fingerprint.json"
COLLAPSED = 0.98
SAMPLE = 64
LOGGED = 1000


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
    """

    rows: int
    steps: int
    seconds: float
    losses: list[tuple[int, float]]
    dims: list[int]
    form: InputFormat


def train(
    examples: Sequence[Example],
    start: str,
    folder: Path,
    form: InputFormat,
    config: TrainConfig,
    seed: int,
    *,
    checkpoints: Path,
    say: Callable[[str], None] = lambda _: None,
    sampling: Sampling | None = None,
    passages: Mapping[str, Passage | Text] | None = None,
) -> TrainReport:
    """Train ``start`` on ``examples`` by Eq. 3 of the paper and save the result in ``folder``.

    A call that was killed is continued by the same call: it takes the newest whole checkpoint and, on a CPU, ends with
    the same weights, bit for bit. Checkpoints of other rows, settings or start weights are removed, and ``say`` tells.

    Args:
        examples: the rows; fewer than a batch are one batch, and the last batch of an epoch may be smaller.
        start: a model's folder or its name on the hub.
        folder: where the trained model goes.
        form: the format in which the rows are written.
        config: settings; widths are ``config.dims`` or, if empty, half and a quarter of the full one.
        seed: of the rows' order and of dropout. The caller's own random state is left as it was.
        checkpoints: a folder for this training alone; it may be deleted afterwards.
        say: where a sentence for the user goes.
        sampling: each batch from one set (``Example.dataset``), and how often which; none: rows in random order,
            whatever their set.
        passages: by id, the texts of the rows' candidates; needed if ``config.loss.distill`` is not 0.

    Raises:
        TrainingError: no rows, a row or a width that cannot be used, a start model that cannot be loaded, a loss
            that is not a number, or embeddings that collapsed. Whole checkpoints stay where they are.
    """
    from gecko.encoder import save_model

    began = time.perf_counter()
    with quiet_libraries(), _random_state_kept():
        rows = to_dataset(examples, form, config.loss, passages)
        model = _load(start, config.max_tokens, say)
        dims = _dims(model, config)
        parts = {
            "version": str(VERSION),
            "start weights": _weights_digest(model),
            "rows": _rows_digest(rows),
            "format": form,
            "seed": str(seed),
            "settings": config.model_dump_json(exclude={"formats", "checkpoint_steps"}),
            "widths": str(dims),
            **({"sampling": repr(sampling), "sets": digest(*(row.dataset for row in examples))} if sampling else {}),
        }
        checkpoint = _last_checkpoint(checkpoints, parts, say)
        sample = list(dict.fromkeys(rows["positive"]))[:SAMPLE]
        alike_before = _mean_cosine(model, sample)
        batches = _batches(examples, rows, config, sampling, seed) if sampling else None
        a_pass = len(batches) if batches else -(-len(rows) // config.batch)
        trainer = _Trainer(
            model=model,
            args=_arguments(config, a_pass, seed, checkpoints),
            train_dataset=rows,
            data_collator=_collator(model),
            loss=GeckoLoss(model, config.loss, dims, config.dim_weights),
        )
        trainer.batches = batches
        trainer.remove_callback(PrinterCallback)
        with _Bar() as bar:
            trainer.add_callback(bar)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        model.eval()
        _refuse_collapse(alike_before, _mean_cosine(model, sample), config)
        save_model(model, folder, form, dims)
    return TrainReport(
        rows=len(rows),
        steps=trainer.state.global_step,
        seconds=time.perf_counter() - began,
        losses=[(int(entry["step"]), entry["loss"]) for entry in trainer.state.log_history if "loss" in entry],
        dims=dims,
        form=form,
    )


def _load(start: str, max_tokens: int, say: Callable[[str], None]) -> SentenceTransformer:
    try:
        model = SentenceTransformer(start, trust_remote_code=False, model_kwargs={"use_safetensors": True}).float()
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"the start model {start!r} cannot be loaded ({error}); give a folder with safetensors weights or a name "
            "on the hub"
        ) from error
    positions = _positions(model)
    if positions < max_tokens:
        say(f"train.max_tokens = {max_tokens}, but {start} reads at most {positions}; texts are cut there")
    model.max_seq_length = int(min(max_tokens, positions))
    return model


def _positions(model: SentenceTransformer) -> float:
    """The most tokens the model can read; infinite where nothing bounds them."""
    limits = [float("inf")]
    if model.transformers_model is not None:
        limits.append(getattr(model.transformers_model.config, "max_position_embeddings", None) or float("inf"))
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa and its kin count positions from behind the padding's number
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min(limits)


def _dims(model: SentenceTransformer, config: TrainConfig) -> list[int]:
    full = model.get_embedding_dimension()
    assert full is not None
    below = sorted(set(config.dims or (full // 2, full // 4)), reverse=True) if config.matryoshka else []
    below = [dim for dim in below if config.dims or dim > 0]
    if wrong := [dim for dim in below if not 0 < dim < full]:
        raise TrainingError(f"train.dims = {wrong}: the model has {full} numbers; give widths from 1 to {full - 1}")
    dims = [full, *below]
    if config.dim_weights and len(config.dim_weights) != len(dims):
        raise TrainingError(
            f"train.dim_weights has {len(config.dim_weights)} numbers for the widths {dims}; give one for each"
        )
    return dims


def _batches(
    examples: Sequence[Example], rows: datasets.Dataset, config: TrainConfig, sampling: Sampling, seed: int
) -> SetBatches:
    lengths = [len(query) + len(positive) for query, positive in zip(rows["query"], rows["positive"], strict=True)]
    return SetBatches([example.dataset for example in examples], lengths, config.batch, sampling, seed)


def _arguments(config: TrainConfig, a_pass: int, seed: int, checkpoints: Path) -> SentenceTransformerTrainingArguments:
    steps = config.epochs * a_pass
    return SentenceTransformerTrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_ratio,  # below 1, it is a share of all steps
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=has_fast_bfloat16(best_device()) if config.bf16 is None else config.bf16,
        use_cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        seed=seed,
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        save_total_limit=2,  # while the newest is being written, the one before must stand
        logging_strategy="steps",
        logging_steps=-(-steps // LOGGED),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _collator(model: SentenceTransformer) -> Collator:
    return Collator(model.preprocess, call_tokens=CALL_TOKENS.get(model.device.type, CALL_TOKENS_ELSEWHERE))


class _Trainer(SentenceTransformerTrainer):
    """The stock trainer; its steps and checkpoints are checked."""

    batches: SetBatches | None = None

    def get_batch_sampler(self, dataset: datasets.Dataset, *args: Any, **kwargs: Any) -> Any:
        if self.batches is not None and dataset is self.train_dataset:
            return self.batches
        return super().get_batch_sampler(dataset, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            self._refuse("the loss", loss.item())
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight).all():
                self._refuse(f"the weight {name}", float("nan"))
        super()._save_checkpoint(*args, **kwargs)
        folder = self._folder / f"checkpoint-{self.state.global_step}"
        write_json(folder / FILES, _files(folder))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir) if output_dir else self._folder
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(str(folder), create_model_card=False)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No card is made from here, so nothing is collected for one, least of all over the network."""

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def _refuse(self, what: str, value: float) -> None:
        whole = _whole_checkpoints(self._folder)
        kept = f"the last good checkpoint is {whole[-1]}" if whole else "no checkpoint had been written"
        raise TrainingError(
            f"{what} is {value} after step {self.state.global_step}; {kept}. "
            f"Lower train.learning_rate (it is {self.args.learning_rate}) or raise train.loss.temperature"
        )


class _Bar(TrainerCallback):
    """A progress bar on standard error, where that is a terminal. A context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._task = self._progress.add_task("train", total=state.max_steps, completed=state.global_step, loss="–")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self._task is not None and logs and "loss" in logs:
            self._progress.update(self._task, loss=f"{logs['loss']:.3f}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=state.global_step)


def _last_checkpoint(folder: Path, parts: dict[str, str], say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of this very training; what is not whole, or of another, is removed."""
    file = folder / FINGERPRINT
    try:
        saved = read_json(file) if file.exists() else None
    except RunError:
        saved = None
    there = _checkpoints(folder)
    if saved != parts:
        if there:
            known = saved if isinstance(saved, dict) else {}
            changed = ", ".join(key for key in parts if parts[key] != known.get(key))
            say(f"the checkpoints in {folder} are of another training ({changed} differ); training starts afresh")
            for path in there:
                shutil.rmtree(path)
        write_json(file, parts)
        return None
    whole = _whole_checkpoints(folder)
    for path in there:
        if path not in whole:
            say(f"{path} is not whole; it is removed")
            shutil.rmtree(path)
    if not whole:
        return None
    say(f"training continues after step {_step(whole[-1])}")
    return whole[-1]


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and path.name.split("-")[-1].isdigit()]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[-1])


def _whole_checkpoints(folder: Path) -> list[Path]:
    return [path for path in _checkpoints(folder) if _is_whole(path)]


def _is_whole(checkpoint: Path) -> bool:
    try:
        return bool(read_json(checkpoint / FILES) == _files(checkpoint))
    except RunError:
        return False


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != FILES
    }


def _weights_digest(model: SentenceTransformer) -> str:
    hashed = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()[:16]


def _rows_digest(rows: datasets.Dataset) -> str:
    return digest(*(repr(rows[name][:]) for name in rows.column_names), *rows.column_names)


def _mean_cosine(model: SentenceTransformer, texts: Sequence[str]) -> float:
    """Mean cosine of all pairs of different texts; 0 where there is no pair."""
    if len(texts) < 2:
        return 0.0
    vectors = model.encode(
        list(texts), normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False, prompt=""
    ).double()
    count = len(texts)
    return float((vectors.sum(dim=0).square().sum() - count) / (count * (count - 1)))


def _refuse_collapse(before: float, after: float, config: TrainConfig) -> None:
    """Collapsed: nearly all alike, and at least half of the distance that there was is lost."""
    if not (after <= COLLAPSED or 1 - after > 0.5 * (1 - before)):  # so written, it holds for "not a number", too
        raise TrainingError(
            f"the embeddings collapsed: the mean cosine of two passages went from {before:.3f} to {after:.3f}; "
            f"lower train.learning_rate (it is {config.learning_rate}) or look at the rows. Nothing was saved"
        )


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Undo what the trainer does to the global generators of Python, NumPy and torch: it seeds them all."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
