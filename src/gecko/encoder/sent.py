"""Models by name, to be sent to another process: loaded there once, and refused if they are not those of the run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gecko.errors import ConfigError
from gecko.work import another_model

if TYPE_CHECKING:
    from gecko.encoder.embedder import Embedder
    from gecko.encoder.encoder import Encoder
    from gecko.encoder.engine import Precision


@dataclass
class SentEncoder:
    """An encoder; ``spec`` and ``pad_token`` as for :func:`gecko.encoder.load_encoder`, ``identity`` what it must have."""

    spec: str
    identity: str
    pad_token: str = ""
    _loaded: "Encoder | None" = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.spec = _anywhere(self.spec)

    def __call__(self) -> "Encoder":
        """The encoder.

        Raises:
            ConfigError: it cannot be loaded, or is another one here.
        """
        if self._loaded is None:
            from gecko.encoder import load_encoder

            loaded = load_encoder(self.spec, pad_token=self.pad_token)
            if loaded.identity != self.identity:
                raise ConfigError(another_model(self.spec, loaded.identity, self.identity))
            self._loaded = loaded
        return self._loaded


@dataclass
class SentEmbedder:
    """An embedder; ``spec`` and ``precision`` as for :func:`gecko.encoder.load`, ``identity`` what it must have."""

    spec: str
    identity: str
    precision: "Precision"
    _loaded: "Embedder | None" = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.spec = _anywhere(self.spec)

    def __call__(self) -> "Embedder":
        """The embedder.

        Raises:
            ConfigError: it cannot be loaded, or is another one here.
        """
        if self._loaded is None:
            from gecko.encoder import load

            loaded = load(self.spec, precision=self.precision)
            if loaded.identity != self.identity:
                raise ConfigError(another_model(self.spec, loaded.identity, self.identity))
            self._loaded = loaded
        return self._loaded


def _anywhere(spec: str) -> str:
    """A folder by its absolute path: the other process may work in another one."""
    path = Path(spec).expanduser()
    return str(path.absolute()) if path.is_dir() else spec
