"""A model ready for use: texts and what they are for go in, vectors come out.

What is notable here:

* a task is a name of Google's embedding API, of the paper, or a description; the model's own input form turns it into text
* preparing (rendering and tokenising) and running are two steps, so that a server can batch across requests by tokens
* everything is fixed when the model is loaded, so that any number of threads may use it
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from gecko.core import formats
from gecko.core.arguments import (
    dim_of,
    folder_of,
    form_of,
    in_order,
    one_of,
    passages_of,
    spec_of,
    strings,
    strings_for,
)
from gecko.core.errors import ConfigError
from gecko.core.files import digest, tree_sha256
from gecko.core.formats import InputFormat, Task, find_task
from gecko.core.records import Passage, Text
from gecko.encoder.backend import Backend, Precision, is_plain, saved_prompts, torch_backend
from gecko.encoder.encode import embedding_bar, encode_texts, token_batches
from gecko.encoder.encoder import Encoder, load_encoder
from gecko.encoder.forked import Lock, survives_fork
from gecko.encoder.save import window_of
from gecko.encoder.spec import CARD
from gecko.encoder.tokens import own_tokenizer, written_tokenizer
from gecko.encoder.towers import SIDES, Side, has_two_towers, tower
from gecko.encoder.vectors import Output, Packed, Vectors, encode_output, refuse_not_finite, shorten
from gecko.run.engine import another_model, anywhere

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
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
    """Turns texts into vectors. Safe to use from several threads, and in a child of fork.

    One that :func:`load` made can be pickled: by its SPEC, of which the other process loads the same model, once.

    Args:
        encoder: the model with its input form. Its weights are read here; later changes to it are not seen.
        precision: how the transformer computes; ``auto`` is the fastest that this machine has and that keeps the
            ranking (``docs/how-to/use-the-model.md``).

    Attributes:
        form: the text form it reads.
        dim: dimensions of its vectors.
        max_tokens: the model's window in tokens; longer texts are cut. None: no limit.
        spec: where it came from.
        identity: hash of the model.
        passage_identity: what its passage vectors are known by: of a model of two towers, the hash of the model that made
            the one of the passages.

    Raises:
        ConfigError: the model cannot run in this precision here.
    """

    @survives_fork
    def __init__(self, encoder: Encoder, precision: Precision = "auto") -> None:
        one_of("precision", precision, get_args(Precision))
        model = encoder.model
        self.form: InputFormat = encoder.form
        self.spec = encoder.spec
        self.identity = encoder.identity
        self.passage_identity = encoder.passage_identity
        self.dim = encoder.dim
        self.max_tokens = window_of(model)
        self._prompts, self._default_prompt = saved_prompts(model)
        self._encoder: Encoder | None = encoder
        self._lock = Lock()
        self._made: _Made | None = None
        self._sides: dict[Side, _Tower] = {}
        towers = {side: tower(model, side) for side in (SIDES if has_two_towers(model) else SIDES[:1])}
        if all(map(is_plain, towers.values())):
            made = {side: _Tower.of(one, self.max_tokens, precision) for side, one in towers.items()}
            self._sides = {side: made.get(side, made[SIDES[0]]) for side in SIDES}
        elif precision not in ("auto", "float32"):
            raise ConfigError(f"precision {precision!r}: model {self.spec!r} is no plain transformer; give float32")

    @classmethod
    def of_export(cls, folder: str | os.PathLike[str], spec: str = "") -> "Embedder":
        """The embedder of a folder that :func:`gecko.encoder.export.export_model` wrote.

        Raises:
            ConfigError: the folder is damaged, or a package that it needs is missing.
        """
        from gecko.encoder.export import graph_backend, read_card

        folder = folder_of(folder)
        card = read_card(folder)
        self = cls.__new__(cls)
        self.form, self.dim, self.max_tokens = card.form, card.dim, card.max_tokens
        self.spec, self.identity = spec or str(folder), digest("export", tree_sha256(folder))
        self.passage_identity = self.identity
        self._prompts, self._default_prompt = card.prompts, card.default_prompt
        self._encoder, self._lock = None, Lock()
        self._made = _Made(anywhere(str(folder)), self.identity)
        tokenizer = own_tokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"), card.max_tokens)
        self._sides = dict.fromkeys(SIDES, _Tower(graph_backend(folder, card), tokenizer))
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._made is None:
            raise ConfigError(
                "this Embedder was made of an Encoder, which may differ from what its SPEC names, so it cannot be sent to "
                "another process; save the model, and call gecko.load there (or here, and send that)"
            )
        return _load_again, (self._made,)

    def __copy__(self) -> "Embedder":
        return self  # nothing in it changes

    def __deepcopy__(self, _memo: object) -> "Embedder":
        return self

    @property
    def precision(self) -> str:
        """How the transformer computes: ``float32``, ``bfloat16`` or ``int8``."""
        return self._sides["query"].backend.precision if self._sides else "float32"

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
            texts: n texts, raw: a list, or any sequence or iterator, which is taken in its order; or one, for one vector.
            task: what the vectors are for, see :func:`gecko.core.formats.find_task`.
            title: one title for all, or n of them; only for RETRIEVAL_DOCUMENT.
            dim: keep the first ``dim`` dimensions and bring the vectors back to unit length (Matryoshka).
            output: ``float32``; ``int8``; ``binary``, one bit a dimension.
            progress: show a bar when it takes long.

        Returns:
            (n, dim), or (dim,) for one text, in the order of ``texts``: float32 unit rows; int8, each row scaled by its
            largest entry; or uint8 (n, dim / 8), the sign bits. Compare int8 by cosine, bits by Hamming distance.

        Raises:
            ConfigError: the task, title, dimension or output does not fit, or a text is no valid string.
            NonFiniteError: the model gives a text no finite vector.
        """
        one = isinstance(texts, str)
        rows = strings([texts] if one else texts)
        found = find_task(task)
        titles = _titles(title, len(rows), found)
        result = self._embed_rows(rows, titles, [found] * len(rows), dim, output, progress)
        return result[0] if one else result

    def queries(self, texts: Sequence[str], tasks: Sequence[str] | str = "", *, progress: bool = False) -> Vectors:
        """Embed queries, as :meth:`gecko.encoder.Encoder.queries` does; float32 (n, dim), unit rows."""
        rows = strings(texts, "query")
        found = [Task("", task, own_prompts=("query",)) for task in strings_for(tasks, len(rows), "task", "queries")]
        return self._embed_rows(rows, [""] * len(rows), found, None, "float32", progress)

    def passages(self, items: Sequence[Passage | Text], *, progress: bool = False) -> Vectors:
        """Embed passages, as :meth:`gecko.encoder.Encoder.passages` does; float32 (n, dim), unit rows."""
        task = formats.TASKS["RETRIEVAL_DOCUMENT"]
        rows = passages_of(items)
        texts, titles = [item.text for item in rows], [item.title for item in rows]
        return self._embed_rows(texts, titles, [task] * len(rows), None, "float32", progress)

    def prepare(
        self,
        texts: Sequence[str],
        *,
        task: str = "RETRIEVAL_DOCUMENT",
        title: str | Sequence[str] | None = None,
    ) -> list[Prepared]:
        """Render and tokenise texts; the first half of :meth:`embed`. Arguments and errors are the same."""
        rows, found = strings(texts), find_task(task)
        return self._prepare(rows, _titles(title, len(rows), found), [found] * len(rows))

    def run(self, items: Sequence[Prepared]) -> Vectors:
        """Run the model on prepared texts, in batches of equal work; the second half of :meth:`embed`.

        Texts of different tasks, titles and requests may be mixed: no text's vector depends on its neighbours by more
        than rounding (``docs/how-to/use-the-model.md`` gives the measured bound).

        Returns:
            float32 (n, dim), unit rows, all dimensions; :func:`gecko.encoder.shorten` cuts them.

        Raises:
            NonFiniteError: the model gives a text no finite vector; its ``index`` is the place in ``items``.
        """
        items = in_order(items, "item")
        vectors = self._run(items)
        refuse_not_finite(vectors, [item.text for item in items], range(len(items)), self.spec)
        return vectors

    @survives_fork
    def _run(self, items: Sequence[Prepared]) -> Vectors:
        result = np.empty((len(items), self.dim), dtype=np.float32)
        if not self._sides:
            self._run_generic(items, result)
            return result
        for backend in {id(one.backend): one.backend for one in self._sides.values()}.values():
            its = [row for row, item in enumerate(items) if self._sides[item.side].backend is backend]
            order = sorted(its, key=lambda row: -items[row].tokens)
            for rows in token_batches([items[row].tokens for row in order], backend.batch_tokens):
                chosen = order[rows]
                result[chosen] = shorten(backend([items[row].ids or () for row in chosen]), self.dim)
        return result

    def finish(self, vectors: Vectors, dim: int | None = None, output: Output = "float32") -> Packed:
        """Cut what :meth:`run` returned to ``dim`` dimensions, and give it the form of ``output``."""
        return encode_output(shorten(vectors, dim_of(dim, self.dim, self.spec)), output)

    def _embed_rows(
        self,
        texts: Sequence[str],
        titles: Sequence[str],
        tasks: Sequence[Task],
        dim: int | None,
        output: Output,
        progress: bool,
    ) -> Packed:
        result = self.finish(np.ones((0, self.dim), dtype=np.float32), dim, output)
        result = np.empty((len(texts), result.shape[1]), dtype=result.dtype)
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))  # longest first: an honest time to go
        with embedding_bar(texts, wanted=progress) as advance:
            for start in range(0, len(order), WINDOW):
                window = order[start : start + WINDOW]
                items = self._prepare(
                    [texts[row] for row in window],
                    [titles[row] for row in window],
                    [tasks[row] for row in window],
                    count=bool(self._sides),  # without a backend nobody asks
                )
                vectors = self._run(items)
                refuse_not_finite(vectors, [texts[row] for row in window], window, self.spec)
                result[window] = self.finish(vectors, dim, output)
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
        if self._sides:  # both towers come from one start, so they read the same tokens
            encodings = self._sides["query"].tokenizer.encode_batch_fast(texts)
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


