"""A model as an ONNX or OpenVINO graph: token ids in, unit vectors out, everything between them inside.

::

    OUT/gecko_export.json          the format, the precision, and what Gecko needs to prepare texts
    OUT/tokenizer.json             the tokenizer, which cuts to the model's window and pads to the longest text
    OUT/model.onnx                 or model.xml and model.bin

The graph has the inputs ``input_ids`` and ``attention_mask``, int64 (B, T), padded on the right, and the output
``sentence_embedding``, float32 (B, D), so that any program with onnxruntime or OpenVINO can run it. ``gecko.load``
reads the folder as a model.
"""

import importlib.util
import logging
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never, get_args

import numpy as np

from gecko.compute.device import has_fast_bfloat16
from gecko.core.arguments import folder_of, one_of, spec_of
from gecko.core.errors import ConfigError
from gecko.core.files import digest, made_aside, read_json, write_json
from gecko.core.formats import InputFormat
from gecko.core.progress import quiet_libraries
from gecko.encoder.backend import CPU_BATCH_TOKENS, TorchBackend, is_plain, pad, saved_prompts
from gecko.encoder.encoder import Encoder, load_encoder
from gecko.encoder.forked import survives_fork
from gecko.encoder.save import window_of
from gecko.encoder.spec import CARD
from gecko.encoder.tokens import written_tokenizer
from gecko.encoder.towers import Side, has_two_towers, tower
from gecko.encoder.vectors import Vectors

if TYPE_CHECKING:
    import torch

Target = Literal["onnx", "openvino"]

LAYOUT = 1
BLOCK = 32  # columns of a weight matrix that share a scale, in ONNX
CHECKED = (  # short, of one token, of several scripts
    "how do I open a file for reading",
    "a",
    "",
    "She had not expected the letter, and when it came she left it unopened on the kitchen table for three days.",
    "Der Fluss ist länger als jeder andere auf dem Kontinent, und im Winter friert er zu.",
    "Почему небо голубое, а закат красный?",
    "猫は窓の外の雪を静かに見ていた。",
    "كيف أصل إلى محطة القطار؟ 🙂",
)
MOST_CHECKED = 512  # tokens of a text whose vector is compared; of a longer one the tokens alone
MIN_COSINE = {False: 0.9999, True: 0.98}  # to the float32 vectors; by int8


@dataclass(frozen=True)
class ExportCard:
    """What an exported folder says of itself; ``source`` is the identity of the model that was exported."""

    target: Target
    int8: bool
    source: str
    form: InputFormat
    prompts: dict[str, str]
    default_prompt: str
    dim: int
    max_tokens: int | None
    padding: int
    layout: int = LAYOUT


@survives_fork
def export_model(
    spec: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    target: Target,
    *,
    int8: bool = False,
    side: Side | None = None,
) -> ExportCard:
    """Write a model as a graph, and check that the graph gives the model's vectors.

    Args:
        spec: see :func:`gecko.encoder.resolve_model`.
        folder: made; must not hold anything.
        target: which graph.
        int8: weights in 8 bits with a scale a row (OpenVINO) or a block (ONNX), activations by token at run time, so
            that a text's vector does not depend on the texts it is run with.
        side: of a model of two towers, the one that is written.

    Raises:
        ConfigError: the folder is not empty, the model is no plain transformer, an optional package is missing, or what was
            written does not give the model's vectors.
    """
    folder = folder_of(folder)
    one_of("target", target, get_args(Target))
    refuse_full(folder)
    require(target, writes=True, int8=int8)
    encoder = load_plain(spec, side)
    model = encoder.model
    prompts, default_prompt = saved_prompts(model)
    card = ExportCard(
        target=target,
        int8=int8,
        source=encoder.identity,
        form=encoder.form,
        prompts=prompts,
        default_prompt=default_prompt,
        dim=encoder.dim,
        max_tokens=window_of(model),
        padding=model.tokenizer.pad_token_id or 0,
    )
    with made_aside(folder) as aside:
        aside.mkdir()
        with quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of every shape that is compared
            _write_graph(encoder, aside, card)
        (aside / "tokenizer.json").write_text(written_tokenizer(model, card.max_tokens), encoding="utf-8")
        write_json(aside / CARD, asdict(card))
        _check(encoder, aside, card)
    return card


