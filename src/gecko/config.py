"""The settings of a run: one pydantic tree, one TOML file, two presets.

Unknown keys are errors that name the key and its nearest neighbour. The presets differ in selection, loss and mining:
``default`` is what was measured to work best at small scale, ``paper`` follows the Gecko paper to the letter.
``docs/paper.md`` maps each field to the place in the paper that it comes from.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from gecko.config_gone import ERROR, GONE_KEYS, Gone, with_gone, without_gone
from gecko.errors import ConfigError


def _as_text(value: Any) -> Any:
    """Settings with the text of each path in the place of the path."""
    if isinstance(value, dict):
        return {key: _as_text(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_text(entry) for entry in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class _Section(BaseModel):
    # NaN differs from itself, so a run's settings would never be the ones it was saved with.
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    # Fingerprints hash a section's JSON. Fields that came later are left out of it at their default, so that the runs
    # from before them stay valid.
    LATER: ClassVar[frozenset[str]] = frozenset()
    GONE: ClassVar[Mapping[str, Gone]] = {}  # what went stays in it

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        return without_gone(_as_text(values), cls.GONE) if isinstance(values, dict) else values

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if info.mode_is_json():
            fields = type(self).model_fields
            for name in self.LATER & values.keys():
                if getattr(self, name) == fields[name].default:
                    del values[name]
            return values if info.include else with_gone(values, self.GONE)
        return values


class CorpusConfig(_Section):
    """What becomes a passage."""

    sources: list[str] = Field(
        default=["stdlib"], description="files, folders, patterns, hf:NAME, a SQL query, or `stdlib`"
    )
    text_field: str = Field(default="text", min_length=1, description="the field or column of the text")
    title_field: str = Field(default="title", min_length=1, description="of the title, if there is one")
    id_field: str | None = Field(default=None, description="of the id; unset: `_id` or `id`, if there is one")
    max_chars: int = Field(default=4000, ge=200, description="a longer passage is split into pieces")
    chunk_chars: int = Field(default=2000, ge=100, description="the largest piece")
    chunk_tokens: int | None = Field(
        default=None, ge=16, description="the largest piece in tokens of the start model, in place of both above"
    )
    overlap: int = Field(default=0, ge=0, description="what a piece repeats of the one before, at most, in its unit")
    section_titles: bool = Field(default=True, description="a piece's title names the headings above it")
    html: Literal["main", "all"] = Field(default="main", description="main: without menus, footers and the like")
    min_chars: int = Field(default=1, ge=1, description="a shorter passage is dropped")
    languages: list[str] = Field(default=[], description="keep these only, as two letters: en, de; empty: all")
    near_duplicates: float | None = Field(
        default=None, gt=0, le=1, description="drop what is this similar (Jaccard, by MinHash) to an earlier passage"
    )
    document_seconds: float = Field(default=60.0, gt=0, description="a document that takes longer is left out")
    document_mb: int = Field(default=64, ge=1, description="a larger line or document is left out")
    shard_passages: int = Field(default=16_384, ge=1, description="passages of one shard, at least")

    @field_validator("languages")
    @classmethod
    def _languages(cls, value: list[str]) -> list[str]:
        if wrong := [name for name in value if not re.fullmatch("[a-z]{2,3}", name)]:
            raise ValueError(f"{wrong[0]!r} is no language code; write en, de, fr")
        return value

    @model_validator(mode="after")
    def _overlaps(self) -> "CorpusConfig":
        size = self.chunk_tokens or self.chunk_chars
        if self.overlap >= size:
            raise ValueError(f"corpus.overlap = {self.overlap} must be less than the largest piece, {size}")
        return self


class GenerateConfig(_Section):
    """Step 1 of FRet: `LLM(P_QG, p_seed) -> (task, query)`."""

    LATER: ClassVar[frozenset[str]] = frozenset({"variables"})

    queries: int | None = Field(
        default=None,
        ge=0,
        description="how many seeds, 2 or more; unset: as many as the budget buys; 0: those of `asked` alone",
    )
    neighbourhood: int = Field(
        default=10, ge=1, description="seeds drawn together; 1: drawn at random, as in the paper"
    )
    rounds: int | None = Field(
        default=None,
        ge=1,
        description="how often a passage may be a seed; unset: as often as `queries` needs, once under a budget alone",
    )
    heldout: float = Field(default=0.1, ge=0, le=0.5, description="share of neighbourhoods kept for the agreement test")
    heldout_max: int = Field(default=200, ge=0, description="at most so many held-out queries, and of `asked` as many")
    min_seed_chars: int = Field(default=60, ge=1, description="a shorter passage is no seed")
    temperature: float = Field(default=0.5, ge=0, description="0: greedy")
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_new_tokens: int = Field(default=64, ge=8)
    batch: int | None = Field(
        default=None,
        ge=1,
        description="passages decoded together, if memory has room; also the rows of one shard; unset: 32, or 512 where a "
        "GPU is when the run is begun",
    )
    variables: dict[str, dict[str, float]] = Field(
        default={},
        description="of each of the prompt's variables the values that are drawn, with weights, or as a list: "
        "{language = {en = 0.7, same = 0.3}}",
    )

    @field_validator("variables", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return {} if value is None else value
        return {name: dict.fromkeys(drawn, 1.0) if isinstance(drawn, list) else drawn for name, drawn in value.items()}

    @field_validator("variables")
    @classmethod
    def _drawn(cls, value: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for name, drawn in value.items():
            if wrong := [text for text in drawn if not text.strip() or "{" in text or not text.isprintable()]:
                raise ValueError(f"{name} has the value {wrong[0]!r}; write one line of text without braces")
            if wrong := [f"{text} = {weight}" for text, weight in drawn.items() if weight < 0]:
                raise ValueError(f"{name}: {wrong[0]} is no weight; write a number from 0 on")
            if not any(drawn.values()):
                raise ValueError(f"{name} has no value with a weight above 0; name one, or leave {name} out")
        return value


class AskedConfig(_Section):
    """Queries that people asked, without labels: judged and taught beside those that the teacher writes, and before them."""

    sources: list[str] = Field(
        default=[],
        description="text files of a query a line, tables (JSONL, CSV, TSV, parquet), hf:NAME or a SQL query",
    )
    field: str | None = Field(
        default=None, min_length=1, description="of a table; unset: `query`, `question` or `text`, the first there is"
    )
    task: str = Field(
        default="search result", min_length=1, description="the task of all of them, as the model reads it"
    )
    limit: int = Field(default=10_000, ge=1, description="at most so many, drawn at random")
    publish: bool = Field(default=False, description="they are part of the data set that `gecko push` sends")


class MineConfig(_Section):
    """Step 2: the initial embedder's N nearest passages of each query."""

    n: int = Field(default=20, ge=2, description="candidates a query, N in the paper")
    warmup_epochs: int = Field(
        default=0,
        ge=0,
        description="train the embedder on (q, p_seed) first, as the paper does; `train.min_steps` holds here, too",
    )
    model: str = Field(
        default="", description="the embedder that mines, say the student of an earlier round; empty: the start model"
    )


