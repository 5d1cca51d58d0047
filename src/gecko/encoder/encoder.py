"""An embedding model: a sentence-transformers model, and the text form it reads.

What is notable here:

* the input form (``native`` or ``unified``) is read off the model's saved prompts, so a folder says how to use it
* the transformer runs in bfloat16 where the processor does that natively
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gecko.compute.device import has_fast_bfloat16
from gecko.config.training import BackboneConfig
from gecko.core import formats
from gecko.core.arguments import dim_of, form_of, in_order, passages_of, spec_of, strings, strings_for, whole
from gecko.core.errors import ConfigError
from gecko.core.formats import InputFormat
from gecko.core.progress import quiet_libraries
from gecko.core.records import Passage, Text
from gecko.encoder.encode import encode_texts, pooled_in_float32
from gecko.encoder.forked import survives_fork
from gecko.encoder.save import detect_form, most_positions
from gecko.encoder.spec import model_identity, refuse_pickles, resolve_model
from gecko.encoder.towers import has_two_towers, passage_identity
from gecko.encoder.vectors import Vectors, refuse_not_finite
from gecko.weights.files import why_not_loaded

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


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

    @property
    def precision(self) -> str:
        """What else than weights and text its numbers depend on: the device, and what that computes in."""
        device = self.model.device.type
        return f"{device} {self.bf16} {has_fast_bfloat16(device)}"

    @property
    def passage_identity(self) -> str:
        """What its passage vectors are known by: of a model of two towers, the identity of the model that made them."""
        return passage_identity(self.spec) if self.spec and has_two_towers(self.model) else self.identity

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
        if not self.in_bf16:
            return self.model
        import torch

        version = sum(parameter._version for parameter in self.model.parameters())
        if self._copy is None or self._copy[0] != version:
            self._copy = (version, pooled_in_float32(self.model, torch.bfloat16))
        return self._copy[1]

    @property
    def in_bf16(self) -> bool:
        """Whether the transformer runs in bfloat16 copies; a vector then hangs a little on the texts beside it."""
        import torch

        if self.bf16 is False or self.model.transformers_model is None or has_two_towers(self.model):
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
    model = _loaded(spec, pad_token)
    if max_tokens is not None:
        limit, max_tokens = most_positions(model), whole("max_tokens", max_tokens)
        if max_tokens < 1 or (limit is not None and max_tokens > limit):
            raise ConfigError(f"max_tokens = {max_tokens}: model {spec!r} reads 1 to {limit or 'any number of'} tokens")
        model.max_seq_length = max_tokens
    return Encoder(model, form, spec=spec, identity=model_identity(spec), bf16=bf16)


def load_outline(spec: str, *, pad_token: str = "") -> Encoder:
    """A model without its weights, for what it reads and how much of it; it embeds nothing.

    Arguments and errors are those of :func:`load_encoder`, but that a model that stays causal is not found out.
    """
    return Encoder(_loaded(spec, pad_token, weights=False), spec=spec)


def _loaded(spec: str, pad_token: str, *, weights: bool = True) -> "SentenceTransformer":
    target = resolve_model(spec)
    if Path(target).is_dir():
        refuse_pickles(Path(target), spec)
    from gecko.encoder.build import load_backbone

    try:
        with quiet_libraries():
            return load_backbone(target, BackboneConfig(pad_token=pad_token), weights=weights)
    except ConfigError:
        raise
    except Exception as error:  # the libraries below raise many kinds
        reason = why_not_loaded(Path(target), error).rstrip(".")
        raise ConfigError(
            f"model {spec!r} cannot be loaded: {reason}. It must be a sentence-transformers or transformers model "
            "with safetensors weights that needs no code of its own"
        ) from error
