"""Teachers whose weights are read here, by transformers.

``default`` and ``default-small`` are the embedded Qwen2.5-Coder models (1.5B, 0.5B), ``smollm2`` a 135M one that is too
weak to teach and good for tests, ``hf:NAME`` any instruct model of a hub or a folder, ``gguf:PATH`` a GGUF file.
"""

from pathlib import Path
from typing import Any, Literal

from gecko.config.stages import RelabelConfig
from gecko.core.errors import ConfigError, GeckoError, TeacherError
from gecko.core.files import digest
from gecko.core.progress import Ui, quiet_libraries
from gecko.llm.base import LanguageModel
from gecko.weights.cache import file_identity
from gecko.weights.embedded import EMBEDDED, fetch
from gecko.weights.files import hub_commit, why_not_loaded
from gecko.weights.gguf import to_safetensors


def identity(spec: str) -> str:
    """See :class:`gecko.llm.base.Backend`."""
    if spec in EMBEDDED:
        return EMBEDDED[spec].identity
    kind, _, name = spec.partition(":")
    path = Path(name)
    if kind == "gguf":
        if not path.is_file():
            what = "does not exist" + ("; it is a folder: name a .gguf file in it" if path.is_dir() else "")
            raise ConfigError(f"--llm {spec}: the file {name} {what}")
        return file_identity(path)
    if not path.is_dir():
        return digest(spec, hub_commit(name))
    if not (path / "config.json").exists():
        raise ConfigError(f"--llm hf:{path}: the folder has no config.json, so it is no transformers model")
    files = sorted(file for pattern in ("*.json", "*.safetensors", "*.jinja") for file in path.glob(pattern))
    found = digest(*(text for file in files for text in (file.name, file_identity(file))))
    return digest("vllm", found) if kind == "vllm" else found


def load(spec: str, identity: str, config: RelabelConfig, ui: Ui) -> LanguageModel:
    """See :class:`gecko.llm.base.Backend`."""
    kind, _, source = spec.partition(":")
    if kind == "vllm":  # runs that were made with it are still read
        raise ConfigError(
            f"--llm {spec}: start a vLLM server (vllm serve {source} --no-enable-prefix-caching) and give its address, --llm "
            "openai:http://HOST:8000/v1#MODEL"
        )
    name = source
    if spec in EMBEDDED:
        source, name = str(to_safetensors(fetch(spec, ui), identity, ui)), EMBEDDED[spec].name
    elif kind == "gguf":
        source, name = str(to_safetensors(Path(source), identity, ui)), Path(source).stem
    return _load(source, name, identity, config, ui)


def _load(source: str, name: str, identity: str, config: RelabelConfig, ui: Ui) -> LanguageModel:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from gecko.compute.device import best_device, fast_dtype
    from gecko.llm.transformers import TransformersLM

    device = best_device()
    dtype = fast_dtype(device)
    # The commit that the identity names: without it a load would go on to the hub's newest, and be called by the old name.
    revision = None if Path(source).is_dir() else hub_commit(source) or None
    try:
        with quiet_libraries():
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            width = AutoConfig.from_pretrained(source, revision=revision).get_text_config().hidden_size
            small = _wants_int8(config.precision, device, width)
            # What is rounded to 8 bits is loaded in 16, not in 32: a 1.5B model then fits 8 GiB anywhere.
            loaded = torch.bfloat16 if small else dtype
            model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=loaded, use_safetensors=True)
    except GeckoError:
        raise
    except Exception as error:  # the libraries below raise many kinds
        why = why_not_loaded(Path(source), error)
        raise TeacherError(
            f"teacher {name} cannot be loaded: {why}; use {', '.join(EMBEDDED)} or another model"
        ) from error
    head = None
    if small:
        from gecko.llm.int8 import to_int8

        head = to_int8(model, dtype)
        if loaded != dtype:
            model.to(dtype)  # type: ignore[arg-type]
    model.to(torch.device(device))  # type: ignore[arg-type]
    teacher = TransformersLM(
        model, tokenizer, name=name, identity=identity, passage_tokens=config.passage_tokens, head=head
    )
    if teacher.no_tree:
        ui.say(f"{name} is read with a mask, which is slower than this GPU need be: {teacher.no_tree}")
    default = _pack_by_tree(model, device) if teacher.by_tree else PACK_TOKENS.get(device, 512)
    teacher.pack_tokens = config.pack_tokens or default
    return teacher


def _pack_by_tree(model: Any, device: str) -> int:
    """Tokens of a pack whose widest layer fits a twentieth of the memory: three states of it, of 2 bytes a number."""
    from gecko.compute.device import device_memory

    config = model.config.get_text_config()
    widest = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return max(PACK_TOKENS["cuda"], min(PACK_BY_TREE, int(0.05 * device_memory(device) / (6 * widest))))


PACK_TOKENS = {"cuda": 2048}  # a larger pack feeds a GPU, but with a mask its attention is over all pairs of its tokens
PACK_BY_TREE = 16_384  # without one, at most; twice as many are 1 % faster


# Narrower models lose more by rounding (the fused order of a 576 wide one agrees with float32's by .80, by .97 in bfloat16)
# and gain less.
INT8_WIDTH = 1024


def precision_here(precision: Literal["auto", "int8", "full"]) -> Literal["int8", "full"]:
    """What the linear layers of an embedded teacher compute in on this machine, with a setting of ``relabel.precision``."""
    from gecko.compute.device import best_device

    return "int8" if _wants_int8(precision, best_device(), INT8_WIDTH) else "full"


def _wants_int8(precision: Literal["auto", "int8", "full"], device: str, width: int) -> bool:
    from gecko.compute.device import has_fast_int8, has_int8

    if precision == "auto":
        return device == "cpu" and width >= INT8_WIDTH and has_fast_int8()
    if precision == "full":
        return False
    if device != "cpu" or not has_int8():
        raise TeacherError("relabel.precision = 'int8' needs a CPU and a torch with oneDNN; set it to 'auto' or 'full'")
    return True
