"""A plain model's tokenizer as it is used here, and as it is written for readers of the file alone.

A file from a hub often cuts and pads to a length that its makers once used; sentence-transformers sets both anew, and who
reads the file alone does not.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer


def own_tokenizer(saved: str, max_tokens: int | None) -> "Tokenizer":
    """A tokenizer, of what :func:`written_tokenizer` gives, that cuts to the model's window and does not pad."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(saved)
    tokenizer.no_padding()
    _cut_to(tokenizer, max_tokens, (tokenizer.truncation or {}).get("direction", "right"))
    return tokenizer


def written_tokenizer(model: "SentenceTransformer", max_tokens: int | None) -> str:
    """The tokenizer of a model, which cuts to the window and pads texts to the longest, on the right, as JSON."""
    from tokenizers import Tokenizer

    return _set(Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str()), model, max_tokens, "right").to_str()


def mend_tokenizer(file: Path, model: "SentenceTransformer", max_tokens: int | None) -> None:
    """Have the saved tokenizer of a model be as sentence-transformers uses it, where it was saved before it was used."""
    from tokenizers import Tokenizer

    if not file.exists() or getattr(model.tokenizer, "pad_token", None) is None:
        return
    tokenizer = Tokenizer.from_file(str(file))
    before = tokenizer.truncation, tokenizer.padding
    _set(tokenizer, model, max_tokens, model.tokenizer.padding_side)
    if (tokenizer.truncation, tokenizer.padding) != before:
        tokenizer.save(str(file))


def _set(
    tokenizer: "Tokenizer", model: "SentenceTransformer", max_tokens: int | None, padding_side: str
) -> "Tokenizer":
    its = model.tokenizer
    _cut_to(tokenizer, max_tokens, its.truncation_side)
    if its.pad_token is not None:
        tokenizer.enable_padding(
            direction=padding_side, pad_id=its.pad_token_id, pad_type_id=its.pad_token_type_id, pad_token=its.pad_token
        )
    return tokenizer


def _cut_to(tokenizer: "Tokenizer", max_tokens: int | None, side: str) -> None:
    tokenizer.no_truncation()
    if max_tokens is not None:
        tokenizer.enable_truncation(max_length=max_tokens, direction=side)
