"""The models of a run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gecko.encoder.encoder import Encoder
from gecko.run.remote_model import _Sent


@dataclass
class SentEncoder(_Sent["Encoder"]):
    """An encoder; ``spec`` and ``pad_token`` as for :func:`gecko.encoder.load_encoder`."""

    pad_token: str = ""

    def _load(self) -> "Encoder":
        from gecko.encoder import load_encoder

        return load_encoder(self.spec, pad_token=self.pad_token)
