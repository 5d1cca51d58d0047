"""The section of the mixture: the sets that people labelled, beside FRet (Section 3.3)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gecko.config.section import Section


class _MixtureSet(Section):
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


class MixtureConfig(Section):
    """The unified mixture (Section 3.3): which sets are trained on beside FRet. Without sets: FRet alone."""

    sets: list[Annotated[MixtureSet, Field(discriminator="kind")]] = Field(default=[])
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