@dataclass(frozen=True)
class _Tower:
    """What computes the vectors of one side."""

    backend: Backend
    tokenizer: "Tokenizer"

    @classmethod
    def of(cls, model: "SentenceTransformer", max_tokens: int | None, precision: Precision) -> "_Tower":
        tokenizer = own_tokenizer(written_tokenizer(model, max_tokens), max_tokens)
        return cls(torch_backend(model, precision), tokenizer)


@dataclass(frozen=True)
class _Made:
    """What :func:`load` was told, and the model that it found: another process loads it from this."""

    spec: str
    identity: str
    precision: Precision = "auto"
    form: InputFormat | None = None
    max_tokens: int | None = None


@lru_cache(maxsize=4)  # a pool sends the model with each task
def _load_again(made: _Made) -> Embedder:
    found = load(made.spec, precision=made.precision, form=made.form, max_tokens=made.max_tokens)
    if found.identity != made.identity:
        raise ConfigError(another_model(made.spec, found.identity, made.identity))
    return found


def load(
    spec: str | os.PathLike[str],
    *,
    precision: Precision = "auto",
    form: InputFormat | None = None,
    max_tokens: int | None = None,
) -> Embedder:
    """Load a model for use.

    Args:
        spec: ``minilm``, a folder (text or path) that sentence-transformers can read or that ``gecko export`` wrote, or
            ``hf:NAME``.
        precision: see :class:`Embedder`; an exported model has the one it was exported in.
        form: the text form it reads; none: as its saved prompts say.
        max_tokens: its window in tokens; none: as saved.

    Raises:
        ConfigError: it cannot be found, loaded, or run in this precision.
    """
    spec = spec_of(spec)
    one_of("precision", precision, get_args(Precision))
    if form is not None:
        form_of(form)
    folder = Path(spec).expanduser()
    if (folder / CARD).is_file():
        if form is not None or max_tokens is not None or precision != "auto":
            raise ConfigError(
                f"{spec} is an exported model, whose precision, form and window are fixed; give none of them"
            )
        return Embedder.of_export(folder, spec)
    found = Embedder(load_encoder(spec, form=form, max_tokens=max_tokens, bf16=False), precision)
    found._made = _Made(anywhere(spec), found.identity, cast(Precision, found.precision), form, max_tokens)
    return found


def _titles(title: object, count: int, task: Task) -> list[str]:
    if title is not None and task.side != "document":
        raise ConfigError(f"title: only texts of the task RETRIEVAL_DOCUMENT have one, not {task.name or task.text}")
    return strings_for("" if title is None else title, count, "title", "texts")
