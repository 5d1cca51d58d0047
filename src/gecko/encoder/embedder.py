"""A model ready for use: texts and what they are for go in, vectors come out.

What is notable here:

* a task is a name of Google's embedding API, of the paper, or a description; the model's own input form turns it into text
* preparing (rendering and tokenising) and running are two steps, so that a server can batch across requests by tokens
* everything is fixed when the model is loaded, so that any number of threads may use it
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gecko import formats
from gecko.encoder.encoder import (
    Encoder,
    Vectors,
    encode_texts,
    load_encoder,
    running_bar,
    token_batches,
    window_of,
)
from gecko.encoder.engine import Engine, Precision, is_plain, saved_prompts, torch_engine
from gecko.encoder.export import CARD
from gecko.encoder.vectors import Output, Packed, encode_output, shorten
from gecko.errors import ConfigError
from gecko.formats import InputFormat, Task, find_task
from gecko.records import Passage, Text
from gecko.store import digest, tree_sha256

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WINDOW = 2048  # texts tokenised at once


@dataclass(frozen=True, slots=True)
class Prepared:
    """A text as the model will read it.

    Attributes:
        tokens: how many tokens are read, after cutting to the model's window.
        ids: the tokens; none where the model's own code has to read the text.
        text: the rendered text, without ``prompt``.
        prompt: what the model's makers put in front of it.
        side: told to models that treat queries and documents differently.
    """

    tokens: int
    ids: tuple[int, ...] | None
    text: str
    prompt: str
    side: Literal["query", "document"]


class Embedder:
    """Turns texts into vectors. Safe to use from several threads.

    Args:
        encoder: the model with its input form. Its weights are read here; later changes to it are not seen.
        precision: how the transformer computes; ``auto`` is the fastest that this machine has and that keeps the
            ranking (``docs/using.md``).

    Attributes:
        form: the text form it reads.
        dim: dimensions of its vectors.
        max_tokens: the model's window in tokens; longer texts are cut. None: no limit.
        spec: where it came from.
        identity: hash of the model.

    Raises:
        ConfigError: the model cannot run in this precision here.
    """

    def __init__(self, encoder: Encoder, precision: Precision = "auto") -> None:
        model = encoder.model
        self.form: InputFormat = encoder.form
        self.spec = encoder.spec
        self.identity = encoder.identity
        self.dim = encoder.dim
        self.max_tokens = window_of(model)
        self._prompts, self._default_prompt = saved_prompts(model)
        self._encoder: Encoder | None = encoder
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._tokenizer: Tokenizer | None = None
        if is_plain(model):
            self._engine = torch_engine(model, precision)
            self._tokenizer = _own_tokenizer(model.tokenizer.backend_tokenizer.to_str(), self.max_tokens)
        elif precision not in ("auto", "float32"):
            raise ConfigError(f"precision {precision!r}: model {self.spec!r} is no plain transformer; give float32")

    @classmethod
    def of_export(cls, folder: Path, spec: str = "") -> "Embedder":
        """The embedder of a folder that :func:`gecko.encoder.export.export_model` wrote.

        Raises:
            ConfigError: the folder is damaged, or a package that it needs is missing.
        """
        from gecko.encoder.export import graph_engine, read_card

        card = read_card(folder)
        self = cls.__new__(cls)
        self.form, self.dim, self.max_tokens = card.form, card.dim, card.max_tokens
        self.spec, self.identity = spec or str(folder), digest("export", tree_sha256(folder))
        self._prompts, self._default_prompt = card.prompts, card.default_prompt
        self._encoder, self._lock = None, threading.Lock()
        self._engine = graph_engine(folder, card)
        self._tokenizer = _own_tokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"), card.max_tokens)
        return self

    @property
    def precision(self) -> str:
        """How the transformer computes: ``float32``, ``bfloat16`` or ``int8``."""
        return self._engine.precision if self._engine is not None else "float32"

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        task: str = "RETRIEVAL_DOCUMENT",
        title: str | Sequence[str] | None = None,
        dim: int | None = None,
        output: Output = "float32",
        progress: bool = False,
    ) -> Packed:
        """Embed texts.

        Args:
            texts: n texts, raw; or one, for one vector.
            task: what the vectors are for, see :func:`gecko.formats.find_task`.
            title: one title for all, or n of them; only for RETRIEVAL_DOCUMENT.
            dim: keep the first ``dim`` dimensions and bring the vectors back to unit length (Matryoshka).
            output: ``float32``; ``int8``; ``binary``, one bit a dimension.
            progress: show a bar when it takes long.

        Returns:
            (n, dim), or (dim,) for one text, in the order of ``texts``: float32 unit rows; int8, each row scaled by its
            largest entry; or uint8 (n, dim / 8), the sign bits. Compare int8 by cosine, bits by Hamming distance.

        Raises:
            ConfigError: the task, title, dimension or output does not fit, or a text is no valid string.
        """
        one = isinstance(texts, str)
        rows: Sequence[str] = [texts] if isinstance(texts, str) else texts
        found = find_task(task)
        titles = _titles(title, len(rows), found)
        result = self._embed_rows(rows, titles, [found] * len(rows), dim, output, progress)
        return result[0] if one else result

    def queries(self, texts: Sequence[str], tasks: Sequence[str] | str = "", *, progress: bool = False) -> Vectors:
        """Embed queries, as :meth:`gecko.encoder.Encoder.queries` does; float32 (n, dim), unit rows."""
        each = [tasks] * len(texts) if isinstance(tasks, str) else tasks
        found = [Task("", task, own_prompts=("query",)) for task in each]
        return self._embed_rows(texts, [""] * len(texts), found, None, "float32", progress)

    def passages(self, items: Sequence[Passage | Text], *, progress: bool = False) -> Vectors:
        """Embed passages, as :meth:`gecko.encoder.Encoder.passages` does; float32 (n, dim), unit rows."""
        task = formats.TASKS["RETRIEVAL_DOCUMENT"]
        texts, titles = [item.text for item in items], [item.title for item in items]
        return self._embed_rows(texts, titles, [task] * len(items), None, "float32", progress)

    def prepare(
        self,
        texts: Sequence[str],
        *,
        task: str = "RETRIEVAL_DOCUMENT",
        title: str | Sequence[str] | None = None,
    ) -> list[Prepared]:
        """Render and tokenise texts; the first half of :meth:`embed`. Arguments and errors are the same."""
        found = find_task(task)
        titles = _titles(title, len(texts), found)
        check_texts(texts)
        check_texts(titles, "title")
        return self._prepare(texts, titles, [found] * len(texts))

    def run(self, items: Sequence[Prepared]) -> Vectors:
        """Run the model on prepared texts, in batches of equal work; the second half of :meth:`embed`.

        Texts of different tasks, titles and requests may be mixed: no text's vector depends on its neighbours by more
        than rounding (``docs/using.md`` gives the measured bound).

        Returns:
            float32 (n, dim), unit rows, all dimensions; :func:`gecko.encoder.shorten` cuts them.
        """
        result = np.empty((len(items), self.dim), dtype=np.float32)
        if self._engine is None:
            self._run_generic(items, result)
            return result
        order = sorted(range(len(items)), key=lambda row: -items[row].tokens)
        for rows in token_batches([items[row].tokens for row in order], self._engine.batch_tokens):
            chosen = order[rows]
            result[chosen] = shorten(self._engine([items[row].ids or () for row in chosen]), self.dim)
        return result

    def finish(self, vectors: Vectors, dim: int | None = None, output: Output = "float32") -> Packed:
        """Cut what :meth:`run` returned to ``dim`` dimensions, and give it the form of ``output``."""
        return encode_output(shorten(vectors, self._checked(dim)), output)

    def _checked(self, dim: int | None) -> int:
        if dim is not None and not 1 <= dim <= self.dim:
            raise ConfigError(f"dim = {dim}: model {self.spec!r} has {self.dim} dimensions; give 1 to {self.dim}")
        return self.dim if dim is None else dim

    def _embed_rows(
        self,
        texts: Sequence[str],
        titles: Sequence[str],
        tasks: Sequence[Task],
        dim: int | None,
        output: Output,
        progress: bool,
    ) -> Packed:
        result = encode_output(np.ones((0, self._checked(dim)), dtype=np.float32), output)
        result = np.empty((len(texts), result.shape[1]), dtype=result.dtype)
        check_texts(texts)
        check_texts(titles, "title")
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))  # longest first: an honest time to go
        with running_bar(sum(map(len, texts)), progress) as advance:
            for start in range(0, len(order), WINDOW):
                window = order[start : start + WINDOW]
                items = self._prepare(
                    [texts[row] for row in window],
                    [titles[row] for row in window],
                    [tasks[row] for row in window],
                    count=self._engine is not None,  # without one nobody asks
                )
                result[window] = self.finish(self.run(items), dim, output)
                advance(sum(len(texts[row]) for row in window))
        return result

    def _prepare(
        self, texts: Sequence[str], titles: Sequence[str], tasks: Sequence[Task], *, count: bool = True
    ) -> list[Prepared]:
        prompts = [self._own_prompt(task) for task in tasks]
        rendered = [
            formats.render_passage(Text("", title, text), self.form)
            if task.side == "document"
            else formats.render_query(text, task.text, self.form)
            for text, title, task in zip(texts, titles, tasks, strict=True)
        ]
        whole = [prompt + text for prompt, text in zip(prompts, rendered, strict=True)]
        tokens = self._tokenise(whole) if count else [(0, None)] * len(whole)
        return [
            Prepared(number, ids, text, prompt, task.side)
            for (number, ids), text, prompt, task in zip(tokens, rendered, prompts, tasks, strict=True)
        ]

    def _own_prompt(self, task: Task) -> str:
        if self.form == "unified":
            return ""
        # A model's default prompt is of texts in general: what retrieval puts in front is a query's or a document's own.
        retrieval = task.side == "document" or "query" in task.own_prompts
        return formats.first_prompt(self._prompts, task.own_prompts, "" if retrieval else self._default_prompt)

    def _tokenise(self, texts: list[str]) -> list[tuple[int, tuple[int, ...] | None]]:
        """(number of tokens, the tokens) of each text."""
        if self._tokenizer is not None:
            encodings = self._tokenizer.encode_batch_fast(texts)
            return [(len(encoding), tuple(encoding.ids)) for encoding in encodings]
        counts: list[tuple[int, tuple[int, ...] | None]] = []
        assert self._encoder is not None
        with self._lock:
            for text in texts:  # one at a time: without padding, every form of features can be counted
                features = self._encoder.model.preprocess([text])
                counts.append((int(features["input_ids"].numel()) if "input_ids" in features else 0, None))
        return counts

    def _run_generic(self, items: Sequence[Prepared], result: Vectors) -> None:
        assert self._encoder is not None
        groups: dict[tuple[str, Literal["query", "document"]], list[int]] = {}
        for row, item in enumerate(items):
            groups.setdefault((item.prompt, item.side), []).append(row)
        with self._lock:
            for (prompt, side), rows in groups.items():
                texts = [items[row].text for row in rows]
                result[rows] = encode_texts(self._encoder.model, texts, self.dim, prompt=prompt, side=side)


def load(
    spec: str, *, precision: Precision = "auto", form: InputFormat | None = None, max_tokens: int | None = None
) -> Embedder:
    """Load a model for use.

    Args:
        spec: ``minilm``, a folder that sentence-transformers can read or that ``gecko export`` wrote, or ``hf:NAME``.
        precision: see :class:`Embedder`; an exported model has the one it was exported in.
        form: the text form it reads; none: as its saved prompts say.
        max_tokens: its window in tokens; none: as saved.

    Raises:
        ConfigError: it cannot be found, loaded, or run in this precision.
    """
    folder = Path(spec).expanduser()
    if (folder / CARD).is_file():
        if form is not None or max_tokens is not None or precision != "auto":
            raise ConfigError(
                f"{spec} is an exported model, whose precision, form and window are fixed; give none of them"
            )
        return Embedder.of_export(folder, spec)
    return Embedder(load_encoder(spec, form=form, max_tokens=max_tokens, bf16=False), precision)


def _titles(title: str | Sequence[str] | None, count: int, task: Task) -> Sequence[str]:
    if title is not None and task.side != "document":
        raise ConfigError(f"title: only texts of the task RETRIEVAL_DOCUMENT have one, not {task.name or task.text}")
    if title is None or isinstance(title, str):
        return [title or ""] * count
    if len(title) != count:
        raise ConfigError(f"{count} texts but {len(title)} titles; give one title for all, or one a text")
    return title


def check_texts(texts: Sequence[Any], what: str = "text") -> None:
    """Refuse what is no string, or cannot be written in UTF-8.

    Raises:
        ConfigError: it names the first one, counted from 1.
    """
    for place, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise ConfigError(f"{what} {place} is a {type(text).__name__}, not a string: {text!r:.80}")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ConfigError(f"{what} {place} holds half of a surrogate pair, which is no character") from error


def _own_tokenizer(saved: str, max_tokens: int | None) -> "Tokenizer":
    """A tokenizer that cuts to the model's window and does not pad; nothing changes it afterwards."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(saved)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if max_tokens is not None:
        tokenizer.enable_truncation(max_length=max_tokens)
    return tokenizer
