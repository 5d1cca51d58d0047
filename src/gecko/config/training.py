"""The sections of both trainings: ``train`` (Eq. 3) and ``pretrain`` (Eq. 2)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from gecko.config.gone import GONE_KEYS, Gone
from gecko.config.section import Section


class LossConfig(Section):
    """Eq. 3 of the paper and its switches."""

    SECTION: ClassVar[str] = "train.loss"  # what errors call it
    GONE: ClassVar[Mapping[str, Gone]] = GONE_KEYS["train.loss"]

    temperature: float = Field(default=0.05, gt=0)
    same_tower: bool | Literal["symmetric"] | list[str] = Field(
        default=True,
        description="other rows' queries are negatives, too; `symmetric`: in symmetric sets only; or names of sets",
    )
    mask_groups: bool = Field(default=True, description="rows with an equal query, positive or group are no negatives")
    unique_ids: bool = Field(
        default=False, description="the paper's way with classes: the texts of a row get a number that no other row has"
    )
    hard_negatives: Literal["own", "all", "none"] = Field(
        default="own", description="own: the row's own, as in the paper; all: those of all rows in the batch; none"
    )
    false_negative_margin: float | None = Field(
        default=None, ge=0, description="other rows' texts this much nearer than the positive are no negatives"
    )
    hardness: float = Field(default=0.0, ge=0, description="alpha: own hard negatives count exp(alpha * cosine) times")
    distill: float = Field(
        default=0.0, ge=0, description="weight of the divergence from the teacher's fused scores of the candidates"
    )
    distill_candidates: int | None = Field(
        default=None, ge=2, description="of a query's candidates so many, evenly over the ranks; unset: all"
    )
    distill_temperature: float = Field(default=0.5, gt=0, description="of the softmax over the fused scores")


class BackboneConfig(Section):
    """What is built around a language model, or added to an embedder, before it is trained."""

    SECTION: ClassVar[str] = "train.backbone"

    projection: int | None = Field(
        default=None, ge=1, description="numbers of an embedding, by a linear layer behind the pooling; unset: none"
    )
    pad_token: str = Field(default="", description="for a model without padding token: one of its vocabulary")
    lora_rank: int = Field(default=0, ge=0, description="train low-rank updates of this rank only; 0: all weights")
    lora_alpha: int = Field(default=32, gt=0, description="the updates are scaled by this, over the rank")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)


class TrainConfig(Section):
    """Stage 2 of the paper."""

    SECTION: ClassVar[str] = "train"
    LATER: ClassVar[frozenset[str]] = frozenset({"freeze"})

    formats: list[Literal["native", "unified"]] = Field(
        default=["native", "unified"],
        min_length=1,
        description="of several, the first is kept unless another agrees clearly better with the teacher",
    )
    epochs: int = Field(default=3, ge=1)
    min_steps: int = Field(
        default=0,
        ge=0,
        description="fewer rows than this needs are taken 16 at a time and up to 10 times, for so many steps",
    )
    batch: int = Field(default=64, ge=2, description="rows that are each other's negatives, over all devices")
    part_tokens: int | None = Field(
        default=None,
        ge=16,
        description="encode at most so many tokens at once, and a batch that has more of them twice (GradCache); unset: as "
        "many as a third of the memory holds; with several devices all",
    )
    accumulate: int = Field(
        default=1, ge=1, description="batches a step; a row's negatives are still those of its own batch"
    )
    devices: int = Field(default=1, ge=1, description="processes that share a batch, one for each device")
    learning_rate: float = Field(default=2e-5, gt=0)
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=256, ge=16)
    matryoshka: bool = Field(default=True, description="train shorter prefixes of the embedding, too")
    dims: list[int] = Field(default=[], description="Matryoshka widths below the full one; empty: half and a quarter")
    dim_weights: list[float] = Field(
        default=[], description="weights of the widths in the loss, the full one first; empty: all equal"
    )
    max_grad_norm: float = Field(default=1.0, ge=0, description="longer gradients are shortened to this; 0: never")
    bf16: bool | None = Field(
        default=None,
        description="compute in bfloat16, the weights stay float32; unset: where the machine is fast at it",
    )
    checkpoint_steps: int = Field(default=25, ge=1)
    patience: int | None = Field(
        default=None,
        ge=1,
        description="stop after so many measurements without a better held-out loss, and keep the best; unset: never",
    )
    heldout: float = Field(
        default=0.1, gt=0, le=0.5, description="share of FRet's rows that `patience` measures, and no row trains on"
    )
    measure_steps: int = Field(
        default=25, ge=1, description="from one measurement to the next; also for checkpoints then"
    )
    tensorboard: bool = Field(default=False, description="write TensorBoard logs beside the checkpoints")
    freeze: Literal["passages"] | None = Field(
        default=None,
        description="passages: train the side of the queries alone, against the start model's passage vectors, so that an "
        "index of the start model stays valid; unset: both sides are one model",
    )
    backbone: BackboneConfig = BackboneConfig()
    loss: LossConfig = LossConfig()

    @field_validator("dim_weights")
    @classmethod
    def _weights(cls, value: list[float]) -> list[float]:
        if wrong := [weight for weight in value if weight < 0]:
            raise ValueError(f"{wrong[0]:g} is no weight; write numbers from 0 on")
        if value and not any(value):
            raise ValueError("all weights are 0, so nothing would be trained; write one above 0")
        return value

    @model_validator(mode="after")
    def _frozen(self) -> "TrainConfig":
        if self.freeze is None:
            return self
        if len(self.formats) > 1:
            raise ValueError(
                f"{self.SECTION}.freeze with {self.SECTION}.formats = {self.formats}: the passages keep the start model's "
                f"format, so name that one alone, as {self.SECTION}.formats=['native']"
            )
        if self.part_tokens is not None or self.backbone.projection is not None:
            key = "part_tokens" if self.part_tokens is not None else "backbone.projection"
            raise ValueError(f"{self.SECTION}.freeze and {self.SECTION}.{key} exclude each other: leave one out")
        return self


class LexicalConfig(Section):
    """What the start model learns of the corpus's words before it is trained on rows."""

    SECTION: ClassVar[str] = "lexical"

    sentences: int = Field(
        default=0,
        ge=0,
        description="sentences of the corpus from which the start model learns BM25's order, without the teacher; 0: none, "
        "and so with `student`, `train.freeze` and some of `train.backbone`",
    )
    weight: float | None = Field(
        default=None,
        ge=0,
        description="of BM25 beside the cosine; unset: half of what agrees best with the teacher's judgements, perhaps 0",
    )
    learning_rate: float = Field(default=5e-5, gt=0)