def refuse_full(folder: Path) -> None:
    """Refuse a folder that an export cannot become. Raises ConfigError: it is a file, or not empty."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; give a new folder")


def load_plain(spec: str | os.PathLike[str], side: Side | None = None) -> Encoder:
    """A model that can be exported, in float32 on the CPU; of one of two towers that of ``side``.

    Raises ConfigError: it is no plain transformer, or has two towers and none is named, or one and one is named.
    """
    encoder = load_encoder(spec_of(spec), bf16=False)
    encoder.model.cpu()
    if has_two_towers(encoder.model) and side is None:
        raise ConfigError(
            f"model {encoder.spec!r} has a tower for queries and one for passages, and an export holds one: name it with "
            "--tower query or --tower document (that of the passages is the start model)"
        )
    if side is not None:
        if not has_two_towers(encoder.model):
            raise ConfigError(f"--tower {side}: model {encoder.spec!r} has one tower; leave it out")
        one, identity = tower(encoder.model, side), digest(encoder.identity, side)
        encoder = Encoder(one, encoder.form, spec=encoder.spec, identity=identity, bf16=False)
    if not is_plain(encoder.model):
        raise ConfigError(
            f"model {encoder.spec!r} is no plain transformer (text in, one vector out), which alone can be exported"
        )
    return encoder


def read_card(folder: Path) -> ExportCard:
    """What the folder of an exported model says of itself.

    Raises ConfigError: it was written by another version, or is damaged.
    """
    raw = read_json(folder / CARD)
    try:
        card = ExportCard(**raw)
    except TypeError as error:
        raise ConfigError(f"{folder / CARD} is damaged ({error}); export the model again") from error
    if card.layout != LAYOUT:
        raise ConfigError(
            f"{folder / CARD} has layout {card.layout}, this version reads {LAYOUT}; export the model again"
        )
    return card


def require(target: Target, *, writes: bool = False, int8: bool = False) -> None:
    """Refuse early, and say what to install, where a package that a graph needs is missing: a ConfigError.

    It is to be read, or written, perhaps in 8 bits.
    """
    needed: dict[Target, tuple[str, ...]] = {
        "onnx": ("onnxruntime", *(("onnx",) if writes else ()), *(("onnx_ir",) if int8 else ())),
        "openvino": ("openvino", *(("nncf",) if int8 else ())),
    }
    refuse_missing(target, needed[target], "openvino")


def refuse_missing(target: str, needed: Sequence[str], extra: str) -> None:
    """Refuse early, and say what to install. Raises ConfigError: a package is missing."""
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"{target} needs {', '.join(missing)}; install with: pip install 'gecko-embed[{extra}]'")


def graph_backend(folder: Path, card: ExportCard) -> "GraphBackend":
    """The backend of an exported folder. Raises ConfigError: a package that it needs is missing."""
    match card.target:
        case "onnx":
            return OnnxBackend(folder, card)
        case "openvino":
            return OpenvinoBackend(folder, card)
        case _:
            assert_never(card.target)


class GraphBackend(ABC):
    """What the two backends share: padded batches in, unit vectors out."""

    def __init__(self, card: ExportCard) -> None:
        self.precision = "int8" if card.int8 else "float32"
        self.batch_tokens = CPU_BATCH_TOKENS
        self._padding = card.padding

    def __call__(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """See :class:`gecko.encoder.backend.Backend`."""
        return self.run(*pad(rows, self._padding))

    @abstractmethod
    def run(self, ids: np.ndarray, mask: np.ndarray) -> Vectors:
        """The graph's vectors, float32 (B, D), of padded rows (B, T) and their mask."""


class OnnxBackend(GraphBackend):
    """An exported graph in onnxruntime."""

    def __init__(self, folder: Path, card: ExportCard) -> None:
        super().__init__(card)
        require("onnx")
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def run(self, ids: np.ndarray, mask: np.ndarray) -> Vectors:
        """See :class:`GraphBackend`."""
        vectors: Vectors = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return vectors


class OpenvinoBackend(GraphBackend):
    """An exported graph in OpenVINO; a request of its own for every call, so that threads do not meet."""

    def __init__(self, folder: Path, card: ExportCard) -> None:
        super().__init__(card)
        require("openvino")
        import openvino
        import torch

        half = has_fast_bfloat16("cpu") and card.int8
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
        }
        if card.int8:
            # A scale for so many columns of a token. A number above the matrix' width turns int8 products off.
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(card.dim)
        self._model = openvino.Core().compile_model(str(folder / "model.xml"), "CPU", settings)

    def run(self, ids: np.ndarray, mask: np.ndarray) -> Vectors:
        """See :class:`GraphBackend`."""
        result = self._model.create_infer_request().infer({"input_ids": ids, "attention_mask": mask})
        vectors: Vectors = np.array(result[0], dtype=np.float32)
        return vectors


