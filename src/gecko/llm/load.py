"""From an LLM SPEC to a teacher.

``default`` and ``default-small`` are the embedded Qwen2.5-Coder models (1.5B, 0.5B), ``smollm2`` a 135M one that is too
weak to teach and good for tests, ``hf:NAME`` any instruct model of a hub or a folder, ``gguf:PATH`` a GGUF file,
``openai:URL#MODEL`` a model behind an OpenAI-compatible server (vLLM, llama.cpp and others), and ``fake`` a stand-in without
weights. Runs that were made with ``vllm:NAME`` are still read.
"""

from pathlib import Path
from typing import Any, Literal

from gecko.config import RelabelConfig
from gecko.encoder.spec import hub_commit
from gecko.errors import ConfigError, GeckoError, TeacherError
from gecko.llm import weights
from gecko.llm.base import LanguageModel
from gecko.model_files import why_not_loaded
from gecko.progress import Ui, quiet_libraries
from gecko.store import digest

FORMS = f"{', '.join(weights.EMBEDDED)}, hf:NAME, gguf:PATH, openai:URL#MODEL or fake"


def teacher_identity(spec: str) -> str:
    """What a teacher's answers depend on, as a hash, without loading it.

    Raises:
        ConfigError: the spec is of no known form, or its file does not exist.
    """
    kind, colon, rest = spec.partition(":")
    if spec == "fake":
        return "fake-1"
    if spec in weights.EMBEDDED:
        return weights.EMBEDDED[spec].sha256[:16]
    if kind == "openai" and rest:
        from gecko.llm.openai_address import parse_address

        address = parse_address(spec)
        return digest("openai", address.url, address.model)
    if kind == "gguf" and rest:
        if not Path(rest).is_file():
            what = "does not exist" + ("; it is a folder: name a .gguf file in it" if Path(rest).is_dir() else "")
            raise ConfigError(f"--llm {spec}: the file {rest} {what}")
        return weights.file_identity(Path(rest))
    if kind in ("hf", "vllm") and colon and rest:
        if Path(rest).is_dir():
            found = _folder_identity(Path(rest))
            return found if kind == "hf" else digest(kind, found)
        return digest(spec, hub_commit(rest))
    raise ConfigError(f"--llm {spec!r} is of no known form; use {FORMS}")


def _folder_identity(folder: Path) -> str:
    files = sorted(file for pattern in ("*.json", "*.safetensors", "*.jinja") for file in folder.glob(pattern))
    if not (folder / "config.json").exists():
        raise ConfigError(f"--llm hf:{folder}: the folder has no config.json, so it is no transformers model")
    return digest(*(text for file in files for text in (file.name, weights.file_identity(file))))


def check_scores(teacher: LanguageModel) -> None:
    """Refuse a teacher that cannot give query likelihoods.

    Raises:
        TeacherError: it cannot.
    """
    if not teacher.can_score:
        raise TeacherError(
            f"{teacher.name} cannot return the log-probabilities of a given text, and judging needs them; "
            "take another teacher with --llm, or judge by relevance alone with --set select.fusion=rc"
        )


def load_teacher(spec: str, config: RelabelConfig, ui: Ui) -> LanguageModel:
    """Fetch, convert and load a teacher.

    Args:
        spec: an LLM SPEC.
        config: how many tokens of a passage it reads, and how many it packs together.
        ui: where the progress goes.

    Raises:
        ConfigError: the spec is of no known form.
        TeacherError: it cannot be fetched or loaded.
    """
    identity = teacher_identity(spec)
    if spec == "fake":
        from gecko.llm.fake import FakeLM

        return FakeLM()
    if spec.startswith("openai:"):
        return _connect(spec, identity, config, ui)
    if spec.startswith("vllm:"):
        raise ConfigError(
            f"--llm {spec}: start a vLLM server (vllm serve {spec.removeprefix('vllm:')} --no-enable-prefix-caching) "
            "and give its address, --llm openai:http://HOST:8000/v1#MODEL"
        )
    if spec in weights.EMBEDDED:
        source = str(weights.to_safetensors(weights.fetch(spec, ui), identity, ui))
        name = weights.EMBEDDED[spec].name
    elif spec.startswith("gguf:"):
        path = Path(spec.removeprefix("gguf:"))
        source, name = str(weights.to_safetensors(path, identity, ui)), path.stem
    else:
        source = name = spec.removeprefix("hf:")
    return _load(source, name, identity, config, ui)


def _connect(spec: str, identity: str, config: RelabelConfig, ui: Ui) -> LanguageModel:
    from gecko.llm.openai import OpenAILM
    from gecko.llm.openai_address import key_for, parse_address

    address = parse_address(spec)
    try:
        kept = weights.cache_folder() / "answers" / f"{identity}.json"
    except ConfigError as error:
        ui.say(f"answers of work that is stopped are not kept for the next run: {error}")
        kept = None
    teacher = OpenAILM(
        address,
        identity=identity,
        key=key_for(address),
        passage_tokens=config.passage_tokens,
        requests=config.requests,
        kept=kept,
        say=ui.say,
    )
    teacher.probe()
    if not teacher.can_score:
        ui.say(f"{teacher.name} cannot score a given text ({teacher.reason}): it serves for relevance alone")
    return teacher


def _load(source: str, name: str, identity: str, config: RelabelConfig, ui: Ui) -> LanguageModel:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from gecko.device import best_device, fast_dtype
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
        raise TeacherError(
            f"teacher {name} cannot be loaded: {why_not_loaded(Path(source), error)}; use {FORMS}"
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
    from gecko.device import device_memory

    config = model.config.get_text_config()
    widest = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return max(PACK_TOKENS["cuda"], min(PACK_BY_TREE, int(0.05 * device_memory(device) / (6 * widest))))


PACK_TOKENS = {"cuda": 2048}  # a larger pack feeds a GPU, but with a mask its attention is over all pairs of its tokens
PACK_BY_TREE = 16_384  # without one, at most; twice as many are 1 % faster


# Narrower models lose more by rounding (the fused order of a 576 wide one agrees with float32's by .80, by .97 in bfloat16)
# and gain less.
INT8_WIDTH = 1024


def _wants_int8(precision: Literal["auto", "int8", "full"], device: str, width: int) -> bool:
    from gecko.device import has_fast_int8, has_int8

    if precision == "auto":
        return device == "cpu" and width >= INT8_WIDTH and has_fast_int8()
    if precision == "full":
        return False
    if device != "cpu" or not has_int8():
        raise TeacherError("relabel.precision = 'int8' needs a CPU and a torch with oneDNN; set it to 'auto' or 'full'")
    return True
