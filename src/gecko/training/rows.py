"""Training rows as the dataset that the trainer reads: text columns to be encoded, and one column of integers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from gecko.config.training import LossConfig
from gecko.core.errors import TrainingError
from gecko.core.formats import InputFormat, native_prompt, render_example, render_passage, symmetric_prompt
from gecko.core.records import Example, Passage, Text
from gecko.training.loss import ABSENT

# Stands where a row has fewer hard negatives or candidates than others. Not the empty text: some tokenizers make no
# token of it, and attention over no token is not a number.
FILLER = "."


class _Numbers:
    """Gives integers to things, in the order of their first appearance."""

    def __init__(self) -> None:
        self._table: dict[tuple[str, ...], int] = {}
        self._next = 0

    def of(self, *keys: tuple[str, ...]) -> int:
        """The number of whichever of ``keys`` is known, else a new one; all of them have it from then on."""
        known = next((self._table[key] for key in keys if key in self._table), None)
        if known is None:
            known = self._next
            self._next += 1
        for key in keys:
            self._table.setdefault(key, known)
        return known


def to_dataset(
    examples: Sequence[Example],
    form: InputFormat,
    config: LossConfig,
    passages: Mapping[str, Passage | Text] | None = None,
    own: Mapping[str, str | None] | None = None,
) -> Dataset:
    """Rows in an input format, ready for :class:`gecko.training.loss.GeckoLoss`.

    The columns: ``query``, ``positive``, ``negative_1`` to ``negative_K`` (K: the most that any row has; 0 where the
    loss uses none), ``candidate_1`` to ``candidate_C`` (the same, of the scored candidates), and ``label``, a list of
    8 + K + 2 C integers, see :meth:`gecko.training.loss.RowIds.from_labels`. Texts have equal numbers when they are
    equal, whatever task or prompt stands before them, or have the same id in the same set. Groups are counted set by set.
    With ``config.unique_ids`` the texts of a row whose group is a class, and not its positive, end in the row's number.

    Args:
        examples: the rows.
        form: the format in which they are written.
        config: which texts the loss needs.
        passages: the texts of the rows' candidates, by id; needed if ``config.distill`` is not 0.
        own: the start model's saved prompts, which the native form puts in front, as everything that uses the model does.

    Raises:
        TrainingError: no rows; a row with an empty query, an empty text, a weight that is negative or not finite, or a
            class of which it is the only member; candidates that are wanted and not there; or a set whose rows are all
            of one group and have no hard negatives. The message names set and row.
    """
    if not examples:
        raise TrainingError("there are no rows to train on; look at what select dropped, or lower select.min_rc")
    texts, groups = _Numbers(), _Numbers()
    own = (own or {}) if form == "native" else {}
    before_passages = native_prompt(own, "document")
    listed = _listed(examples, config, passages or {})
    width = 0 if config.hard_negatives == "none" else max(len(example.negatives) for example in examples)
    scored = max(map(len, listed))
    negative_names = [f"negative_{place}" for place in range(1, width + 1)]
    candidate_names = [f"candidate_{place}" for place in range(1, scored + 1)]
    columns: dict[str, list[Any]] = {
        name: [] for name in ("query", "positive", *negative_names, *candidate_names, "label")
    }
    for row, (example, candidates) in enumerate(zip(examples, listed, strict=True)):
        _check(row, example, width)
        mark = f" {row}" if config.unique_ids and is_class(example) else ""
        query, positive, negatives = _rendered(example, form, own, mark)
        sides = [example.positive, *example.negatives][: 1 + width]
        numbers = [texts.of(*_keys(example, text, _plain(example, text) + mark)) for text in sides]
        shown = [before_passages + render_passage(text, form) for text, _ in candidates]
        candidate_numbers = [texts.of(*_keys(example, text, render_passage(text, "native"))) for text, _ in candidates]
        missing, empty = 1 + width - len(sides), scored - len(shown)
        label = [texts.of(("text", example.query + mark)), numbers[0]]
        label += [groups.of((example.dataset, example.group)) if example.group else ABSENT]
        label += [_bits(example.weight), int(_same_tower(example, config)), row, width, scored]
        label += [*numbers[1:], *[ABSENT] * missing, *candidate_numbers, *[ABSENT] * empty]
        label += [*(_bits(fused) for _, fused in candidates), *[0] * empty]
        written = (query, positive, *negatives[:width], *[FILLER] * missing, *shown)
        for column, value in zip(columns.values(), (*written, *[FILLER] * empty, label), strict=True):
            column.append(value)
    _refuse_one_group(examples, columns["label"], width, config)
    return Dataset.from_dict(columns)


def _rendered(
    example: Example, form: InputFormat, own: Mapping[str, str | None], mark: str
) -> tuple[str, str, list[str]]:
    """(query, positive, negatives) as they are encoded; ``mark`` stands at the end of each."""
    query, positive, negatives = render_example(example, form)
    if example.symmetric:
        before_query = before_passage = symmetric_prompt(own, example.task)
    else:
        before_query, before_passage = native_prompt(own, "query"), native_prompt(own, "document")
    passages = [before_passage + text + mark for text in (positive, *negatives)]
    return before_query + query + mark, passages[0], passages[1:]


def _plain(example: Example, text: Text) -> str:
    """A side as it reads whatever the format, the task and the model's prompts: as such it is compared with others."""
    return text.text if example.symmetric else render_passage(text, "native")


