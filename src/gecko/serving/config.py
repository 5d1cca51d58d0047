"""What a server accepts, and for how long it works on it."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gecko.config.load import override
from gecko.core.errors import ConfigError

_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServeConfig(BaseModel):
    """Limits of a server. A request beyond one of them is refused with the limit in the message."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_body_bytes: _Count = 8 * 1024 * 1024
    """Largest request body."""
    max_texts: _Count = 2048
    """Most texts a request, as in OpenAI's API."""
    max_chars: _Count = 65_536
    """Longest text. A text is cut to the model's window, which is mostly far shorter; this bounds the tokenising."""
    max_queue_tokens: _Count = 500_000
    """Work that may wait, in tokens estimated from the characters; above it requests get 429."""
    batch_tokens: _Count = 8192
    """Estimated tokens taken from the queue at once."""
    timeout: _Seconds = 60.0
    """Seconds from a request's arrival to its answer; then it gets 503."""
    body_timeout: _Seconds = 20.0
    """Seconds in which a request's head, and then its body, has to arrive; a late body gets 408."""
    drain: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Seconds between SIGTERM and the end of listening, in which ``/readyz`` says 503 and connections are closed
    after their next answer, so that clients and load balancers turn away before anything is refused."""
    max_connections: _Count = 1000
    """Open connections; above it requests get 503."""


def make_serve_config(settings: Sequence[str]) -> ServeConfig:
    """The defaults with ``key=value`` texts applied. Raises ConfigError: an unknown key or a bad value."""
    try:
        return ServeConfig.model_validate(override({}, settings))
    except ValidationError as error:
        entry = error.errors()[0]
        key = ".".join(map(str, entry["loc"]))
        if entry["type"] == "extra_forbidden":
            raise ConfigError(f"--set {key}: not known; a server has {', '.join(ServeConfig.model_fields)}") from error
        raise ConfigError(f"--set {key} = {entry['input']!r}: {entry['msg']}") from error
