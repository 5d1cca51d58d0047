"""All settings of a run in one tree, the two presets, and what may change at any time."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from gecko.config.gone import GONE_KEYS, Gone
from gecko.config.mixture import MixtureConfig
from gecko.config.section import Section
from gecko.config.stages import (
    AskedConfig,
    CardConfig,
    CheckConfig,
    CorpusConfig,
    EvaluateConfig,
    GenerateConfig,
    MineConfig,
    PriceConfig,
    PromptsConfig,
    RelabelConfig,
    SelectConfig,
)
from gecko.config.training import LexicalConfig, PretrainConfig, TrainConfig
from gecko.core.errors import ConfigError


class RunConfig(Section):
    """Everything that shapes a run. Saved as `config.json` in the run folder."""

    LATER: ClassVar[frozenset[str]] = frozenset({"asked", "price", "lexical"})
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
    lexical: LexicalConfig = LexicalConfig()
    train: TrainConfig = TrainConfig()
    pretrain: PretrainConfig = PretrainConfig()
    mixture: MixtureConfig = MixtureConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    check: CheckConfig = CheckConfig()
    card: CardConfig = CardConfig()
    price: PriceConfig = PriceConfig()

    # Dotted keys that a recipe or a command names; none: not known, so that every value counts as named.
    _named: frozenset[str] | None = PrivateAttr(default=None)

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:  # whoever named a setting, it is the same
        return isinstance(other, RunConfig) and self.model_dump() == other.model_dump()

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
        if self.lexical.sentences and (self.student or self.train.freeze or self.train.backbone.projection):
            raise ValueError(
                f"lexical.sentences = {self.lexical.sentences} trains the backbone against its own passage vectors, so "
                "student, train.freeze and train.backbone.projection must be left out; or set it to 0"
            )
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
        "check.shipped",
        "budget",
        "relabel.pack_tokens",
        "relabel.requests",
        "relabel.shard_passages",
        *(f"asked.{name}" for name in AskedConfig.model_fields),
        *(f"card.{name}" for name in CardConfig.model_fields),
        *(f"price.{name}" for name in PriceConfig.model_fields),
    }
)


AMOUNT = frozenset({"budget", "generate.queries"})  # a folder keeps both where neither is named

# What the default preset had before, by key. A folder that was begun with it is finished with it, unless the key is named.
FORMER: dict[str, Any] = {"corpus.chunk_tokens": None, "lexical.sentences": 0}


# What a preset changes against the fields' own defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {"corpus": {"chunk_tokens": "read"}, "lexical": {"sentences": 2000}, "train": {"min_steps": 30}},
    "paper": {
        "generate": {"neighbourhood": 1},
        "prompts": {"query_likelihood": "query_likelihood"},
        "mine": {"warmup_epochs": 1},
        "select": {"min_rc": None, "self_contained": False},
        "train": {"formats": ["unified"], "loss": {"mask_groups": False, "unique_ids": True}},
        "pretrain": {"loss": {"mask_groups": False}},
    },
}

# Keys that have their field's own default where one of these is named and has a value, since it asks for something else.
GIVE_WAY: dict[str, frozenset[str]] = {
    "corpus.chunk_tokens": frozenset({"corpus.max_chars", "corpus.chunk_chars"}),
    "lexical.sentences": frozenset(
        {"student", "train.freeze", "train.backbone.projection", "train.backbone.lora_rank"}
    ),
}


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_budget(text: str) -> tuple[Literal["seconds", "tokens"], float]:
    """``"20m"`` as ``("seconds", 1200.0)``, ``"300000tok"`` as ``("tokens", 300000.0)``.

    Raises ConfigError: the text is neither.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|tok)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"budget {text!r} is not a duration or a count; write 90s, 20m, 2h or 300000tok")
    if match[2] == "tok":
        return "tokens", float(match[1])
    return "seconds", float(match[1]) * _UNITS[match[2]]
