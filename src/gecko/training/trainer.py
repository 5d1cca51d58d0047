"""Fine-tuning of a start model on rows (Section 3.3 of the paper), by the trainer of sentence-transformers.

Notable here:

- weights and optimizer are float32 (half-precision weights under AdamW collapse); bfloat16 is for the computing only;
- the order of the rows depends on seed and epoch alone: so a killed run, started again, ends with the weights of one
  never killed (:mod:`gecko.training.checkpoints`);
- a loss or a weight that is not a number, and embeddings that have become all alike, are errors.
"""

import contextlib
import copy
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from torch.utils.data import BatchSampler
from transformers import PrinterCallback

from gecko.compute.device import device_memory
from gecko.config.training import TRAINING_VERSION, WITHOUT_EFFECT, TrainConfig
from gecko.core.errors import TrainingError
from gecko.core.files import digest
from gecko.core.formats import InputFormat
from gecko.core.progress import quiet_libraries
from gecko.core.records import Example, Passage, Text
from gecko.encoder import save_model
from gecko.encoder.build import add_lora, load_backbone, merge_lora, trained_weights
from gecko.encoder.encode import encode_texts
from gecko.encoder.save import detect_form, most_positions
from gecko.encoder.towers import SIDES, has_two_towers, name_passages, two_towers
from gecko.training.batches import Sampling, SetBatches
from gecko.training.callbacks import Bar, Epochs, Patience, tensorboard
from gecko.training.checkpoints import (
    last_checkpoint,
    mark_whole,
    rows_digest,
    weights_digest,
    whole_checkpoints,
)
from gecko.training.collate import CALL_TOKENS, CALL_TOKENS_ELSEWHERE, Collator, FrozenPassages, freeze_passages
from gecko.training.devices import Job, TrainReport, on_devices
from gecko.training.heldout import hold_out
from gecko.training.loss import ABSENT, GeckoLoss, RowIds
from gecko.training.rows import to_dataset
from gecko.training.schedule import arguments, enough_steps

