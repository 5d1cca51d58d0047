"""What a hub says of a model, and files that hold something else, as after a clone without Git LFS."""

import contextlib
from pathlib import Path

_READ = ("*.safetensors", "*.json", "*.gguf", "*.model", "*.jinja")
_POINTER = b"version https://git-lfs"
_PAGES = (b"<!doctype html", b"<html")


def hub_commit(name: str) -> str:
    """The commit of a hub model: the cached one, else the hub's newest, else nothing."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    for repository in (name,) if "/" in name else (f"sentence-transformers/{name}", name):
        cached = try_to_load_from_cache(repository, "config.json")
        if isinstance(cached, str):
            return Path(cached).parent.name
        if not constants.HF_HUB_OFFLINE:
            with contextlib.suppress(Exception):  # whatever fails here fails again, and is explained, on loading
                return HfApi().model_info(repository, timeout=10).sha or ""
    return ""


def why_not_loaded(model: Path, error: Exception) -> str:
    """One line on why a folder or a file (or a name on the hub) could not be loaded, with the mend where there is one.

    The files are looked at only now: a clone may hold pointers to files that nobody needs.
    """
    if wrong := _foreign_file(model):
        return wrong
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "safetensor" in type(error).__name__.lower() or "deserializing header" in first:
        return f"{first}; a file of weights is cut off or damaged, download it again"
    newer = "it may be damaged, or made for a newer version: pip install -U transformers tokenizers"
    if isinstance(error, LookupError | AttributeError | TypeError):  # these name a key and nothing else
        return f"{type(error).__name__} {first}; {newer}"
    if "untagged enum" in first or "does not recognize this architecture" in first:
        return f"{first}; {newer}"
    return first


def _foreign_file(model: Path) -> str:
    files = sorted(file for pattern in _READ for file in model.rglob(pattern)) if model.is_dir() else [model]
    for file in files:
        try:
            with file.open("rb") as handle:
                start = handle.read(64)
        except OSError:
            continue
        if start.startswith(_POINTER):
            return f"{file} is a Git LFS pointer and not the file itself; run `git lfs pull` in its folder"
        if start.lstrip().lower().startswith(_PAGES):
            return f"{file} is a web page and no file of a model; download it again, with the right to do so"
        if not start:
            return f"{file} is empty; download it again"
        if file.suffix == ".gguf" and not start.startswith(b"GGUF"):
            return f"{file} is no GGUF file, it does not begin with GGUF; download it again"
    return ""
