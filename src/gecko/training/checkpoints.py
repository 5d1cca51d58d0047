"""Where a killed training goes on: checkpoints that are whole, and of this very training.

A checkpoint counts only once its file list with checksums, written last, agrees with what is there. The checkpoints lie
in a folder named after start weights, rows, format, seed and settings: those of another training are neither resumed
nor lost.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from sentence_transformers import SentenceTransformer

from gecko.core.errors import RunError
from gecko.core.files import digest, file_sha256, read_json, write_json

FILES = "files.json"
FINGERPRINT = "fingerprint.json"


def last_checkpoint(folder: Path, parts: dict[str, str], bf16: bool, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of this very training; what is not whole is removed.

    Beside ``folder`` may lie those of trainings with other rows or settings. They stay, so that a setting that is changed
    and changed back loses nothing.
    """
    if not (folder / FINGERPRINT).exists():
        for other in sorted(folder.parent.glob(f"*/{FINGERPRINT}")):
            if whole := whole_checkpoints(other.parent):
                known: dict[str, str] = {}
                with contextlib.suppress(RunError):  # what cannot be read differs in all parts
                    known = read_json(other)
                changed = ", ".join(key for key in parts if parts[key] != known.get(key))
                say(f"{whole[-1]} is of another training ({changed} differ) and is kept; this one starts afresh")
        write_json(folder / FINGERPRINT, {**parts, "bf16": bf16})
        return None
    whole = whole_checkpoints(folder)
    for path in _checkpoints(folder):
        if path not in whole:
            say(f"{path} is not whole; it is removed")
            shutil.rmtree(path)
    if not whole:
        return None
    say(f"training continues after step {_step(whole[-1])}")
    return whole[-1]


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and path.name.split("-")[-1].isdigit()]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[-1])


def whole_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a training, oldest first."""
    return [path for path in _checkpoints(folder) if _is_whole(path)]


def _is_whole(checkpoint: Path) -> bool:
    try:
        return bool(read_json(checkpoint / FILES) == _files(checkpoint))
    except RunError:
        return False


def mark_whole(checkpoint: Path) -> None:
    """Write down what a checkpoint holds; without that it does not count."""
    write_json(checkpoint / FILES, _files(checkpoint))


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != FILES
    }


def began_in_bfloat16(folder: Path) -> bool | None:
    """Whether the training whose checkpoints these are began in bfloat16; none: it has not begun."""
    with contextlib.suppress(RunError):
        if (folder / FINGERPRINT).exists() and "bf16" in (known := read_json(folder / FINGERPRINT)):
            return bool(known["bf16"])
    return None


def weights_digest(model: SentenceTransformer) -> str:
    """A hash of a model's weights: 16 hexadecimal digits."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()[:16]


def rows_digest(rows: datasets.Dataset) -> str:
    """A hash of rows of training."""
    return digest(*(repr(rows[name][:]) for name in rows.column_names), *rows.column_names)