# Of a training: raised by hand when the same rows and settings give other weights.
TRAINING_VERSION = 4


# Settings of a training that do not change its result for one input format.
WITHOUT_EFFECT = {"formats", "checkpoint_steps", "tensorboard"}


class PairLossConfig(LossConfig):
    """Eq. 2 of the paper: in-batch negatives only."""

    SECTION: ClassVar[str] = "pretrain.loss"

    same_tower: bool = False
    hard_negatives: Literal["own", "all", "none"] = "none"


class PairBackboneConfig(BackboneConfig):
    """The same for stage 1."""

    SECTION: ClassVar[str] = "pretrain.backbone"


class PretrainConfig(TrainConfig):
    """Stage 1 of the paper, `gecko pretrain`: pairs, Eq. 2, each batch from one source. All keys of `train`, too."""

    SECTION: ClassVar[str] = "pretrain"

    sources: list[str] = Field(default=[], description="files of pairs (query, title, text), or folders of them")
    task: str = Field(default="search result", description="the task of a source that `tasks` does not name")
    tasks: dict[str, str] = Field(default={}, description="task by source; a source is named after its file")
    weights: dict[str, float] = Field(default={}, description="passes through a source in an epoch; 1 if not named")
    sampling_temperature: float = Field(default=1.0, gt=0, description="1: by size; large: all sources alike")
    limit: int | None = Field(default=None, ge=2, description="at most so many pairs of a source, drawn at random")
    bucket: int = Field(default=64, ge=0, description="batches whose pairs are sorted by length together; 0: none")
    formats: list[Literal["native", "unified"]] = Field(default=["unified"], min_length=1, max_length=1)
    epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=1024, ge=2)
    part_tokens: int | None = Field(default=16_384, ge=16, description="as in `train`")
    learning_rate: float = Field(default=1e-4, gt=0)
    backbone: PairBackboneConfig = PairBackboneConfig()
    loss: PairLossConfig = PairLossConfig()

    @field_validator("weights")
    @classmethod
    def _passes(cls, value: dict[str, float]) -> dict[str, float]:
        if wrong := [f"{name} = {weight:g}" for name, weight in value.items() if weight < 0]:
            raise ValueError(f"{wrong[0]} is no weight; write a number from 0 on")
        return value
