"""The sections of the steps of FRet, of evaluation, checks and cards."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from gecko.config.gone import GONE_KEYS, Gone
from gecko.config.section import Section


class CorpusConfig(Section):
    """What becomes a passage."""

    sources: list[str] = Field(
        default=["stdlib"], description="files, folders, patterns, hf:NAME, a SQL query, or `stdlib`"
    )
    text_field: str = Field(default="text", min_length=1, description="the field or column of the text")
    title_field: str = Field(default="title", min_length=1, description="of the title, if there is one")
    id_field: str | None = Field(default=None, description="of the id; unset: `_id` or `id`, if there is one")
    max_chars: int = Field(
        default=4000, ge=200, description="a longer passage is split into pieces, where `chunk_tokens` is unset"
    )
    chunk_chars: int = Field(
        default=2000,
        ge=100,
        description="the largest piece, likewise; whoever names one of both and no `chunk_tokens` unsets `chunk_tokens`",
    )
    chunk_tokens: int | Literal["read"] | None = Field(
        default=None,
        description="the largest piece in tokens of the start model, 16 or more; `read`: what student and teacher read of a "
        "passage, the least of `train.max_tokens`, the models' windows and `relabel.passage_tokens`, its title included; "
        "rows that have an id and `stdlib` are then not split to it",
    )
    overlap: int = Field(
        default=0,
        ge=0,
        description="what a piece repeats of the one before, at most, in tokens where `chunk_tokens` is set",
    )
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

    @field_validator("chunk_tokens", mode="before")
    @classmethod
    def _tokens(cls, value: Any) -> Any:
        if value not in (None, "read") and not (isinstance(value, int) and value >= 16):
            raise ValueError("write a number of tokens from 16 on, read, or null")
        return value

    @model_validator(mode="after")
    def _overlaps(self) -> "CorpusConfig":
        size = self.chunk_tokens or self.chunk_chars
        if size != "read" and self.overlap >= size:  # what is read is known when the corpus is
            raise ValueError(f"corpus.overlap = {self.overlap} must be less than the largest piece, {size}")
        return self


class GenerateConfig(Section):
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


class PriceConfig(Section):
    """What a million of the teacher's tokens cost, in any currency; 0: nothing is said of money."""

    input: float = Field(default=0.0, ge=0, description="of tokens that it reads (`--price-in`)")
    output: float = Field(default=0.0, ge=0, description="of tokens that it writes, thinking included (`--price-out`)")


class AskedConfig(Section):
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


class MineConfig(Section):
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


class RelabelConfig(Section):
    """Step 3: the same LLM scores each (query, candidate) twice."""

    LATER: ClassVar[frozenset[str]] = frozenset({"judge", "window", "thinking_tokens"})

    judge: Literal["auto", "logprobs", "graded", "listwise"] = Field(
        default="auto",
        description="logprobs: by log-probabilities; graded: by grades that the teacher answers; listwise: by an order of "
        "the candidates that it answers; auto: logprobs where the teacher has them, else graded",
    )
    window: int = Field(default=20, ge=2, description="candidates that are put in order in one request (listwise)")
    thinking_tokens: int = Field(
        default=0, ge=0, description="that a reasoning model may write before its answer, where the teacher is a server"
    )
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


class PromptsConfig(Section):
    """The prompts: a shipped one by name, or a TOML file by path."""

    LATER: ClassVar[frozenset[str]] = frozenset({"graded", "listwise"})
    GONE: ClassVar[Mapping[str, Gone]] = GONE_KEYS["prompts"]

    generate: str = Field(
        default="generate",
        description="`generate_varied` takes `generate.variables`; `generate_kinds` has a prompt a kind",
    )
    query_likelihood: str = Field(default="relevance", description="the same as below: both are read in one pass")
    relevance: str = "relevance"
    graded: str = Field(default="graded", description="of grades from 0 to 3 (`relabel.judge`)")
    listwise: str = Field(default="listwise", description="of an order; its first is then asked for with `relevance`")


class SelectConfig(Section):
    """Step 4: the better positive and the hard negative."""

    LATER: ClassVar[frozenset[str]] = frozenset({"task_rows", "targets"})
    GONE: ClassVar[Mapping[str, Gone]] = GONE_KEYS["select"]

    fusion: Literal["rrf", "rrf+retriever", "ql", "rc"] = Field(
        default="rrf", description="rrf: of QL and RC, as in the paper; rrf+retriever: of the retriever's rank, too"
    )
    released: list[str] = Field(
        default=[],
        description="relabelled rows to add: `fret-stdlib` or `stdlib-log`, which ship, or a file or folder by path",
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

    targets: Literal["fused", "standardized"] = Field(
        default="fused",
        description="what `train.loss.distill` learns of the candidates: their fused ranks; or the mean of QL and RC, each "
        "standardized over the query's candidates",
    )

    @field_validator("task_rows", mode="before")
    @classmethod
    def _no_number(cls, value: Any) -> Any:
        if isinstance(value, int):
            raise ValueError("a number of rows is no longer taken; write 'uniform', or leave it out")
        return value


class EvaluateConfig(Section):
    """What the result is held against."""

    sets: list[str] = Field(default=[], description="BEIR folders, DIR or DIR@SPLIT; `stdlib-questions` is built in")
    resamples: int = Field(default=10_000, ge=100, description="of the paired bootstrap")


class CheckConfig(Section):
    """When a teacher is refused."""

    LATER: ClassVar[frozenset[str]] = frozenset({"shipped"})

    enabled: bool = True
    shipped: bool = Field(
        default=True, description="take the shipped result of the reranking probe, where teacher and prompts are those"
    )
    min_parsed: float = Field(default=0.70, ge=0, le=1, description="share of generations that parse")
    min_seed_found: float = Field(default=0.50, ge=0, le=1, description="share of seeds in the start model's top N")


class CardConfig(Section):
    """What the cards of model and rows say that no run can know."""

    title: str = Field(default="", description="empty: made from the start model's name")
    corpus_license: str = Field(default="", description="of the passages; empty: known for `stdlib`, else `unknown`")
    teacher_license: str = Field(default="", description="empty: known for the shipped teachers, else `unknown`")
    start_license: str = Field(default="", description="empty: known for the shipped start models, else `unknown`")
