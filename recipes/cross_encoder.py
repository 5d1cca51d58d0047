"""Train a cross-encoder on the judgements of a run, with sentence-transformers alone.

    gecko export-rows RUN -o rows --for cross-encoder
    python recipes/cross_encoder.py rows OUT --start hf:NAME
    gecko eval RUN/model SET --baseline minilm --rerank OUT --top 20

ROWS is the folder of ``export-rows``: query, passage and the teacher's probability that the passage is relevant, for every
judged pair. The loss is binary cross-entropy against that probability, so the model learns the teacher's scale and not only
its order. Of the held-out queries the loss is measured after each epoch, and the best epoch is kept.

The start is a cross-encoder, or any encoder: then its head begins at random, and it needs more rows.
"""

import argparse
import tempfile
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Read the options, train, save."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("rows", type=Path, help="the folder that gecko export-rows --for cross-encoder wrote")
    options.add_argument("out", type=Path, help="the folder of the model; made")
    options.add_argument("--start", default="minilm", help="minilm, a folder or hf:NAME")
    options.add_argument("--epochs", type=float, default=2)
    options.add_argument("--steps", type=int, default=-1, help="instead of epochs")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--learning-rate", type=float, default=2e-5)
    options.add_argument("--max-tokens", type=int, default=256, help="of query and passage together")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args(arguments)
    if not (given.rows / "train.parquet").is_file():
        options.error(
            f"{given.rows} has no train.parquet; write it with: gecko export-rows RUN -o rows --for cross-encoder"
        )
    if given.out.exists():
        options.error(f"{given.out} is there already; name a folder that is not")
    train(given)


def train(given: argparse.Namespace) -> None:
    """Train and save."""
    from datasets import load_dataset
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    from gecko.encoder import resolve_model

    files = {name: str(path) for name in ("train", "heldout") if (path := given.rows / f"{name}.parquet").is_file()}
    rows = load_dataset("parquet", data_files=files)
    if set(rows["train"].column_names) != {"query", "passage", "score"}:
        raise SystemExit(
            f"{files['train']} has the columns {', '.join(rows['train'].column_names)}; write the rows with: gecko "
            "export-rows RUN -o rows --for cross-encoder"
        )
    model = CrossEncoder(resolve_model(given.start), num_labels=1, max_length=given.max_tokens)
    measured = "heldout" in rows and given.steps < 0
    with tempfile.TemporaryDirectory() as scratch:
        settings = CrossEncoderTrainingArguments(
            output_dir=scratch,
            num_train_epochs=given.epochs,
            max_steps=given.steps,
            per_device_train_batch_size=given.batch,
            per_device_eval_batch_size=given.batch,
            learning_rate=given.learning_rate,
            warmup_steps=0.1,
            seed=given.seed,
            report_to="none",
            eval_strategy="epoch" if measured else "no",
            save_strategy="epoch" if measured else "no",
            save_total_limit=1,
            load_best_model_at_end=measured,
        )
        CrossEncoderTrainer(
            model,
            settings,
            train_dataset=rows["train"],
            eval_dataset=rows["heldout"] if measured else None,
            loss=BinaryCrossEntropyLoss(model),
        ).train()
    model.save_pretrained(str(given.out))
    print(f"{given.out}: use it with: gecko eval MODEL SET --baseline minilm --rerank {given.out}")


if __name__ == "__main__":
    main()