class RelabelConfig(_Section):
    """Step 3: the same LLM scores each (query, candidate) twice."""

    teachers: list[str] = Field(
        default=[],
        description="more LLMs that judge the same pairs; a candidate's rank is the mean of its ranks by each",
    )
    passage_tokens: int = Field(default=256, ge=16, description="the LLM reads at most so many tokens of a passage")
    pack_tokens: int | None = Field(
        default=None,
        ge=64,
        description="tokens of one forward pass, which bound the memory; unset: 512 on a CPU, 16,384 on a GPU, 2,048 where a "
        "GPU has no FlashAttention for the teacher",
    )
    precision: Literal["auto", "int8", "full"] = Field(
        default="auto",
        description="of the teacher's linear layers; auto: int8 where the CPU is fast at it; full: as loaded",
    )
    requests: int = Field(default=16, ge=1, description="under way at a time, where the teacher is a server")
    shard_passages: int = Field(default=64, ge=1, description="passages of one shard, the unit of resuming")


class PromptsConfig(_Section):
    """The prompts: a shipped one by name, or a TOML file by path."""

    GONE: ClassVar[Mapping[str, Gone]] = GONE_KEYS["prompts"]

    generate: str = Field(default="generate", description="`generate_varied` takes `generate.variables`")
    query_likelihood: str = Field(default="relevance", description="the same as below: both are read in one pass")
    relevance: str = "relevance"


