"""Stage ``embed``: the corpus as vectors, shard by shard; a grown corpus costs only what changed.

The vectors of a shard of passages depend on that shard and the model alone. So while the file is being made each shard's
vectors lie in ``pieces/`` under the shard's checksum, and a shard that an earlier, archived file covers is copied from it.
"""

import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gecko.core.counts import Counts
from gecko.core.files import read_json, tree_sha256, write_bytes, write_json
from gecko.core.records import Passage
from gecko.encoder.encoder import Encoder
from gecko.run.engine import LOCAL, Executor
from gecko.run.folder import Run
from gecko.run.manifest import Shard
from gecko.run.shards import build_file
from gecko.stages.context import Context, once
from gecko.stages.ingest import INGEST
from gecko.stages.models import EncoderLoader
from gecko.stages.stage import Stage

FILE = "passages.npy"
INDEX = "shards.json"


@dataclass(frozen=True)
class Embed:
    """What is done with a shard; it can be sent to another process, if ``encoder`` can."""

    encoder: "Callable[[], Encoder]"
    progress: bool

    def __call__(self, passages: list[Passage], counts: Counts) -> list[tuple[np.ndarray, str]]:
        """One array, float32 (passages, d), and in which precision it was computed."""
        encoder = self.encoder()
        return [(encoder.passages(passages, progress=self.progress), encoder.precision)]


def write_vectors(
    run: Run,
    stage: str,
    parts: Mapping[str, str],
    path: Path,
    encoder: "Callable[[], Encoder]",
    say: Callable[[str], None],
    engine: Executor = LOCAL,
) -> None:
    """Embed the passages of a run, which are ingested, into the file ``path``: float32 (passages, d).

    The folder ``stage`` keeps the pieces until it is whole. ``parts`` are what the vectors depend on, the passages among
    them. ``encoder`` is called when a shard has to be embedded, ``say`` with how many are.
    """
    folder, ingest = run.path / stage, run.finished("ingest")
    pieces = folder / "pieces"
    earlier: dict[str, np.ndarray] = {}
    precisions: dict[str, str] = {}  # not known of the pieces that a killed attempt left
    for sha, precision, found in _earlier(run, stage, parts):
        earlier[sha], precisions[sha] = found, precision
    shards = [shard for shard in ingest.shards if shard.rows]
    new = [shard for shard in shards if shard.sha256 not in earlier and not _piece(pieces, shard).exists()]
    covered = f" of {ingest.rows:,}; the others are known" if len(new) < len(shards) else ""
    if new:
        say(f"embedding {sum(shard.rows for shard in new):,} passages{covered}")
    left = iter(enumerate(new))

    def take() -> tuple[int, list[Passage]] | None:
        if (entry := next(left, None)) is None:
            return None
        return entry[0], run.read_shard(run.path / "ingest", entry[1], Passage)

    for index, done in engine.run(Embed(encoder, progress=not engine.remote), take):
        buffer = io.BytesIO()
        made, precisions[new[index].sha256] = done.rows[0]
        np.save(buffer, made)
        write_bytes(_piece(pieces, new[index]), buffer.getvalue())

    def of(shard: Shard) -> np.ndarray:
        piece = _piece(pieces, shard)
        found: np.ndarray = np.load(piece) if piece.exists() else earlier[shard.sha256]
        return found

    first = of(shards[0])
    with path.open("wb") as handle:
        shape = (ingest.rows, first.shape[1])
        header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(handle, header)
        for shard in shards:
            handle.write(np.ascontiguousarray(of(shard)).tobytes())
    write_json(folder / INDEX, [[shard.sha256, shard.rows, precisions.get(shard.sha256, "")] for shard in shards])
    shutil.rmtree(pieces, ignore_errors=True)


def _piece(pieces: Path, shard: Shard) -> Path:
    return pieces / f"{shard.sha256[:32]}.npy"


def _earlier(run: Run, stage: str, parts: Mapping[str, str]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Shard checksums with precision and vectors, from the archived files of the same model."""
    for folder, manifest in run.earlier(stage, parts, {"passages"}):
        path, index = folder / FILE, folder / INDEX
        if not manifest.done or not path.exists() or not index.exists():
            continue
        if tree_sha256(path) != manifest.shards[0].sha256:
            continue  # damaged: what it held is made again
        vectors, start = np.load(path, mmap_mode="r"), 0
        for sha, rows, *precision in read_json(index):
            yield sha, "".join(precision), vectors[start : start + rows]
            start += rows


@once
def vectors(context: Context) -> np.ndarray:
    """The start model's embeddings of the corpus: float32 (passages, d), unit rows."""
    return embedded(context, EMBED, context.models.start_identity, context.models.start_loader)


def known_rows(context: Context) -> dict[tuple[str, str], int]:
    """By title and text, the rows of :func:`vectors` that the start model would compute alike in this process.

    Empty where the corpus is not embedded, or was by an earlier version or in another precision.
    """
    folder, manifest = context.run.path / EMBED.name, context.run.manifest(EMBED.name)
    parts = EMBED.parts(context) | {"model": context.models.start_identity}
    if manifest is None or manifest.parts != parts or not all((folder / name).exists() for name in (FILE, INDEX)):
        return {}
    here = [context.models.start.precision]
    alike = [precision == here for _, rows, *precision in read_json(folder / INDEX) for _ in range(rows)]
    return {
        (passage.title, passage.text): row
        for row, (passage, usable) in enumerate(zip(context.passages, alike, strict=True))
        if usable
    }


def embedded(context: Context, stage: Stage, identity: str, encoder: EncoderLoader) -> np.ndarray:
    """The embeddings of the corpus, float32 (passages, d), unit rows, of the model of this hash, which ``encoder`` loads.

    ``stage`` is ``EMBED``, or one that is made from it.
    """
    parts = stage.parts(context) | {"model": identity}

    def make(path: Path) -> None:
        write_vectors(context.run, stage.name, parts, path, encoder, context.ui.say, context.engine)

    found: np.ndarray = np.load(build_file(context.run, stage.name, parts, FILE, make), mmap_mode="r")
    return found


EMBED = Stage(name="embed", version=1, make=vectors, reads={"passages": INGEST}, command="generate")
