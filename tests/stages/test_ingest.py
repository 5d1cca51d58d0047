"""The stage ``ingest``: what is read of a passage, what is told of longer ones, and folders from before."""

import shutil
from pathlib import Path

import pytest

from gecko.config.load import load_config
from gecko.config.run import RunConfig
from gecko.core.errors import RunError
from gecko.core.formats import render_passage
from gecko.core.records import Passage
from gecko.corpus.chunk import load_tokenizer
from gecko.run import shards
from gecko.run.folder import Run
from gecko.stages import ingest
from gecko.stages.context import Context

from ..conftest import Listener

SENTENCE = "the red cat sleeps and the big dog runs in {} and {}. "
FORMER = "corpus.chunk_tokens=null"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name in "abcdef":
        text = "".join(SENTENCE.format(name * 2, "xyz"[at % 3] * (1 + at)) for at in range(12))
        (folder / f"{name}.md").write_text(f"# The {name}\n\n{text}")
    return folder


def settings(sources: Path, model: Path, *more: str) -> RunConfig:
    base = {"corpus": {"sources": [str(sources)]}, "llm": "fake", "backbone": str(model)}
    return load_config(None, ("mine.n=4", "corpus.shard_passages=8", "train.max_tokens=32", *more), base)


def read(folder: Path, config: RunConfig, *, force: bool = False) -> tuple[list[Passage], list[str], str]:
    """The passages, what was said, and the fingerprint."""
    ui = Listener()
    with Run(folder, config, force=force) as run:
        manifest = ingest.make(Context(run, ui))
        return list(run.read("ingest", Passage)), ui.said, manifest.fingerprint


@pytest.mark.parametrize(
    ("more", "tokens"),
    [
        ((), 30),  # [CLS] and [SEP] are read, too
        (("train.max_tokens=64",), 46),  # the start model's window is 48
        (("relabel.passage_tokens=20",), 20),
        (("train.max_tokens=64", "relabel.passage_tokens=300"), 46),
    ],
)
def test_what_is_read_is_the_least_of_all_windows(tmp_path, sources, tiny_model, more, tokens):
    with Run(tmp_path, settings(sources, tiny_model, *more)) as run:
        assert ingest.tokens_read(Context(run)) == tokens


def test_another_student_may_read_less(tmp_path, sources, tiny_model):
    from sentence_transformers import SentenceTransformer

    student = SentenceTransformer(
        str(tiny_model), device="cpu", prompts={"document": "the text : ", "query": "search "}
    )
    student.save_pretrained(str(tmp_path / "student"), create_model_card=False)
    plain = settings(sources, tiny_model, "train.max_tokens=40")
    other = settings(sources, tiny_model, "train.max_tokens=40", f"student={tmp_path / 'student'}")
    with Run(tmp_path / "plain", plain) as run:
        assert ingest.tokens_read(Context(run)) == 38
    with Run(tmp_path / "other", other) as run:
        assert ingest.tokens_read(Context(run)) == 35  # its prompt takes three tokens more
        assert "student" in ingest.INGEST.parts(Context(run))


def test_pieces_fit_and_what_does_not_is_told_once_with_the_mend(tmp_path, sources, tiny_model):
    passages, said, _ = read(tmp_path / "run", settings(sources, tiny_model))
    tokenizer = load_tokenizer(str(tiny_model))
    assert max(len(tokenizer.encode(render_passage(one, "unified")).ids) for one in passages) <= 32
    assert not [text for text in said if "longer than" in text]
    _, said, _ = read(tmp_path / "former", settings(sources, tiny_model, FORMER))
    told = [text for text in said if "longer than" in text]
    assert len(told) == 1
    assert "6 passages are longer than the 30 tokens" in told[0]
    assert "corpus.chunk_tokens=22" in told[0] and "raise train.max_tokens and relabel.passage_tokens" in told[0]
    assert any("6 read in part, such as" in text for text in said)
    _, said, _ = read(tmp_path / "former", settings(sources, tiny_model, FORMER))
    assert not said
    _, said, _ = read(tmp_path / "mended", settings(sources, tiny_model, "corpus.chunk_tokens=22"))
    assert not [text for text in said if "longer than" in text]


def test_what_is_read_in_part_is_counted_without_the_weights_of_a_model(tmp_path, sources, tiny_model, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("gecko.encoder.load_encoder", refuse)
    _, said, _ = read(tmp_path / "run", settings(sources, tiny_model, FORMER, f"student={tiny_model}"))
    assert any("6 passages are longer than the 30 tokens" in text for text in said)


def test_windows_are_part_of_the_fingerprint_only_where_they_decide(tmp_path, sources, tiny_model):
    def parts(*more: str) -> dict[str, str]:
        with Run(tmp_path / "-".join(("run", *more)), settings(sources, tiny_model, *more)) as run:
            return ingest.INGEST.parts(Context(run))

    assert parts() == parts("relabel.passage_tokens=99")
    assert parts() != parts("relabel.passage_tokens=24")
    assert parts(FORMER) == parts(FORMER, "relabel.passage_tokens=24", "train.max_tokens=16")
    assert "read" not in parts(FORMER) and not parts(FORMER)["tokenizer"]


def test_stopped_and_started_again_equals_uninterrupted(tmp_path, sources, tiny_model, monkeypatch):
    config = settings(sources, tiny_model)
    whole, _, fingerprint = read(tmp_path / "whole", config)
    original, left = shards._write_shard, [2]

    def write(*given: object, **named: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(*given, **named)

    monkeypatch.setattr(shards, "_write_shard", write)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path / "stopped", config)
    assert len(list((tmp_path / "stopped" / "ingest").glob("part-*"))) == 2
    monkeypatch.setattr(shards, "_write_shard", original)
    assert read(tmp_path / "stopped", config)[::2] == (whole, fingerprint)
    files = [path.name for path in (tmp_path / "whole" / "ingest").glob("part-*")]
    assert len(files) > 2
    for name in files:
        assert (tmp_path / "stopped" / "ingest" / name).read_bytes() == (
            tmp_path / "whole" / "ingest" / name
        ).read_bytes()


def test_a_folder_from_before_keeps_its_chunks(tmp_path, sources, tiny_model):
    former, _, fingerprint = read(tmp_path / "run", settings(sources, tiny_model, FORMER))
    assert [passage.id for passage in former] == [f"{name}.md" for name in "abcdef"]
    (tmp_path / "run" / "generate").mkdir()
    (tmp_path / "run" / "generate" / "part-00000.parquet").touch()  # the teacher has been paid
    again, said, same = read(tmp_path / "run", settings(sources, tiny_model))  # the command of then
    assert (again, said, same) == (former, [], fingerprint)
    with pytest.raises(RunError, match=r"corpus\.chunk_tokens: None -> 'read'"):
        read(tmp_path / "run", settings(sources, tiny_model, "corpus.chunk_tokens=read"))
    shutil.rmtree(tmp_path / "run" / "generate")
    cut, _, other = read(tmp_path / "run", settings(sources, tiny_model, "corpus.chunk_tokens=read"))
    assert len(cut) > len(former) and other != fingerprint