class SelectConfig(_Section):
    """Step 4: the better positive and the hard negative."""

    LATER: ClassVar[frozenset[str]] = frozenset({"task_rows"})
    GONE: ClassVar[Mapping[str, Gone]] = GONE_KEYS["select"]

    fusion: Literal["rrf", "rrf+retriever", "ql", "rc"] = Field(
        default="rrf", description="rrf: of QL and RC, as in the paper; rrf+retriever: of the retriever's rank, too"
    )
    released: list[str] = Field(
        default=[], description="relabelled rows to add: `fret-stdlib` if it is shipped, or a file or folder by path"
    )
    rrf_constant: float = Field(default=0.0, ge=0, description="added to the ranks; the paper has 0, not the usual 60")
    positive: Literal["p1", "seed"] = "p1"
    negative: Literal["last", "random", "none"] = "last"
    negatives: int = Field(default=1, ge=1, description="how many: the last so many, or so many at random")
    min_rc: float | None = Field(
        default=0.0, description="keep rows whose positive has RC log-odds above this; unset: all"
    )
    self_contained: bool = Field(
        default=True, description='drop a query that speaks of its own passage, as in "the main topic of the passage"'
    )
    max_title: float | None = Field(
        default=None, ge=0, le=1, description="drop a query that has more than this share of the title's words"
    )
    task_rows: Literal["uniform"] | None = Field(
        default=None,
        description="uniform: of a kind of task at most as many rows as there are of a kind on average; unset: all",
    )


class LossConfig(_Section):
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


class BackboneConfig(_Section):
    """What is built around a language model, or added to an embedder, before it is trained."""

    SECTION: ClassVar[str] = "train.backbone"

    projection: int | None = Field(
        default=None, ge=1, description="numbers of an embedding, by a linear layer behind the pooling; unset: none"
    )
    pad_token: str = Field(default="", description="for a model without padding token: one of its vocabulary")
    lora_rank: int = Field(default=0, ge=0, description="train low-rank updates of this rank only; 0: all weights")
    lora_alpha: int = Field(default=32, gt=0, description="the updates are scaled by this, over the rank")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)


class TrainConfig(_Section):
    """Stage 2 of the paper."""

    SECTION: ClassVar[str] = "train"

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


