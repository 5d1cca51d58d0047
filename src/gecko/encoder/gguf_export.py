"""A BERT-like model as a GGUF file for llama.cpp and Ollama: ``gecko export --to gguf``.

::

    OUT/model.gguf     weights, WordPiece vocabulary, pooling, window, and the model's prompts
    OUT/Modelfile      for ``ollama create``
    OUT/README.md      how texts are to be prepared

The names of tensors and keys are those of llama.cpp's own converter (``convert_hf_to_gguf.py``, class BertModel). Before the
folder appears, the file's vectors by llama.cpp (``xllamacpp``) are compared with the model's.
"""

import json
import os
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from gecko.core.arguments import folder_of, one_of
from gecko.core.errors import ConfigError
from gecko.core.files import CARD, made_aside, write_bytes
from gecko.core.progress import quiet_libraries
from gecko.encoder.backend import TorchBackend, saved_prompts
from gecko.encoder.encoder import Encoder
from gecko.encoder.export import CHECKED, load_plain, refuse_full, refuse_missing
from gecko.encoder.save import window_of
from gecko.encoder.towers import Side
from gecko.encoder.vectors import Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Quantize = Literal["f16", "q8_0"]
FILE, MODELFILE = "model.gguf", "Modelfile"
MIN_COSINE = {"f16": 0.999, "q8_0": 0.995}  # to the float32 vectors
SECONDS = 600  # in which llama.cpp has to embed the compared texts
_POOLING = {"mean": "MEAN", "cls": "CLS"}
_SINGLE = ("LayerNorm", "token_type", "position")  # kept in float32, as llama.cpp's converter does


@dataclass(frozen=True)
class GgufCard:
    """What was written."""

    quantize: Quantize
    dim: int
    max_tokens: int
    pooling: str
    cosine: float


def export_gguf(
    spec: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    quantize: Quantize = "f16",
    *,
    side: Side | None = None,
) -> GgufCard:
    """Write a model (a SPEC) into a new folder, and check that llama.cpp gives the model's vectors.

    Of a model of two towers it is that of ``side``. Raises ConfigError: the folder is not empty, the model is of another
    architecture, a package is missing, or the file does not give the model's vectors.
    """
    folder = folder_of(folder)
    one_of("quantize", quantize, get_args(Quantize))
    refuse_full(folder)
    refuse_missing("gguf", ("gguf", "xllamacpp"), "gguf")
    encoder = load_plain(spec, side)
    pooling = _pooling_of(encoder)
    window = min(window_of(encoder.model) or 1 << 31, _bert(encoder.model).config.max_position_embeddings)
    with made_aside(folder) as aside:
        aside.mkdir()
        _write_file(encoder, aside / FILE, quantize, pooling, window)
        with quiet_libraries():  # they warn of texts that are longer than the window
            cosine = _compare(encoder, aside / FILE, window)
        if not cosine >= MIN_COSINE[quantize]:
            mend = "use --quantize f16" if quantize == "q8_0" else "use --to onnx"
            raise ConfigError(
                f"the {quantize} GGUF file of {encoder.spec} gives other vectors in llama.cpp than the model (cosine "
                f"{cosine:.4f}, at least {MIN_COSINE[quantize]} is needed); nothing was written; {mend}"
            )
        card = GgufCard(quantize, encoder.dim, window, pooling, cosine)
        write_bytes(aside / MODELFILE, f"FROM ./{FILE}\nPARAMETER num_ctx {window}\n".encode())
        write_bytes(aside / CARD, _readme(encoder, card).encode())
    return card


def _bert(model: "SentenceTransformer") -> Any:
    return model[0].auto_model


def _pooling_of(encoder: Encoder) -> str:
    """How the model makes one vector of many. Raises ConfigError: it is nothing that llama.cpp runs as BERT."""
    model, spec = encoder.model, encoder.spec
    kind = _bert(model).config.model_type
    if kind != "bert":
        raise ConfigError(
            f"model {spec!r} is of the architecture {kind!r}; only 'bert' can be exported to gguf; use --to onnx"
        )
    names = [type(module).__name__ for module in model]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ConfigError(
            f"model {spec!r} has the modules {', '.join(names)}; gguf holds Transformer and Pooling only; use --to onnx"
        )
    pooling: Any = model[1]
    named = pooling.get_config_dict().get("pooling_mode")
    modes: set[str] = {named} if isinstance(named, str) else set(named or ())
    if len(modes) != 1 or not modes <= _POOLING.keys():
        raise ConfigError(
            f"model {spec!r} pools by {', '.join(sorted(modes))}; gguf knows {', '.join(_POOLING)}; use --to onnx"
        )
    config = _bert(model).config
    if getattr(config, "position_embedding_type", "absolute") != "absolute" or config.hidden_act != "gelu":
        raise ConfigError(
            f"model {spec!r} has positions or an activation ({config.hidden_act}) that llama.cpp's BERT lacks; use --to onnx"
        )
    return modes.pop()


