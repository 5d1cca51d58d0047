"""Stage ``ingest``: the corpus is read.

With workers, HTML, PDF and Word files are parsed by them before the corpus is read in its order: parsing is what reading such
files costs. It is kept by the documents' bytes (:mod:`gecko.corpus.documents`), so the corpus that is read afterwards, in
order and without duplicates, is the same as if nothing had been read ahead.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts, left_out
from gecko.core.disk import temporary_file
from gecko.core.errors import ConfigError, CorpusError
from gecko.core.files import digest
from gecko.core.formats import native_prompt
from gecko.core.records import Passage
from gecko.corpus import ingest_shards
from gecko.corpus.chunk import load_tokenizer
from gecko.corpus.documents import Documents, Extractor
from gecko.corpus.ingest import READ_IN_PART
from gecko.corpus.readers import Reader, parsed_documents, source_identity
from gecko.encoder import Encoder
from gecko.encoder.encoder import load_outline
from gecko.encoder.save import most_positions, window_of
from gecko.encoder.spec import model_identity, resolve_model
from gecko.run.engine import Executor
from gecko.run.manifest import Manifest
from gecko.run.shards import run_stream
from gecko.stages.context import Context, once
from gecko.stages.stage import Stage, section

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass
class Extract:
    """What a worker does with a document; its extracting process ends with the worker."""

    seconds: float
    html: Literal["main", "all"]
    _extractor: Extractor | None = field(default=None, init=False, repr=False)

    def __call__(self, task: tuple[bytes, str], counts: Counts) -> list[dict[str, str]]:
        """What the extracting process says of a document's bytes and ending."""
        data, ending = task
        if self._extractor is None:
            self._extractor = Extractor(self.seconds, self.html)
        with temporary_file(ending) as copy:
            copy.write(data)
            copy.flush()
            return [self._extractor(Path(copy.name), ending)]


def read_ahead(config: CorpusConfig, cache: Path, engine: Executor) -> int:
    """Have an executor read the documents of all sources that ``cache`` does not hold, and keep them there; says how many.

    Raises CorpusError: a source does not exist, or the package that reads a kind of document is missing.
    """
    with closing(Documents(config.document_seconds, config.html, cache)) as documents:
        new = _new(config, documents)
        keys: list[str] = []

        def take() -> tuple[int, tuple[bytes, str]] | None:
            if (entry := next(new, None)) is None:
                return None
            keys.append(entry[0])
            return len(keys) - 1, entry[1]

        for index, done in engine.run(Extract(config.document_seconds, config.html), take):
            documents.remember(keys[index], done.rows[0])
        return len(keys)


def _new(config: CorpusConfig, documents: Documents) -> Iterator[tuple[str, tuple[bytes, str]]]:
    """Key, bytes and ending of each document that was not read yet."""
    begun: set[str] = set()
    for spec in config.sources:
        for path, ending in parsed_documents(spec, Reader(config, documents)):
            key = documents.key(path, ending)
            if key not in begun and documents.known(key) is None:
                begun.add(key)
                yield key, (path.read_bytes(), ending)


@once
def tokens_read(context: Context) -> int:
    """So many tokens of a passage's title and text are read by the start model, by the student and by the teacher.

    Of the models it is what they read less special tokens and prompt, each in its own tokens. Raises ConfigError: a model
    cannot be loaded.
    """
    config, start = context.config, context.models.start_outline
    rooms = [config.relabel.passage_tokens, _room(start, config.train.max_tokens, window_of(start.model))]
    if config.student:
        student = load_outline(config.student, pad_token=config.train.backbone.pad_token)
        rooms.append(_room(student, config.train.max_tokens, most_positions(student.model)))
    return max(1, min(rooms))


def _room(encoder: "Encoder", window: int, most: int | None) -> int:
    prompt = native_prompt(encoder.model.prompts, "document") if encoder.form == "native" else ""
    return min(window, most or window) - len(encoder.model.tokenizer(prompt)["input_ids"])


def _tokenizer(context: Context) -> "Tokenizer | None":
    """Counts the start model's tokens; none where it cannot, and need not."""
    try:
        return load_tokenizer(resolve_model(context.config.backbone))
    except ConfigError:
        if context.config.corpus.chunk_tokens is None:
            return None
        raise


def _in_part(context: Context, longer: int) -> str:
    train, teacher, read = context.config.train.max_tokens, context.config.relabel.passage_tokens, tokens_read(context)
    most = window_of(context.models.start_outline.model)
    raised = f", or raise train.max_tokens and relabel.passage_tokens (the start model reads {most or 'any number'})"
    said = (
        f"{longer:,} passages are longer than the {read} tokens that are read of title and text (train.max_tokens = {train}, "
        f"relabel.passage_tokens = {teacher}): what follows is neither embedded nor judged"
    )
    if context.config.corpus.sources == ["stdlib"]:
        return said  # its passages are those that the shipped rows and questions name
    return (
        f"{said}. Give shorter texts, or split these into ID#1, ID#2 and so on with "
        f"corpus.chunk_tokens={max(16, read * 3 // 4)}{raised if most is None or most > min(train, teacher) else ''}"
    )


def make(context: Context) -> Manifest:
    """Read the corpus.

    Raises CorpusError: a source is missing or cannot be read, or there are fewer passages than candidates of a query.
    """
    run, settings, n = context.run, context.config.corpus, context.config.mine.n
    reads = False

    def batches() -> Iterator[tuple[list[Passage], Counts]]:
        nonlocal reads
        reads = True
        context.ui.say(f"reading {', '.join(settings.sources)}")
        tokenizer, read = _tokenizer(context), tokens_read(context)
        cache = run.path / "documents.sqlite"
        if context.engine.remote and (found := read_ahead(settings, cache, context.engine)):
            context.ui.say(f"{found:,} documents were parsed")
        return ingest_shards(settings, tokenizer=tokenizer, read=read, cache=cache)

    manifest = run_stream(run, INGEST.name, Passage, INGEST.parts(context), batches)
    left = left_out(manifest)
    if reads and left:
        context.ui.say(f"of what was read:{left}")
    if reads and (longer := manifest.notes[READ_IN_PART]):
        context.ui.say(_in_part(context, longer))
    if manifest.rows < n:
        raise CorpusError(
            f"the corpus has {manifest.rows} passages, and mining takes {n} candidates a query; "
            f"give more passages, or set mine.n to at most {max(2, manifest.rows)}"
            f"{f'. Of what was read:{left}' if left else ''}"
        )
    return manifest


def _depends(context: Context) -> dict[str, str]:
    settings = context.config.corpus
    found = {
        "sources": digest(*(source_identity(spec) for spec in settings.sources)),
        "tokenizer": context.models.start_identity if settings.chunk_tokens is not None else "",
    }
    if settings.chunk_tokens == "read":  # the models that read it are parts already, but for another student
        found["read"] = str(min(context.config.train.max_tokens, context.config.relabel.passage_tokens))
        if student := context.config.student:
            found["student"] = model_identity(student)
    if settings.near_duplicates is not None:
        found["near duplicates"] = "2"  # raised when others are found
    return found


INGEST = Stage(
    name="ingest",
    version=1,
    make=make,
    record=Passage,
    settings={"settings": section("corpus", without={"sources"})},
    depends=_depends,
    made="by its command",
)
