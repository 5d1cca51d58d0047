"""The models of a server and their names."""

import re
from pathlib import PurePath

from gecko.core.errors import ConfigError
from gecko.encoder import Embedder, load
from gecko.encoder.backend import Precision


def load_models(model: str, start: str | None, name: str | None, precision: Precision = "auto") -> dict[str, Embedder]:
    """Load what is served, each by its SPEC; ``start``, to hold the model against, comes first, as on the page.

    ``name`` is the model's in requests; none: from its SPEC. Raises ConfigError: a model cannot be loaded, or a name does
    not fit into a URL.
    """
    called = _checked(name or spec_name(model))
    second = _checked(spec_name(start)) if start is not None else ""
    if second == called:
        second += "-start"
    models = {second: load(start, precision=precision)} if start is not None else {}
    return models | {called: load(model, precision=precision)}


def spec_name(spec: str) -> str:
    """The name of a model in requests: its folder's; for the model of a run, the run's."""
    path = PurePath(spec.removeprefix("hf:"))
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def _checked(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ConfigError(f"model name {name!r}: give one of letters, digits and . _ - with --name")
    return name
