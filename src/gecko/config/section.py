"""What all sections of the settings have in common: how they are read, and the JSON that fingerprints hash."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from gecko.config.gone import Gone, with_gone, without_gone


def _as_text(value: Any) -> Any:
    """Settings with the text of each path in the place of the path."""
    if isinstance(value, dict):
        return {key: _as_text(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_text(entry) for entry in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class Section(BaseModel):
    """A table of the settings: unknown keys are refused, and its JSON is what fingerprints hash."""

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