def _keys(example: Example, text: Passage | Text, plain: str) -> list[tuple[str, ...]]:
    return [("text", plain), *([("id", example.dataset, text.id)] if text.id else [])]


def is_class(example: Example) -> bool:
    """Whether the row's group is a class, as opposed to its positive or nothing."""
    return example.group not in ("", example.positive.id)


def _same_tower(example: Example, config: LossConfig) -> bool:
    match config.same_tower:
        case bool():
            return config.same_tower
        case "symmetric":
            return example.symmetric
        case _:
            return example.dataset in config.same_tower


def _bits(number: float) -> int:
    return int(np.float32(number).view(np.int32))


def _listed(
    examples: Sequence[Example], config: LossConfig, passages: Mapping[str, Passage | Text]
) -> list[list[tuple[Passage | Text, float]]]:
    """Each row's candidates for the listwise term, with the teacher's scores, in fused order.

    A row that no teacher scored has none, and the term counts nothing for it.
    """
    if not config.distill:
        return [[] for _ in examples]
    listed = []
    for row, example in enumerate(examples):
        count = len(example.candidates)
        if len(example.fused) != count:
            raise TrainingError(
                f"{_place(row, example)}: {count} candidates, but {len(example.fused)} fused scores; make the row anew"
            )
        kept = min(count, config.distill_candidates or count)
        chosen = sorted({round(place) for place in np.linspace(0, count - 1, kept)})
        if missing := [example.candidates[place] for place in chosen if example.candidates[place] not in passages]:
            raise TrainingError(
                f"{_place(row, example)}: the text of candidate {missing[0]!r} is not among the {len(passages)} "
                f"passages given; {config.SECTION}.distill needs the corpus that the candidates come from"
            )
        listed.append([(passages[example.candidates[place]], example.fused[place]) for place in chosen])
    return listed


def _place(row: int, example: Example) -> str:
    return f"set {example.dataset!r}, row {row}" + (f" (query {example.query_id!r})" if example.query_id else "")


def _check(row: int, example: Example, width: int) -> None:
    place = _place(row, example)
    if not example.query.strip():
        raise TrainingError(f"{place}: the query is empty; drop the row")
    if not math.isfinite(example.weight) or example.weight < 0:
        raise TrainingError(f"{place}: the weight is {example.weight}; it must be a number from 0 up")
    for name, text in (("positive", example.positive), *(("negative", text) for text in example.negatives[:width])):
        if not (text.text.strip() or (text.title.strip() and not example.symmetric)):
            raise TrainingError(f"{place}: the {name} {text.id!r} is empty; drop the row")
    if is_class(example) and example.symmetric and example.positive.text == example.query:
        raise TrainingError(
            f"{place}: the positive is the query itself, as happens where class {example.group!r} has one member; drop "
            "the class"
        )


def _refuse_one_group(
    examples: Sequence[Example], labels: Sequence[Sequence[int]], width: int, config: LossConfig
) -> None:
    if width or len(examples) < 2 or not config.mask_groups:
        return
    groups = {label[2] for label in labels}
    if len(groups) == 1 and groups != {ABSENT}:
        raise TrainingError(
            f"set {examples[0].dataset!r}: all {len(examples)} rows are of group {examples[0].group!r} and none has a "
            "hard negative, so nothing is left to tell apart; add rows of other groups, or hard negatives"
        )
