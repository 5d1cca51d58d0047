"""How many steps a training takes, at what rate and precision, and when it is saved and measured."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gecko.compute.device import best_device, has_fast_bfloat16
from gecko.config.training import TrainConfig

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformerTrainingArguments

LOGGED = 1000  # losses in a log, about

SMALL_BATCH = 16  # rows of a batch where there are too few for config.min_steps
MOST_EPOCHS = 10  # for its sake: 39 and 46 rows gain by ten passes
# Fewer are not gone through more often for its sake: 17 rows lost 1.1 points of nDCG@10 by ten passes, 6 lost 2.6 by thirty.
TOO_FEW = 20


def enough_steps(config: TrainConfig, rows: int) -> TrainConfig:
    """The settings with which ``rows`` make ``config.min_steps`` batches, or as many as :data:`MOST_EPOCHS` give.

    They are as they were where the rows make so many anyway, and where they are fewer than :data:`TOO_FEW`.
    """
    if rows < TOO_FEW or config.epochs * -(-rows // config.batch) >= config.min_steps:
        return config
    batch = min(config.batch, -(-SMALL_BATCH // config.devices) * config.devices)  # each device has as many
    wanted = -(-config.min_steps // -(-rows // batch))
    epochs = max(config.epochs, min(wanted, MOST_EPOCHS))
    return config.model_copy(update={"batch": batch, "epochs": epochs})


def arguments(config: TrainConfig, a_pass: int, seed: int, checkpoints: Path) -> "SentenceTransformerTrainingArguments":
    """The settings as the trainer of sentence-transformers knows them; ``seed`` is that of dropout.

    ``a_pass`` is how many batches an epoch has, of all processes together one each.
    """
    import torch
    from sentence_transformers import SentenceTransformerTrainingArguments

    from gecko.training.checkpoints import began_in_bfloat16

    begun = began_in_bfloat16(checkpoints) if config.bf16 is None else config.bf16
    steps = config.epochs * -(-a_pass // config.accumulate)
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    args = SentenceTransformerTrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch,  # what makes the batches is given to the trainer ready-made
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        # Below 1, it is a share of all steps, rounded up; one step alone would be taken at a rate of 0.
        warmup_steps=config.warmup_ratio if steps > 1 else 0,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=has_fast_bfloat16(best_device()) if begun is None else begun,  # as it is set, as this began, or as is fast
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "RANK" in os.environ else None,
        seed=seed,
        save_strategy="steps",
        save_steps=config.checkpoint_steps if config.patience is None else config.measure_steps,
        eval_strategy="no" if config.patience is None else "steps",
        eval_steps=config.measure_steps,
        per_device_eval_batch_size=config.batch,
        prediction_loss_only=True,
        load_best_model_at_end=config.patience is not None,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=config.patience is not None,
        save_total_limit=2,  # while the newest is being written, the one before must stand
        logging_strategy="steps",
        logging_steps=-(-steps // LOGGED),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    args._n_gpu = min(args.n_gpu, 1)  # several in one process would be DataParallel's; train.devices is for them
    return args
