"""GGUF files, turned once into bfloat16 safetensors."""

import contextlib
import io
import shutil
from pathlib import Path

from filelock import FileLock

from gecko.core.errors import TeacherError
from gecko.core.files import made_aside
from gecko.core.progress import Ui, quiet_libraries
from gecko.weights.cache import cache_folder, cache_room
from gecko.weights.files import why_not_loaded

CONVERTED = 1  # raised when the conversion changes


def to_safetensors(gguf: Path, identity: str, ui: Ui) -> Path:
    """The same model as bfloat16 safetensors with its tokenizer, in the cache; made on the first call, in minutes.

    Dequantised weights load in a second, and bfloat16 is several times as fast as packed blocks on a CPU that has it.
    ``identity`` is the file's hash. Raises TeacherError: the file is no GGUF model that transformers can read.
    """
    folder = cache_folder() / "converted" / f"{identity}-{CONVERTED}"
    if (folder / "config.json").exists():
        return folder
    with FileLock(cache_room("converted") / f"{folder.name}.lock"):
        if not (folder / "config.json").exists():
            ui.say(f"turning {gguf.name} into bfloat16 safetensors, once: about a minute")
            _convert(gguf, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        # The dequantising bar asks nobody before it writes.
        with quiet_libraries(), contextlib.redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent),
                gguf_file=gguf.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),  # by default the weights stay packed, and slow
            )
    except Exception as error:
        raise TeacherError(f"teacher {gguf} cannot be loaded as a GGUF model: {why_not_loaded(gguf, error)}") from error
    with quiet_libraries(), made_aside(folder) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        shutil.rmtree(folder, ignore_errors=True)
