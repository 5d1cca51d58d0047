"""Models by name, to be sent to another process: loaded there once, and refused if they are not those of the run."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from gecko.core.errors import ConfigError
from gecko.run.engine import another_model


class _Identified(Protocol):
    @property
    def identity(self) -> str: ...


Model = TypeVar("Model", bound=_Identified)


@dataclass
class RemoteModel(ABC, Generic[Model]):
    """A model that is loaded where it is called; ``identity`` is what it must have."""

    spec: str
    identity: str
    _loaded: Model | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.spec = anywhere(self.spec)

    def __call__(self) -> Model:
        """The model. Raises ConfigError: it cannot be loaded, or is another one here."""
        if self._loaded is None:
            loaded = self._load()
            if loaded.identity != self.identity:
                raise ConfigError(another_model(self.spec, loaded.identity, self.identity))
            self._loaded = loaded
        return self._loaded

    @abstractmethod
    def _load(self) -> Model: ...


def anywhere(spec: str) -> str:
    """A folder by its absolute path: the other process may work in another one."""
    path = Path(spec).expanduser()
    return str(path.absolute()) if path.is_dir() else spec
