"""What ``gecko`` alone prints, and the examples at the end of each command's ``--help``."""

START = """\
gecko: a better embedding model for your documents, without labels.

  gecko demo                                    try it: Python's documentation, the default models
  gecko distill FILES -o runs/mine --dry-run    what a run on your own documents would cost
  gecko distill FILES -o runs/mine              the run: a model, its training rows, a report
  gecko search runs/mine/model FILES            use the model

All commands: gecko --help. One of them with examples: gecko COMMAND --help."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("gecko demo", "gecko demo --budget 5m --json"),
    "distill": (
        "gecko distill docs/ -o runs/mine --dry-run",
        "gecko distill docs/ -o runs/mine --queries log.txt --budget 2h",
    ),
    "ingest": ("gecko ingest runs/mine", "gecko ingest runs/mine --set corpus.min_chars=100"),
    "generate": ("gecko generate runs/mine",),
    "mine": ("gecko mine runs/mine --set mine.n=10",),
    "relabel": ("gecko relabel runs/mine", "gecko relabel runs/mine --engine ray --workers 4"),
    "select": ("gecko select runs/mine --set select.positive=seed",),
    "train": ("gecko train runs/mine --set train.epochs=2",),
    "evaluate": ("gecko evaluate runs/mine", "gecko evaluate runs/mine --eval beir/scifact@test"),
    "report": ("gecko report runs/mine", "gecko report runs/mine --plots figures/"),
    "pretrain": ("gecko pretrain pairs.parquet -o runs/first --start minilm",),
    "merge": ("gecko merge runs/one/model runs/two/model -o merged",),
    "eval": (
        "gecko eval runs/mine/model stdlib-questions --baseline minilm",
        "gecko eval runs/mine/model judged --baseline minilm --rerank cross-encoder --top 20",
    ),
    "check-teacher": (
        "gecko check-teacher stdlib-questions",
        "gecko check-teacher beir/scifact@test --llm hf:OWNER/NAME --limit 50",
    ),
    "testset": (
        "gecko testset runs/mine -o judged",
        "gecko testset runs/mine -o judged --queries log.txt --model hf:OWNER/NAME",
    ),
    "inspect": ("gecko inspect runs/mine --json", "gecko inspect fret-stdlib -o page.html"),
    "ablate": ("gecko ablate runs/mine --dry-run", "gecko ablate runs/mine --cells temperature --seeds 5"),
    "embed": ("gecko embed runs/mine/model docs/ -o vectors/", "echo hello | gecko embed minilm"),
    "search": ("gecko search runs/mine/model docs/", "gecko search minilm stdlib -q 'sort a list' -k 3 --json"),
    "export": (
        "gecko export runs/mine/model --to onnx -o exported",
        "gecko export runs/mine/model --to gguf --quantize q8_0 -o for-llama",
    ),
    "serve": (
        "gecko serve runs/mine/model",
        "gecko serve runs/demo/model --start minilm --corpus stdlib",
    ),
    "push": ("gecko push runs/mine OWNER/NAME --dry-run", "gecko push runs/mine OWNER/NAME --dataset --private"),
    "export-rows": ("gecko export-rows runs/mine -o rows/ --for pylate",),
    "examples": ("gecko examples runs/mine -o prompt.toml --count 8",),
}


def epilog(command: str) -> str:
    """The examples of a command, as typer prints them under its options: paragraphs are lines."""
    return "\n\n".join(["Examples:", *EXAMPLES[command]])
