"""Every error the package raises on purpose, in one tree.

::

    GeckoError
    ├── ConfigError        a key, a value or a spec that cannot be used
    ├── CorpusError        passages that cannot be read, or too few of them
    ├── RunError           a run folder: locked, damaged, made with other settings, or a stage missing
    │   └── StorageError   the disk refused a write; what was finished before it is whole
    ├── TeacherError       a language model that cannot be fetched, loaded or asked
    │   └── TeacherRefused the teacher check found it harmful
    ├── TrainingError      rows, a loss or a model that cannot be trained (on)
    ├── EvaluationError    a test set or a split that cannot be read
    ├── NonFiniteError     a text whose vector a model gives as NaN or infinity
    └── PublishError       a hub that refuses, or a name that is none

A message names the value, the place and the mend. The command line prints it without a traceback and exits with 2 for a
ConfigError, 3 for TeacherRefused and 1 for any other.
"""


class GeckoError(Exception):
    """Base of all errors below; catch this to catch them all."""


class ConfigError(GeckoError):
    """A key, a value or a spec that cannot be used."""


class CorpusError(GeckoError):
    """Passages that cannot be read, or too few of them."""


class RunError(GeckoError):
    """A run folder that is locked, damaged, made with other settings, or without a stage that is needed."""


class StorageError(RunError):
    """The disk refused a write. Shards written before are complete and are used by the next run."""


class TeacherError(GeckoError):
    """A language model that cannot be fetched, loaded or asked."""


class TeacherRefused(TeacherError):
    """The teacher check found that this language model would make the embedder worse."""


class TrainingError(GeckoError):
    """Rows, a loss or a model that cannot be trained (on)."""


class EvaluationError(GeckoError):
    """A test set or a split that cannot be read."""


class NonFiniteError(GeckoError):
    """A text whose vector holds NaN or infinity.

    Attributes:
        index: the place of the text in the call, from 0.
    """

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)  # what pickle gives back; the place follows with the attributes
        self.index = index


class PublishError(GeckoError):
    """A hub that refuses, or a name that is none."""
