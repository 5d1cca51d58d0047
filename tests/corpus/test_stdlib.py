import sys

import pytest

from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts
from gecko.core.errors import CorpusError
from gecko.corpus import ingest, stdlib
from gecko.corpus.readers import read_source


@pytest.fixture(scope="module")
def passages():
    return list(stdlib.read_stdlib())


def test_size_and_shape(passages):
    assert len(passages) >= 3000
    assert len({passage.id for passage in passages}) == len(passages)
    assert len({passage.text for passage in passages}) == len(passages)
    assert {passage.source for passage in passages} == {stdlib.SOURCE}
    assert min(len(passage.text) for passage in passages) >= stdlib.MIN_CHARS
    assert all(passage.title.startswith(passage.id) for passage in passages)


def test_known_names(passages):
    by_id = {passage.id: passage for passage in passages}
    assert by_id["json.dumps"].title.startswith("json.dumps(")
    assert "JSON" in by_id["json.dumps"].text
    assert "os.path.join" in by_id


@pytest.mark.parametrize(
    "name", ["antigravity", "this", "idlelib", "test", "posix", "posixpath", "ntpath", "distutils"]
)
def test_names_that_are_left_out(passages, name):
    assert not [passage.id for passage in passages if passage.id == name or passage.id.startswith(f"{name}.")]


def test_no_address_in_a_title(passages):
    assert not [passage.title for passage in passages if " at 0x" in passage.title]


def test_nothing_of_this_machine_is_in_it(passages, monkeypatch):
    # A default value may be the environment: such a title would be sent to a teacher, and be another one tomorrow.
    monkeypatch.setenv("GECKO_TEST_TOKEN", "a-secret-of-this-machine")
    found = list(stdlib.read_stdlib())
    shown = "\n".join(passage.title + "\n" + passage.text for passage in found)
    for private in ("GECKO_TEST_TOKEN", "a-secret-of-this-machine", sys.executable):
        assert private not in shown
    assert found == passages


def test_two_reads_are_identical(passages):
    assert list(read_source("stdlib")) == passages


def test_nothing_it_imports_stays(passages):
    assert "turtle" not in sys.modules
    assert "tkinter" not in sys.modules


def test_a_file_in_the_working_folder_is_not_the_standard_library(passages, tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "sched.py").write_text(f'"""{"Not the scheduler. " * 9}"""\n')
    monkeypatch.chdir(tmp_path)
    assert list(stdlib.read_stdlib()) == passages


def test_a_child_that_fails_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CorpusError, match="standard library's documentation failed: no output"):
        list(stdlib.read_stdlib())


def test_ingest_drops_nothing(passages):
    counts = Counts()
    ids = {passage.id.partition("#")[0] for passage in ingest(CorpusConfig(), counts)}
    assert ids == {passage.id for passage in passages}
    assert not counts.drops