class _MixtureSet(_Section):
    """What the sets of the mixture have in common."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="unique in the mixture")
    source: str = Field(min_length=1, description="a file, a folder of files, or hf:NAME of a data set")
    config: str | None = Field(default=None, description="of a Hugging Face data set with several")
    split: str = Field(default="train", description="of a Hugging Face data set")
    task: str | None = Field(default=None, description="the task string; unset: that of the kind")
    weight: float = Field(default=1.0, ge=0, description="passes through the set in an epoch, before the temperature")
    limit: int | None = Field(default=None, ge=1, description="at most so many rows, drawn at random")
    negatives: int = Field(default=1, ge=0, description="hard negatives of a row, at most")


class RetrievalSet(_MixtureSet):
    """A set of questions and passages."""

    kind: Literal["natural_questions", "hotpotqa", "miracl", "pairs", "rows"]
    relabel: bool = Field(default=False, description="the teacher chooses positive and negative anew, as for FRet")


class FeverSet(_MixtureSet):
    """FEVER: claims, and the pages they were checked against."""

    kind: Literal["fever"]
    passages: str = Field(min_length=1, description="the pages (`id`, `text`): a file, a folder, or hf:NAME")
    passages_config: str | None = None
    passages_split: str = "wikipedia_pages"
    relabel: bool = False


class MedMcqaSet(_MixtureSet):
    """MedMCQA: questions with four options."""

    kind: Literal["medmcqa"]
    first_answer: Literal[0, 1] = Field(default=0, description="cop of the first option: 1 in the original files")


class NliSet(_MixtureSet):
    """SNLI or MNLI."""

    kind: Literal["snli", "mnli"]


class StsSet(_MixtureSet):
    """Two sentences and a score."""

    kind: Literal["sts"]
    scale: float = Field(default=5.0, gt=0, description="the highest score there can be")
    similar: float = Field(default=0.8, gt=0, le=1, description="pairs from this share of the scale up are positives")
    unlike: float = Field(default=0.4, ge=0, lt=1, description="pairs up to this share of the scale are negatives")


class ClassificationSet(_MixtureSet):
    """Texts and their classes."""

    kind: Literal["classification"]
    text_column: str = "text"
    label_column: str = "label"
    drop_small_classes: bool = Field(default=False, description="leave classes of one text out instead of stopping")


MixtureSet = RetrievalSet | FeverSet | MedMcqaSet | NliSet | StsSet | ClassificationSet

FRET = "fret"


class MixtureConfig(_Section):
    """The unified mixture (Section 3.3): which sets are trained on beside FRet. Without sets: FRet alone."""

    sets: list[Annotated[MixtureSet, Field(discriminator="kind")]] = []
    fret_weight: float = Field(default=1.0, ge=0, description="as `weight` of a set; 0: FRet is left out")
    sampling_temperature: float = Field(default=1.0, gt=0, description="1: by size; large: all sets alike")
    bucket: int = Field(default=0, ge=0, description="batches whose rows are sorted by length together; 0: none")
    task_dropout: float = Field(default=0.0, ge=0, le=1, description="share of rows that lose their task string")

    @model_validator(mode="after")
    def _names(self) -> "MixtureConfig":
        names = [entry.name for entry in self.sets]
        if twice := sorted({name for name in names if names.count(name) > 1 or name == FRET}):
            raise ValueError(
                f"mixture.sets: the name {', '.join(twice)} is taken; names are unique, and {FRET} is FRet's"
            )
        return self


class EvaluateConfig(_Section):
    """What the result is held against."""

    sets: list[str] = Field(default=[], description="BEIR folders, DIR or DIR@SPLIT; `stdlib-questions` is built in")
    resamples: int = Field(default=10_000, ge=100, description="of the paired bootstrap")


class CheckConfig(_Section):
    """When a teacher is refused."""

    enabled: bool = True
    min_parsed: float = Field(default=0.70, ge=0, le=1, description="share of generations that parse")
    min_seed_found: float = Field(default=0.50, ge=0, le=1, description="share of seeds in the start model's top N")


class CardConfig(_Section):
    """What the cards of model and rows say that no run can know."""

    title: str = Field(default="", description="empty: made from the start model's name")
    corpus_license: str = Field(default="", description="of the passages; empty: known for `stdlib`, else `unknown`")
    teacher_license: str = Field(default="", description="empty: known for the shipped teachers, else `unknown`")
    start_license: str = Field(default="", description="empty: known for the shipped start models, else `unknown`")


class RunConfig(_Section):
    """Everything that shapes a run. Saved as `config.json` in the run folder."""

    LATER: ClassVar[frozenset[str]] = frozenset({"asked"})
    GONE: ClassVar[Mapping[str, Gone]] = GONE_KEYS[""]

    preset: Literal["default", "paper"] = "default"
    seed: int = Field(default=0, ge=0, description="of every random choice")
    llm: str = Field(default="default", description="the teacher")
    backbone: str = Field(default="minilm", description="the start model: it mines, it is the baseline, it is trained")
    student: str | None = Field(default=None, description="the model that is trained; unset: the backbone")
    budget: str | None = Field(default=None, description="teacher time or tokens: 20m, 2h, 300000tok")
    corpus: CorpusConfig = CorpusConfig()
    generate: GenerateConfig = GenerateConfig()
    asked: AskedConfig = AskedConfig()
    prompts: PromptsConfig = PromptsConfig()
    mine: MineConfig = MineConfig()
    relabel: RelabelConfig = RelabelConfig()
    select: SelectConfig = SelectConfig()
    train: TrainConfig = TrainConfig()
    pretrain: PretrainConfig = PretrainConfig()
    mixture: MixtureConfig = MixtureConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    check: CheckConfig = CheckConfig()
    card: CardConfig = CardConfig()

    @field_validator("budget")
    @classmethod
    def _budget(cls, value: str | None) -> str | None:
        if value is not None:
            parse_budget(value)
        return value

    @model_validator(mode="after")
    def _conflicts(self) -> "RunConfig":
        if self.mine.model and self.mine.warmup_epochs:
            raise ValueError("mine.model and mine.warmup_epochs exclude each other: give the trained model, or none")
        if self.generate.queries == 1:
            raise ValueError("generate.queries = 1: one query is nothing to learn from; write 2 or more")
        if self.generate.queries == 0 and not self.asked.sources:
            raise ValueError("generate.queries = 0, and no query is asked: name files in asked.sources (--queries)")
        if self.generate.queries == 0 and self.select.positive == "seed":
            raise ValueError(
                "generate.queries = 0, and select.positive = 'seed': what people ask has no seed; take 'p1'"
            )
        if self.generate.queries == 0 and self.mine.warmup_epochs:
            raise ValueError("generate.queries = 0, and mine.warmup_epochs trains on written queries; set it to 0")
        if self.generate.queries is None and self.budget is None:
            raise ValueError("generate.queries and budget are both unset: give one, so that the run has an end")
        return self


# Where neither a budget nor a number of queries is given.
DEFAULT_BUDGET = "20m"

# May change at any time: the amount of work, since what the teacher was paid for is used again; how the work is cut to
# the machine; and what is published.
FREE = frozenset(
    {
        "generate.queries",
        "generate.rounds",
        "generate.batch",
        "budget",
        "relabel.pack_tokens",
        "relabel.requests",
        "relabel.shard_passages",
        *(f"asked.{name}" for name in AskedConfig.model_fields),
        *(f"card.{name}" for name in CardConfig.model_fields),
    }
)

# What a preset changes against the fields' own defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {"train": {"min_steps": 30}},
    "paper": {
        "generate": {"neighbourhood": 1},
        "prompts": {"query_likelihood": "query_likelihood"},
        "mine": {"warmup_epochs": 1},
        "select": {"min_rc": None, "self_contained": False},
        "train": {"formats": ["unified"], "loss": {"mask_groups": False, "unique_ids": True}},
        "pretrain": {"loss": {"mask_groups": False}},
    },
}

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_budget(text: str) -> tuple[Literal["seconds", "tokens"], float]:
    """``"20m"`` as ``("seconds", 1200.0)``, ``"300000tok"`` as ``("tokens", 300000.0)``.

    Raises:
        ConfigError: the text is neither.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|tok)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"budget {text!r} is not a duration or a count; write 90s, 20m, 2h or 300000tok")
    if match[2] == "tok":
        return "tokens", float(match[1])
    return "seconds", float(match[1]) * _UNITS[match[2]]