def _write_graph(encoder: Encoder, folder: Path, card: ExportCard) -> None:
    import torch

    whole = _whole(encoder)
    ids = torch.tensor([[card.padding + 1] * 7, [card.padding + 1] * 4 + [card.padding] * 3])  # (2, 7)
    mask = (torch.arange(7) < torch.tensor([[7], [4]])).long()
    with torch.inference_mode():
        match card.target:
            case "onnx":
                _write_onnx(whole, ids, mask, folder, int8=card.int8)
            case "openvino":
                _write_openvino(whole, ids, mask, folder, int8=card.int8)
            case _:
                assert_never(card.target)


def _whole(encoder: Encoder) -> "torch.nn.Module":
    """All modules of the model as one: tensors in, a unit vector out."""
    import torch
    from torch.nn.functional import normalize

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = torch.nn.ModuleList(encoder.model)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "modality": "text"}
            for stage in self.stages:
                features = stage(features)
            return normalize(features["sentence_embedding"].float(), dim=1)

    return Whole().eval()


def _write_onnx(
    whole: "torch.nn.Module", ids: "torch.Tensor", mask: "torch.Tensor", folder: Path, *, int8: bool
) -> None:
    import torch

    axes = {0: "batch", 1: "tokens"}
    torch.onnx.export(
        whole,
        (ids, mask),
        str(folder / "model.onnx"),
        input_names=["input_ids", "attention_mask"],
        output_names=["sentence_embedding"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "sentence_embedding": {0: "batch"}},
        opset_version=17,
        dynamo=False,  # the other exporter fixes the shapes that these models compare
    )
    if int8:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            MatMulNBitsQuantizer,
        )

        config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, accuracy_level=4, bits=8)
        quantizer = MatMulNBitsQuantizer(onnx.load(str(folder / "model.onnx")), algo_config=config)
        quantizer.process()
        quantizer.model.save_model_to_file(str(folder / "model.onnx"), False)


def _write_openvino(
    whole: "torch.nn.Module", ids: "torch.Tensor", mask: "torch.Tensor", folder: Path, *, int8: bool
) -> None:
    import openvino

    graph = openvino.convert_model(whole, example_input={"input_ids": ids, "attention_mask": mask})
    for node in graph.inputs:
        node.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    graph.outputs[0].get_tensor().set_names({"sentence_embedding"})
    graph.validate_nodes_and_infer_types()
    if int8:
        import nncf

        nncf.set_log_level(logging.ERROR)
        graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(graph, str(folder / "model.xml"), compress_to_fp16=False)


def _check(encoder: Encoder, folder: Path, card: ExportCard) -> None:
    """Compare what the written files give, read as by a program that knows nothing else, with the model's vectors."""
    from tokenizers import Tokenizer

    texts = [*CHECKED, " ".join(CHECKED) * (1 + (card.max_tokens or 0) // 100)]
    cut = {} if card.max_tokens is None else {"truncation": True, "max_length": card.max_tokens}
    rows: list[list[int]] = [encoder.model.tokenizer(text, **cut)["input_ids"] for text in texts]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if [tokenizer.encode(text).ids for text in texts] != rows:
        raise ConfigError(
            f"the tokenizer that was written makes other tokens of a text than {encoder.spec} does; nothing was written"
        )
    chosen = [place for place, row in enumerate(rows) if 0 < len(row) <= MOST_CHECKED]
    together = tokenizer.encode_batch([texts[place] for place in chosen])
    ids, _ = pad([row.ids for row in together], card.padding)
    mask, _ = pad([row.attention_mask for row in together], 0)
    expected = TorchBackend(encoder.model, "float32")([rows[place] for place in chosen])
    got = graph_backend(folder, card).run(ids, mask)
    cosine = float((expected * got).sum(axis=1).min())
    if not cosine >= MIN_COSINE[card.int8]:
        raise ConfigError(
            f"the {card.target} graph of {encoder.spec} gives other vectors than the model (cosine {cosine:.4f}, at "
            f"least {MIN_COSINE[card.int8]} is needed); nothing was written"
        )