LORA = "lora.safetensors"
COLLAPSED = 0.98
KEPT = 200  # bytes a token takes in a layer until its gradient is there, by width: of MiniLM, in texts of 256 tokens
LEAST_PART = 2048
SAMPLE = 64


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
    the same weights, bit for bit. Checkpoints of other rows, settings or start weights are kept and not taken; ``say``
    tells.

    Args:
        examples: the rows; fewer than a batch are one batch, and the last batch of an epoch may be smaller.
        start: a model's folder or its name on the hub.
        folder: where the trained model goes.
        form: the format in which the rows are written.
        config: settings; widths are ``config.dims`` or, if empty, half and a quarter of the full one.
        seed: of the rows' order and of dropout. The caller's own random state is left as it was.
        checkpoints: a folder for trainings in the place of each other; it may be deleted afterwards.
        say: where a sentence for the user goes.
        sampling: each batch from one set (``Example.dataset``), and how often which; none: rows in random order,
            whatever their set.
        passages: by id, the texts of the rows' candidates; needed if ``config.loss.distill`` is not 0.

    Raises:
        TrainingError: no rows, a row or a width that cannot be used, a start model that cannot be loaded, a loss
            that is not a number, or embeddings that collapsed. Whole checkpoints stay where they are.
    """
    config = enough_steps(config, len(examples))
    job = Job(list(examples), start, folder, form, config, seed, checkpoints, sampling, passages)
    if config.devices == 1 or "RANK" in os.environ:
        return train_here(job, say)
    used = {key for example in examples for key in example.candidates} if config.loss.distill else set()
    texts = {key: passages[key] for key in used if key in passages} if passages else None
    return on_devices(replace(job, passages=texts), say)


def train_here(job: Job, say: Callable[[str], None]) -> TrainReport:
    """Train in this process alone, or as one of those that share each batch. Raises TrainingError: as :func:`train`."""
    config = job.config
    first = int(os.environ.get("RANK", "0")) == 0
    say = say if first else lambda _: None
    began = time.perf_counter()
    with quiet_libraries(), _random_state_kept():
        model = _load(job.start, config, job.seed, say)
        _refuse_other_form(model, job)
        rows = to_dataset(job.examples, job.form, config.loss, job.passages, model.prompts)
        dims = widths(model, config)
        if config.accumulate > 1:
            say(
                f"{config.accumulate} batches a step; that adds no negatives: a row sees those of its {config.batch} rows"
            )
        parts = _identity(job, model, rows, dims)
        kept, held = _parts(job.examples, config, job.seed)
        trained = rows.select(kept) if held else rows
        batches = _batches([job.examples[place] for place in kept], trained, config, job.sampling, job.seed)
        own = job.checkpoints / digest(*parts, *parts.values())
        args = arguments(config, len(batches) // batches.processes, job.seed, own)
        checkpoint = last_checkpoint(own, parts, args.bf16, say) if first else None
        args.distributed_state.wait_for_everyone()
        if not first:
            checkpoint = next(reversed(whole_checkpoints(own)), None)
        sample = list(dict.fromkeys(rows["positive" if config.freeze is None else "query"]))[:SAMPLE]
        alike_before = _mean_cosine(model, sample)
        start = copy.deepcopy(model) if config.freeze else None
        frozen = freeze_passages(start, job.examples, rows) if start is not None else None
        lora = add_lora(model, config.backbone, job.seed) if config.backbone.lora_rank else None
        part_tokens = _part_tokens(model, config)
        trainer = _Trainer(
            model=model,
            args=args,
            train_dataset=trained,
            eval_dataset=rows.select(held) if held else None,
            data_collator=_collator(model, part_tokens, frozen),
            loss=GeckoLoss(model, config.loss, dims, config.dim_weights, part_tokens=part_tokens),
        )
        trainer.prepare(batches, config, [example.dataset for example in job.examples], sample, alike_before)
        trainer.call_back(job.checkpoints.parent / "tensorboard", first=first)
        with Bar(shown=first) as bar:
            trainer.add_callback(bar)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.refuse_collapse()
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # from here on without autocast
        model.eval()
        if lora is not None:
            merge_lora(lora)
        if first:
            made = model if start is None else two_towers(model, start)
            save_model(made, job.folder, job.form, dims)
            if start is not None:
                name_passages(job.folder, job.start if Path(job.start).is_dir() else f"hf:{job.start}")
            _refuse_changed(made, job.folder, sample)
        args.distributed_state.wait_for_everyone()
    return _report(trainer, len(trained), time.perf_counter() - began, dims, job.form, say)


def _report(
    trainer: "_Trainer", rows: int, seconds: float, dims: list[int], form: InputFormat, say: Callable[[str], None]
) -> TrainReport:
    log = trainer.state.log_history
    measured = [(int(entry["step"]), entry["eval_loss"]) for entry in log if "eval_loss" in entry]
    if measured:
        step, best = min(measured, key=lambda entry: (entry[1], entry[0]))
        say(f"kept the model after step {step} of {trainer.state.global_step}: held-out loss {best:.4f}")
    return TrainReport(
        rows=rows,
        steps=trainer.state.global_step,
        seconds=seconds,
        losses=[(int(entry["step"]), entry["loss"]) for entry in log if "loss" in entry],
        dims=dims,
        form=form,
        heldout=measured,
    )


def _identity(job: Job, model: SentenceTransformer, rows: datasets.Dataset, dims: list[int]) -> dict[str, str]:
    """What makes a training this one and no other, by its name."""
    parts = {
        "version": str(TRAINING_VERSION),
        "start weights": weights_digest(model),
        "rows": rows_digest(rows),
        "format": job.form,
        "seed": str(job.seed),
        "settings": job.config.model_dump_json(exclude=WITHOUT_EFFECT),
        "widths": str(dims),
    }
    if job.sampling:
        parts |= {"sampling": repr(job.sampling), "sets": digest(*(row.dataset for row in job.examples))}
    return parts


def _parts(examples: Sequence[Example], config: TrainConfig, seed: int) -> tuple[list[int], list[int]]:
    """Places of the rows to train on, and of those that only tell when to stop."""
    if config.patience is None:
        return list(range(len(examples))), []
    if config.devices > 1:
        raise TrainingError(
            f"{config.SECTION}.patience = {config.patience} and {config.SECTION}.devices = {config.devices}: held-out rows "
            "are measured on one device only; unset one of the two"
        )
    return hold_out(examples, config.heldout, seed, config.SECTION)


def _load(start: str, config: TrainConfig, seed: int, say: Callable[[str], None]) -> SentenceTransformer:
    try:
        model = load_backbone(start, config.backbone, seed)
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"the start model {start!r} cannot be loaded ({error}); give a folder with safetensors weights or a name "
            "on the hub"
        ) from error
    if has_two_towers(model):
        raise TrainingError(f"the start model {start!r} has two towers; train the model that those were made from")
    max_tokens = config.max_tokens
    positions = most_positions(model)
    if positions is not None and positions < max_tokens:
        say(f"{config.SECTION}.max_tokens = {max_tokens}, but {start} reads at most {positions}; texts are cut there")
        max_tokens = positions
    model.max_seq_length = max_tokens
    return model


def _refuse_other_form(model: SentenceTransformer, job: Job) -> None:
    if job.config.freeze and job.form != (own := detect_form(model.prompts)):
        raise TrainingError(
            f"{job.config.SECTION}.freeze: the passage vectors of {job.start} are of the {own} format, and the rows of the "
            f"{job.form}; set {job.config.SECTION}.formats=['{own}']"
        )


def widths(model: SentenceTransformer, config: TrainConfig) -> list[int]:
    """The widths at which a model is trained, the full one first. Raises TrainingError: one is out of range."""
    full = model.get_embedding_dimension()
    assert full is not None
    below = sorted(set(config.dims or (full // 2, full // 4)), reverse=True) if config.matryoshka else []
    below = [dim for dim in below if config.dims or dim > 0]
    if wrong := [dim for dim in below if not 0 < dim < full]:
        raise TrainingError(
            f"{config.SECTION}.dims = {wrong}: the model has {full} numbers; give widths from 1 to {full - 1}"
        )
    dims = [full, *below]
    if config.dim_weights and len(config.dim_weights) != len(dims):
        raise TrainingError(
            f"{config.SECTION}.dim_weights has {len(config.dim_weights)} numbers for the widths {dims}; give one for each"
        )
    return dims


def _batches(
    examples: Sequence[Example],
    rows: datasets.Dataset,
    config: TrainConfig,
    sampling: Sampling | None,
    seed: int,
) -> SetBatches:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if config.batch % processes:
        raise TrainingError(
            f"{config.SECTION}.batch = {config.batch} cannot be shared by {processes} devices; take a multiple"
        )
    sets = [example.dataset for example in examples] if sampling else ["rows"] * len(rows)
    lengths = [len(query) + len(positive) for query, positive in zip(rows["query"], rows["positive"], strict=True)]
    return SetBatches(sets, lengths, config.batch // processes, sampling or Sampling(), seed, processes)


def _part_tokens(model: SentenceTransformer, config: TrainConfig) -> int | None:
    """Tokens that are encoded at once: as set, else as many as a third of the memory holds; none: all.

    All where nobody knows how much the model keeps of a token, and where several processes share the memory.
    """
    if config.part_tokens is not None or config.devices > 1 or config.freeze or model.transformers_model is None:
        return config.part_tokens
    shape = model.transformers_model.config
    layers, width = getattr(shape, "num_hidden_layers", None), getattr(shape, "hidden_size", None)
    if not (isinstance(layers, int) and isinstance(width, int)):
        return None
    return max(LEAST_PART, int(device_memory(model.device.type) / 3 / (KEPT * layers * width)))


def _collator(model: SentenceTransformer, part_tokens: int | None, frozen: FrozenPassages | None) -> Collator:
    call_tokens = CALL_TOKENS.get(model.device.type, CALL_TOKENS_ELSEWHERE)
    return Collator(model.preprocess, call_tokens=call_tokens, part_tokens=part_tokens, frozen=frozen)


class _Trainer(SentenceTransformerTrainer):
    """The stock trainer; its steps and checkpoints are checked."""

    def prepare(
        self, batches: SetBatches, config: TrainConfig, sets: Sequence[str], sample: Sequence[str], alike: float
    ) -> None:
        """Tell it what it checks: ``sets`` by row, and the mean cosine of ``sample`` before the training."""
        self.batches = batches
        self.config = config
        self.sets = sets
        self.sample = sample
        self.alike = alike

    def call_back(self, logs: Path, *, first: bool) -> None:
        """Set what is called between steps, but the bar; ``logs`` is where tensorboard's go."""
        self.remove_callback(PrinterCallback)
        self.add_callback(Epochs(self.batches))
        if self.config.patience is not None:
            self.add_callback(Patience(self.config.patience))
        if self.config.tensorboard and first:
            self.add_callback(tensorboard(logs, self.config))

    def get_batch_sampler(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        held: Any = self.eval_dataset
        if (
            held is not None and dataset is held
        ):  # always the same batches, so that one measurement compares with the next
            return BatchSampler(range(len(held)), self.config.batch, drop_last=False)
        return _Shares(self.batches) if self.batches.processes > 1 else self.batches

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.batches.processes == 1:
            self._refuse_no_negatives(RowIds.from_labels(inputs["label"]))
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            self._refuse(f"the loss is {loss.item()}")
        return loss

    def _refuse_no_negatives(self, ids: RowIds) -> None:
        """Of whole batches and whole sets: the few rows that an epoch ends with may have none."""
        count, name = len(ids.row), self.sets[int(ids.row[0])]
        if count not in (self.config.batch, len(self.batches.rows.get(name, self.sets))):
            return
        if not bool(ids.related(slice(1)).all()) or not (bool(ids.related().all()) and self.config.loss.mask_groups):
            return  # the first row alone is quick to look at
        own = (ids.negatives != ABSENT) & (ids.negatives != ids.positive[:, None])
        if not bool(own.any()):
            rows = ", ".join(map(str, ids.row[:5].tolist())) + (f" and {count - 5} more" if count > 5 else "")
            mend = "add rows of other groups to the set"
            if count < len(self.batches.rows.get(name, self.sets)):
                mend = f"raise {self.config.SECTION}.batch, which is {self.config.batch}, so that a batch has several groups"
            if self.config.loss.hard_negatives != "none":
                mend += ", or give the rows hard negatives"
            raise TrainingError(
                f"set {name!r}, rows {rows}: all of this batch are of one group (they share a query, a text or a class), so "
                f"no negative is left; {mend}"
            )

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight).all():
                self._refuse(f"the weight {name} is nan")
        self.refuse_collapse()
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()  # each process has written its random state
        if self.args.should_save:
            mark_whole(self._folder / f"checkpoint-{self.state.global_step}")

    def refuse_collapse(self) -> None:
        """Stop if the embeddings are nearly all alike, and at least half of the distance that there was is lost.

        Those of a raw language model are nearly all alike before the training; there only "not a number" stops it.
        """
        alike = _mean_cosine(self.model, self.sample)
        if self.alike > COLLAPSED and np.isfinite(alike):
            return
        if not (alike <= COLLAPSED or 1 - alike > 0.5 * (1 - self.alike)):  # so written, it holds for "not a number"
            self._refuse(
                "the embeddings collapsed: the mean cosine of two passages, "
                f"{self.alike:.3f} before the training, is {alike:.3f}"
            )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir) if output_dir else self._folder
        folder.mkdir(parents=True, exist_ok=True)
        if self.config.backbone.lora_rank:
            save_file(
                {name: weight.contiguous() for name, weight in trained_weights(self.model).items()}, folder / LORA
            )
        else:
            self.model.save_pretrained(str(folder), create_model_card=False)

    def _load_from_checkpoint(self, checkpoint_path: str, *args: Any) -> None:
        if self.config.backbone.lora_rank:
            self.model.load_state_dict(load_file(Path(checkpoint_path) / LORA), strict=False)
        else:
            super()._load_from_checkpoint(checkpoint_path)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))  # the stock one only logs that it failed

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No card is made from here, so nothing is collected for one, least of all over the network."""

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def _refuse(self, what: str) -> None:
        whole = whole_checkpoints(self._folder)
        kept = f"the last good checkpoint is {whole[-1]}" if whole else "no checkpoint had been written"
        raise TrainingError(
            f"{what} after step {self.state.global_step}; {kept}. "
            f"Lower {self.config.SECTION}.learning_rate (it is {self.args.learning_rate}) or raise "
            f"{self.config.loss.SECTION}.temperature, or look at the rows"
        )


class _Shares:
    """The batches of all processes in turn, without a size: accelerate withholds what is not full."""

    batch_size = None
    drop_last = False

    def __init__(self, batches: SetBatches) -> None:
        self.batches = batches

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _mean_cosine(model: SentenceTransformer, texts: Sequence[str]) -> float:
    """Mean cosine of all pairs of different texts; 0 where there is no pair."""
    if len(texts) < 2:
        return 0.0
    vectors = model.encode(
        list(texts), normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False, prompt=""
    )
    vectors = vectors.cpu().double()  # a Mac's GPU has no such numbers
    count = len(texts)
    return float((vectors.sum(dim=0).square().sum() - count) / (count * (count - 1)))


def _refuse_changed(model: SentenceTransformer, folder: Path, sample: Sequence[str]) -> None:
    """Load what was saved as anyone else would, and compare; a model that changed is not left behind."""
    plain = SentenceTransformer(str(folder), device=str(model.device), trust_remote_code=False)
    width = model.get_embedding_dimension()
    assert width is not None
    before, after = (
        np.stack([encode_texts(one, sample[:2], width, side=side) for side in SIDES]) for one in (model, plain)
    )
    if not np.allclose(before, after, rtol=0, atol=1e-4):
        shutil.rmtree(folder)
        raise TrainingError(
            f"loaded again by sentence-transformers, the model gives other vectors (they differ by up to "
            f"{np.abs(before - after).max():.2g}); this architecture cannot be saved as it was trained. The checkpoints "
            "are kept; take another backbone"
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