def load_config(
    path: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    budget: str = DEFAULT_BUDGET,
) -> RunConfig:
    """A run's settings: preset, then recipe file, then ``base`` values, then ``key=value`` overrides.

    Args:
        path: a TOML recipe; it may name a ``preset``.
        overrides: ``section.key=value`` strings; a value is read as TOML, and as a plain string where that fails.
        base: values from the command line's own options.
        budget: where neither a budget nor a number of queries is given.

    Raises:
        ConfigError: an unknown key, a bad value or an unreadable file; the message names it.
    """
    recipe = _read_recipe(Path(path)) if path else {}
    given = override(base or {}, overrides)
    preset = given.get("preset", recipe.get("preset", "default"))
    values: dict[str, Any] = {}
    for layer in (_preset(preset), recipe, given):
        _merge(values, layer)
    if "budget" not in values and "queries" not in values.get("generate", {}):
        values["budget"] = budget
    return make_config(values, str(path) if path else "the settings")


def change_config(config: RunConfig, path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of a run with those of a recipe put over them; a preset that is named takes the place of the run's.

    Args:
        config: the run's settings.
        path: a TOML recipe.
        overrides: ``section.key=value`` strings, as for :func:`load_config`.

    Raises:
        ConfigError: as for :func:`load_config`.
    """
    recipe, given = _read_recipe(Path(path)) if path else {}, override({}, overrides)
    values = config.model_dump()
    layers = [recipe, given]
    if preset := given.get("preset", recipe.get("preset")):
        _unset(values, PRESETS[config.preset])
        layers.insert(0, _preset(preset))
    for layer in layers:
        _merge(values, layer)
    return make_config(values, str(path) if path else "--set")


def _unset(values: dict[str, Any], preset: Mapping[str, Any]) -> None:
    """Take out what is as a preset has it, so that it becomes the fields' default."""
    for key, value in preset.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _unset(values[key], value)
        elif values.get(key) == value:
            del values[key]


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        return _with_tables(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"recipe {path}: {error.strerror}; give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path}: not valid TOML: {error}") from error


def _preset(name: Any) -> dict[str, Any]:
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"preset {name!r} does not exist; choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]


def override(values: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """``values`` with ``section.key=value`` texts applied.

    Raises:
        ConfigError: a text is not of that form.
    """
    changed: dict[str, Any] = _copy(values)
    for text in texts:
        _merge(changed, _parse_override(text))
    return changed


def make_config(values: Mapping[str, Any], place: str) -> RunConfig:
    """Validate ``values``; errors name ``place`` and the key.

    Raises:
        ConfigError: as for :func:`load_config`.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(entry, place) for entry in error.errors())) from error


def _explain(entry: Any, place: str) -> str:
    key = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == ERROR:
        gone = entry["ctx"]
        return f"{place}: {key}{'.' if key else ''}{gone['key']} = {gone['value']!r}: {entry['msg']}"
    if entry["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, sorted({*known_keys(), *RunConfig.model_fields}), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; known sections: {', '.join(RunConfig.model_fields)}"
        return f"{place}: unknown key {key}{hint}"
    what = entry["msg"].removeprefix("Value error, ")
    return f"{place}: {key} = {entry['input']!r}: {what}" if key else f"{place}: {what}"


def known_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every key that a recipe may hold, dotted."""
    keys = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def changed_keys(old: RunConfig, new: RunConfig) -> list[str]:
    """``key: old -> new`` for each setting in which two configurations differ."""
    before, after = _flatten(old.model_dump()), _flatten(new.model_dump())
    keys = dict.fromkeys([*before, *after])
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys if before.get(key) != after.get(key)]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


class _Table(dict[str, Any]):
    """The value of one setting, as opposed to a section: it takes the place of the one before."""


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and not isinstance(value, _Table) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = _copy(value)


def _copy(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    copied = {key: _copy(item) for key, item in value.items()}
    return _Table(copied) if isinstance(value, _Table) else copied


def _with_tables(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a recipe, with its tables that are settings marked."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            whole = f"{prefix}{key}"
            found[key] = _with_tables(value, f"{whole}.") if _is_section(whole) else _Table(value)
        else:
            found[key] = value
    return found


def _is_section(key: str) -> bool:
    return any(known.startswith(f"{key}.") for known in known_keys())


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, raw = text.partition("=")
    if not equals or not re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)*", key.strip()):
        raise ConfigError(f"--set {text!r}: write it as section.key=value, for example mine.n=10")
    value: Any
    if raw.strip() == "null":  # TOML has none of it
        value = None
    else:
        try:
            value = tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            value = raw
    if isinstance(value, dict) and not _is_section(key.strip()):
        value = _Table(value)
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return dict(value)