def _write_file(encoder: Encoder, file: Path, quantize: Quantize, pooling: str, window: int) -> None:
    import gguf

    model, config = encoder.model, _bert(encoder.model).config
    writer = gguf.GGUFWriter(str(file), gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.BERT])
    writer.add_name(Path(encoder.spec).name)
    writer.add_context_length(window)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType[_POOLING[pooling]])
    q8 = quantize == "q8_0"
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if q8 else gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_vocabulary(writer, encoder)
    prompts, default = saved_prompts(model)
    writer.add_bool("gecko.normalize", True)
    writer.add_string("gecko.source", encoder.identity)
    for role, text in {**prompts, "default": default}.items():
        writer.add_string(f"gecko.prompt.{role}", text)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config.num_hidden_layers)
    for key, tensor in _bert(model).state_dict().items():
        if key.startswith("pooler.") or key.endswith("position_ids"):
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ConfigError(
                f"model {encoder.spec!r} has the weights {key}, which llama.cpp's BERT has not; use --to onnx"
            )
        data = tensor.float().numpy()
        data = data[:window] if "position_embeddings" in key else data
        if data.ndim == 1 or any(part in key for part in _SINGLE):
            writer.add_tensor(name, np.ascontiguousarray(data))
        elif q8 and data.shape[-1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, encoder: Encoder) -> None:
    """WordPiece as llama.cpp reads it: a piece that begins a word has a mark, one within a word has none."""
    import gguf

    tokenizer, config = encoder.model.tokenizer, _bert(encoder.model).config
    kind = json.loads(tokenizer.backend_tokenizer.to_str())
    if kind["model"]["type"] != "WordPiece":
        raise ConfigError(
            f"model {encoder.spec!r} splits texts by {kind['model']['type']}; gguf is written for WordPiece; use --to onnx"
        )
    special = set(tokenizer.all_special_ids)
    by_place = {place: token for token, place in tokenizer.get_vocab().items()}
    tokens, kinds = [], []
    for place in range(config.vocab_size):
        token = by_place.get(place, f"[PAD{place}]")
        whole = place in special or place not in by_place
        kinds.append(
            gguf.TokenType.CONTROL if place in special else gguf.TokenType.UNUSED if whole else gguf.TokenType.NORMAL
        )
        tokens.append(token if whole else token[2:] if token.startswith("##") else f"\u2581{token}")
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_type_count(config.type_vocab_size)
    writer.add_bos_token_id(tokenizer.cls_token_id)
    writer.add_sep_token_id(tokenizer.sep_token_id)
    writer.add_eos_token_id(tokenizer.sep_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.mask_token_id is not None:
        writer.add_mask_token_id(tokenizer.mask_token_id)


def _compare(encoder: Encoder, file: Path, window: int) -> float:
    """The least cosine of llama.cpp's vectors to the model's: of short texts and one that fills the window."""
    tokenizer = encoder.model.tokenizer

    def fits(text: str) -> bool:
        return bool(text) and len(tokenizer(text)["input_ids"]) <= window

    words = " ".join(CHECKED).split() * (1 + window // 50)
    longest = bisect_left(range(len(words)), True, key=lambda count: not fits(" ".join(words[: count + 1])))
    chosen = [text for text in (*CHECKED, " ".join(words[:longest])) if fits(text)]
    rows = [tokenizer(text)["input_ids"] for text in chosen]
    got = llama_vectors(file, chosen, window)
    expected = TorchBackend(encoder.model, "float32")(rows)
    return float((expected * got).sum(axis=1).min())


_CODE = """
import json, sys
import xllamacpp
asked = json.load(sys.stdin)
params = xllamacpp.CommonParams()
params.model.path = asked["file"]
params.embedding = True
params.n_parallel = 1
params.n_gpu_layers = 0
params.n_ctx = params.n_batch = params.n_ubatch = asked["window"]
params.cpuparams.n_threads = asked["threads"]
params.warmup = False
server = xllamacpp.Server(params)
rows = [server.handle_embeddings({"input": text})["data"][0]["embedding"] for text in asked["texts"]]
with open(asked["out"], "w") as file:
    json.dump(rows, file)
"""


def llama_vectors(file: Path, texts: Sequence[str], window: int) -> Vectors:
    """Unit vectors, float32 (n, dim), of n texts of at most ``window`` tokens by llama.cpp, in a process of its own.

    It ends its process where a file is wrong. Raises ConfigError: it cannot read the file.
    """
    import torch

    out = file.with_suffix(".json")
    asked = {"file": str(file), "texts": texts, "window": window, "threads": torch.get_num_threads(), "out": str(out)}
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode or not out.exists():
        said = [line for line in done.stderr.splitlines() if line.strip()][-3:]
        raise ConfigError(f"llama.cpp cannot use {file.name} ({' '.join(said)}); nothing was written; use --to onnx")
    vectors: Vectors = np.array(json.loads(out.read_text()), dtype=np.float32)
    out.unlink()
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _readme(encoder: Encoder, card: GgufCard) -> str:
    prompts, default = saved_prompts(encoder.model)
    rows = "".join(
        f"| {name} | `{text}` |\n" for name, text in {**prompts, **({"default": default} if default else {})}.items()
    )
    before = (
        f"Put the prompt before each text yourself: llama.cpp and Ollama do not.\n\n| for | prompt |\n|---|---|\n{rows}"
        if rows
        else "Texts need no prompt.\n"
    )
    return (
        f"# A GGUF file for llama.cpp and Ollama\n\nWritten by `gecko export --to gguf`: {card.dim} dimensions, "
        f"{card.pooling} pooling, {card.quantize}, at most {card.max_tokens} tokens a text.\n"
        "llama.cpp's server refuses a longer text, and Ollama cuts it.\n"
        "A word of more than 100 characters is one unknown token to the model, and several pieces to llama.cpp.\n"
        "Vectors are compared by cosine; llama.cpp's server and Ollama return them at length 1.\n"
        f"Against the model's float32 vectors the least cosine of the compared texts is {card.cosine:.5f}.\n{before}\n"
        f"```\nllama-server -m {FILE} --embedding --ubatch-size {card.max_tokens}\n"
        f"ollama create NAME -f {MODELFILE}\n```\n"
    )
