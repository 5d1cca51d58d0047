"""The settings that went, in one table, so that what was saved or hashed with them stays what it was.

A fingerprint hashes the JSON of a section, which has such a key at its default for good, where it always stood. A file or
a command that names the key means the same without it if it has the default, and is refused otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError

ERROR = "gone"  # the type of the error that pydantic collects; its context names the key and the value


@dataclass(frozen=True)
class Gone:
    """A setting that went: the default that it had, and what to do instead for whoever set it.

    ``behind`` is the key behind which it stands in a section's JSON; without one, at its default it was never there.
    """

    default: Any
    instead: str
    behind: str | None = None


_RATING = "select.min_rc drops what the teacher finds unanswered"
_NEAR = "corpus.near_duplicates drops passages that are nearly the same"

# By section and key, in the order in which they stood.
GONE_KEYS: dict[str, dict[str, Gone]] = {
    "": {"rate": Gone({"llm": ""}, _RATING)},
    "prompts": {"rate": Gone("rate", _RATING)},
    "select": {
        "min_rating": Gone(None, _RATING),
        "max_copied": Gone(None, "select.max_title and select.self_contained are there still", "self_contained"),
        "near_jaccard": Gone(None, _NEAR, "max_title"),
        "near_cosine": Gone(None, _NEAR, "near_jaccard"),
        "flawed_weight": Gone(0.0, "what has a flaw is dropped", "near_cosine"),
        "task_shares": Gone({}, "select.task_rows = 'uniform' evens the kinds of task", "flawed_weight"),
    },
    "train.loss": {
        "spread": Gone(0.0, "the temperature of the loss decides how far texts are pushed apart", "hardness"),
        "match": Gone(0.0, "train.loss.distill learns from a teacher's scores", "distill_temperature"),
        "match_model": Gone("", "train.loss.distill learns from a teacher's scores", "match"),
    },
}


def without_gone(values: Mapping[str, Any], gone: Mapping[str, Gone]) -> dict[str, Any]:
    """The given values of a section without those that ``gone`` names.

    Raises PydanticCustomError: one of these has another value than its default.
    """
    for key, value in values.items():
        if key in gone and value not in (gone[key].default, {}):
            told = {"key": key, "value": value, "instead": gone[key].instead}
            raise PydanticCustomError(ERROR, "this setting is gone, leave it out; {instead}", told)
    return {key: value for key, value in values.items() if key not in gone}


def with_gone(values: Mapping[str, Any], gone: Mapping[str, Gone]) -> dict[str, Any]:
    """The JSON of a section with the keys that it had: each behind its neighbour, at its default."""
    entries = list(values.items())
    for name, one in gone.items():
        keys = [key for key, _ in entries]
        if one.behind in keys:
            entries.insert(keys.index(one.behind) + 1, (name, one.default))
    return dict(entries)
