"""recipes/fret-open: from packages to a data set that loads, checks and trains, on packages that are made here."""

import gzip
import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gecko.cli.main import app
from gecko.core.errors import CorpusError, RunError
from gecko.prompts import load_prompt

from .conftest import load_script

RECIPE = Path(__file__).parent.parent / "recipes" / "fret-open"
SHIPPED = Path(__file__).parent.parent / "data" / "fret-open"
sys.path.insert(0, str(RECIPE))

import check  # noqa: E402
import corpora  # noqa: E402
import documents  # noqa: E402
import packages  # noqa: E402
import testsets  # noqa: E402

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: somebody
License: GPL-2+
 Some text.

Files:
 doc/secret*
 doc/other.html
License: All-rights-reserved

Files: doc/other.html
License: GPL-2+ and Expat
"""


def ar(**members: bytes) -> bytes:
    """An ``ar`` archive, as a Debian package is one."""
    found = b"!<arch>\n"
    for name, data in members.items():
        header = f"{name.replace('__', '.'):<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n"
        found += header.encode() + data + b"\n" * (len(data) % 2)
    return found


def tar(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:xz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return sink.getvalue()


def make_package(mirror: Path, name: str, files: dict[str, bytes], copyright_text: str = COPYRIGHT) -> str:
    """Put a package into an archive; the table of a corpus's TOML file that names it."""
    data = tar({f"./usr/share/doc/{name}/copyright": copyright_text.encode(), **files})
    deb = ar(debian_binary=b"2.0\n", control__tar__xz=tar({}), data__tar__xz=data)
    path = f"pool/main/{name}/{name}_1_all.deb"
    (mirror / path).parent.mkdir(parents=True)
    (mirror / path).write_bytes(deb)
    sha256 = hashlib.sha256(deb).hexdigest()
    return f'[package]\nname = "{name}"\nversion = "1"\npath = "{path}"\nsha256 = "{sha256}"\n'


@pytest.fixture(scope="module")
def sentences(words: list[str]) -> Iterator[str]:
    """Sentences without end, each of fourteen words and no two alike."""

    def made() -> Iterator[str]:
        for number in range(10_000):
            yield " ".join(words[(number * step + step) % len(words)] for step in range(1, 15)) + f" {number}."

    return made()


@pytest.fixture(scope="module")
def home(words: list[str], sentences: Iterator[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror with three packages, and a TOML file for each."""
    home = tmp_path_factory.mktemp("fret-open")
    (home / "corpora").mkdir()

    def page(number: int) -> bytes:
        text = "".join(f"<h2>Part {part}</h2><p>{next(sentences)}</p><p>{next(sentences)}</p>" for part in range(3))
        return f"<html><head><title>Page {number}</title></head><body><article>{text}</article></body></html>".encode()

    pages = {f"./usr/share/doc/pages/doc/page{number}.html": page(number) for number in range(12)}
    pages |= {f"./usr/share/doc/pages/doc/{name}.html": page(90) for name in ("secret1", "other", "index")}
    table = make_package(home / "mirror", "pages", pages)
    read = (
        '[read]\nreader = "html"\nroot = "usr/share/doc/pages"\ninclude = ["doc/*.html"]\nexclude = ["*/index.html"]\n'
    )
    (home / "corpora" / "pages.toml").write_text(
        f'genre = "pages"\nlanguage = "en"\n{table}\n{read}\n[passages]\nmost = 40\n'
    )
    lines = [f"{number:08} 03 n 02 dog 0 domestic_dog 0 001 @ 1 n 0000 | {next(sentences)}" for number in range(60)]
    table = make_package(
        home / "mirror", "words", {"./usr/share/words/data.noun": "\n".join(["  1 licence", *lines]).encode()}
    )
    read = '[read]\nreader = "wordnet"\nroot = "usr/share/words"\ninclude = ["data.*"]\n'
    asked = "[queries]\nmin_seed_chars = 20\nkinds = { claim = 1, question = 1 }\nlanguages = { same = 1, en = 1 }\n"
    (home / "corpora" / "words.toml").write_text(f'genre = "words"\nlanguage = "en"\n{table}\n{read}\n{asked}')
    return home


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[Path]:
    """The tiny model in the place of the start model."""
    before, corpora.START = corpora.START, str(tiny_model)
    yield tiny_model
    corpora.START = before


@pytest.fixture(scope="module")
def data(home: Path, tiny: Path) -> Path:
    """A small data set, as the script makes it."""
    build = load_script(RECIPE / "build.py")
    build.FOLDER = home / "corpora"
    command = ["-o", home / "data", "--work", home / "work", "--mirror", (home / "mirror").as_uri(), "--queries", 20]
    build.main([str(one) for one in (*command, "--llm", "fake", "--set", f"backbone={tiny}", "--set", "mine.n=6")])
    return home / "data"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*/*.parquet")) for row in pq.read_table(path).to_pylist()]


# --- packages


def test_a_package_is_the_file_that_is_meant(home: Path, tmp_path: Path) -> None:
    [pages, _] = corpora.load_corpora(home / "corpora")
    package = packages.Package(**pages.table("package"))
    mirror = (home / "mirror").as_uri()
    deb = packages.fetch(package, tmp_path, mirror)
    root = packages.unpack(deb, tmp_path / "root")
    assert (root / "usr/share/doc/pages/doc/page3.html").read_bytes().startswith(b"<html>")
    deb.write_bytes(deb.read_bytes() + b" ")
    with pytest.raises(CorpusError, match=f"has the SHA-256 .*, not {package.sha256}"):
        packages.fetch(package, tmp_path, mirror)
    deb.unlink()
    with pytest.raises(CorpusError, match=r"cannot be downloaded .*give --mirror URL .*put the file into"):
        packages.fetch(package, tmp_path, f"{mirror}/elsewhere")
    with pytest.raises(CorpusError, match="write http://"):
        packages.fetch(package, tmp_path, "ftp://x")
    assert not list(tmp_path.glob("*.deb"))


def test_without_apt_it_is_said_what_to_do(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    [pages, _] = corpora.load_corpora(home / "corpora")
    with pytest.raises(CorpusError, match=r"there is no apt-get here.*--mirror URL"):
        packages.fetch(packages.Package(**pages.table("package")), tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"!<arch>\n", ar(debian_binary=b"2.0\n"), ar(data__tar__zst=b"x")]
)
def test_what_is_no_package_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.deb").write_bytes(content)
    with pytest.raises(CorpusError, match="is no Debian package"):
        packages.unpack(tmp_path / "a.deb", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_package_stays_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.deb").write_bytes(ar(data__tar__xz=tar({"../outside": b"x"})))
    with pytest.raises(tarfile.TarError):
        packages.unpack(tmp_path / "a.deb", tmp_path / "in" / "a")
    assert not (tmp_path / "in" / "outside").exists()


def test_the_last_stanza_that_names_a_file_says_its_licence() -> None:
    terms = packages.read_terms(COPYRIGHT)
    found = [packages.licence_of(path, terms) for path in ("README", "doc/secret1.html", "doc/other.html")]
    assert found == ["GPL-2+", "All-rights-reserved", "GPL-2+ and Expat"]
    assert packages.licence_of("a", terms[1:]) == ""
    assert [packages.is_allowed(one) for one in found] == [True, False, True]
    assert packages.is_allowed("Secret or CC-BY-SA-3.0")
    assert not packages.is_allowed("GPL-2 and Secret") and not packages.is_allowed("")


# --- documents


RENDERED = """\
tar(1)                    General Commands Manual                   tar(1)

NAME
       tar - an archiver

DESCRIPTION
       Keeps many files in one.
   Options
       -c     make a new one
           # a comment in   an example

                                1 May                               tar(1)
"""


def test_a_manual_page_becomes_sections() -> None:
    text = documents.man_markdown("tar(1)", RENDERED)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["# tar(1)", "## NAME", "## DESCRIPTION", "### Options"]
    assert "-c  make a new one" in text and "\\# a comment in  an example" in text and "1 May" not in text


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_a_manual_page_is_rendered(tmp_path: Path) -> None:
    page = ".TH PRÜFEN 1 2020\n.SH BESCHREIBUNG\nPrüft\n.B alle\nDateien.\n.SS Näheres\n.TP\n\\-a\nauch große\n"
    (tmp_path / "a.1.gz").write_bytes(gzip.compress(page.encode()))
    [(file, source, content)] = documents.man("man1/a.1.gz", tmp_path / "a.1.gz")
    assert (file, source) == ("man1__a.1.md", "man1/a.1")
    text = content.decode()
    assert text.startswith("# a(1)\n") and "## BESCHREIBUNG\n\nPrüft alle Dateien." in text
    assert "### Näheres\n" in text and re.search(r"^[-‐−]a  auch große$", text, re.MULTILINE)
    (tmp_path / "b.1").write_text(".so man1/a.1\n")
    assert list(documents.man("man1/b.1", tmp_path / "b.1")) == []


def test_entries_of_the_dictionary(tmp_path: Path) -> None:
    text = """00-database-info
   About it.

Zythum \\Zy"thum\\ (z[imac]"th[u^]m), n. [L. zythum.]
   A kind of {malt} beverage; a liquor made from malt and wheat
   by the people of an old time.
   [1913 Webster]

Accrete \\Ac*crete"\\, v. t.
   To make adhere; to add. --Earle.
   [1913 Webster]

Odd \\Odd\\, a. Of a word [=e]um that is spelt in codes which nobody but the
   editors of the book itself can read today.
"""
    (tmp_path / "d.dz").write_bytes(gzip.compress(text.encode()))
    [(_, _, content)] = documents.gcide("d.dz", tmp_path / "d.dz")
    [row] = map(json.loads, content.decode().splitlines())
    assert row["title"] == "Zythum"
    assert row["text"].startswith(
        "n. [L. zythum.] A kind of malt beverage; a liquor made from malt and wheat by the people"
    )


def test_the_words_of_a_synset(tmp_path: Path) -> None:
    line = '00001740 29 s 03 hot(p) 0 piping_hot 0 burning 1 001 & 1 a 0000 | of high heat; "a hot stove"  '
    (tmp_path / "data.adj").write_text(f"  1 licence | text\n{line}\n")
    [(_, _, content)] = documents.wordnet("data.adj", tmp_path / "data.adj")
    assert json.loads(content) == {
        "id": "s00001740",
        "title": "hot, piping hot, burning (adjective)",
        "text": 'of high heat; "a hot stove"',
    }


# --- corpora


def test_every_corpus_that_ships_can_be_read() -> None:
    found = corpora.load_corpora()
    assert len(found) >= 12
    assert {one.language for one in found} == {"en", "de", "fr", "es"}
    wordings = next(one.phrases for one in load_prompt("generate_kinds").variables if one.name == "language")
    build = load_script(RECIPE / "build.py")
    for one in found:
        config = build.settings(one, corpora.Made(Path("passages.jsonl"), {"licences": ["CC0-1.0"]}), "fake", 5)
        prompt = load_prompt(config.prompts.generate)
        own = one.language != "en" or one.name in ("gcide", "wordnet")
        assert (config.prompts.generate != "generate_kinds") == own and (
            one.language == "en" or "english" in dict(prompt.kinds)
        )
        assert config.select.max_title == one.table("queries").get("max_title")
        assert one.table("queries").get("kinds", {}).keys() <= dict(prompt.kinds).keys() and len(prompt.kinds) > 3
        assert one.values.get("python") or re.fullmatch("[0-9a-f]{64}", one.table("package")["sha256"])
        assert one.table("queries").get("languages", {}).keys() <= wordings.keys()
        for name in ("without", "title_without"):
            assert all(re.compile(pattern) for pattern in one.table("read").get(name, ()))
        assert one.values.get("python") or one.table("read")["reader"] in documents.READERS
    with pytest.raises(CorpusError, match="no corpus is named 'nowhere'; there are: debian-handbook"):
        corpora.load_corpora(names=["nowhere"])


def test_passages_are_cut_licensed_and_kept(home: Path, tiny: Path, tmp_path: Path) -> None:
    [pages, words] = corpora.load_corpora(home / "corpora")
    mirror = (home / "mirror").as_uri()
    made = corpora.make_passages(pages, tmp_path, mirror)
    rows = list(made.rows())
    assert made.facts["drops"]["licence All-rights-reserved"] == 1
    assert made.facts["licences"].keys() == {"GPL-2+", "GPL-2+ and Expat"}
    assert {row["source"] for row in rows if row["licence"] != "GPL-2+"} == {"pages 1: doc/other.html"}
    assert len({row["source"] for row in rows}) == 13
    assert len(rows) == 39 and not any("secret" in row["id"] or "index" in row["id"] for row in rows)
    tokenizer = corpora.load_tokenizer(str(tiny))
    assert max(len(tokenizer.encode(f"{row['title']}\n{row['text']}")) for row in rows) <= 256
    again = corpora.make_passages(pages, tmp_path / "other", mirror)
    assert again.path.read_bytes() == made.path.read_bytes()
    made.path.write_text("damaged")
    assert list(corpora.make_passages(pages, tmp_path, "nowhere://").rows()) == rows  # the package is there
    some = list(corpora.make_passages(words, tmp_path, mirror, 10).rows())
    more = list(corpora.make_passages(words, tmp_path, mirror, 30).rows())
    assert len(some) == 10 and len(more) == 30 and some == more[:10]


def test_what_a_recipe_leaves_out_is_counted(home: Path, tiny: Path, tmp_path: Path) -> None:
    mirror = (home / "mirror").as_uri()
    [_, words] = corpora.load_corpora(home / "corpora")
    before = list(corpora.make_passages(words, tmp_path / "before", mirror).rows())
    word = before[0]["text"].split()[0]
    text = (home / "corpora" / "words.toml").read_text()
    (tmp_path / "words.toml").write_text(f'{text}\n[passages]\nleave_out = ["\\\\b{word.upper()}\\\\b"]\n')
    made = corpora.make_passages(*corpora.load_corpora(tmp_path), tmp_path / "after", mirror)
    gone = [row for row in before if word in row["text"].split()]
    assert list(made.rows()) == [row for row in before if row not in gone]
    assert made.facts["drops"]["left out by a pattern of the recipe"] == len(gone) > 0


def test_a_licence_that_is_stated_is_looked_for(home: Path, tmp_path: Path) -> None:
    text = (home / "corpora" / "words.toml").read_text()
    stated = f'{text}\n[licence]\nname = "Expat"\nevidence = "do as you like"\n'
    (tmp_path / "words.toml").write_text(stated)
    with pytest.raises(CorpusError, match="does not say 'do as you like', on which the licence Expat rests"):
        corpora.make_passages(*corpora.load_corpora(tmp_path), tmp_path, (home / "mirror").as_uri())
    (tmp_path / "words.toml").write_text(text.replace("include", "includes"))
    with pytest.raises(CorpusError, match="read has the key 'includes'; known: exclude, include"):
        corpora.load_corpora(tmp_path)


# --- the data set


def test_the_data_set_passes_its_own_checks(data: Path) -> None:
    said = list(check.check(data, testsets.read_tests([])))
    assert len(said) == 5 and said[2].startswith("scores, order, texts and licences:")
    rows = rows_of(data)
    assert {row["corpus"] for row in rows} == {"pages", "words"}
    assert {row["kind"] for row in rows if row["corpus"] == "words"} == {"claim", "question"}
    assert len({row["kind"] for row in rows}) > 3 and {row["language"] for row in rows} == {"en"}
    assert all(len(row["candidates"]) == 6 for row in rows)
    card = (data / "README.md").read_text()
    assert "| pages | pages, en | 39 | pages 1 | GPL-2+, GPL-2+ and Expat |" in card


def test_it_grows_and_keeps_what_is_paid_for(data: Path, home: Path, tiny: Path) -> None:
    before = {row["query_id"]: row["query"] for row in rows_of(data)}
    copy = home / "grown"
    build = load_script(RECIPE / "build.py")
    build.FOLDER = home / "corpora"
    command = ["-o", copy, "--work", home / "work", "--mirror", (home / "mirror").as_uri(), "--queries", 26, "words"]
    build.main([str(one) for one in (*command, "--llm", "fake", "--set", f"backbone={tiny}", "--set", "mine.n=6")])
    after = {row["query_id"]: row["query"] for row in rows_of(copy)}
    words = {key: query for key, query in before.items() if key in after}
    assert len(after) > len(words) > 10 and words.items() <= after.items()


def test_it_is_loaded_and_trained_on_as_the_card_says(
    data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import load_dataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    loaded = load_dataset(str(data), cache_dir=str(tmp_path / "cache"))
    assert {name: part.num_rows for name, part in loaded.items()} == {
        split: sum(pq.read_table(path).num_rows for path in (data / split).glob("*.parquet"))
        for split in ("train", "heldout", "dropped")
        if (data / split).exists() and list((data / split).glob("*.parquet"))
    }
    assert loaded["train"][0]["candidates"][0]["licence"]
    [code] = re.findall(r"```python\n(.*?)```", (data / "README.md").read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    code = code.replace('"data/fret-open"', repr(str(data))).replace(
        "sentence-transformers/all-MiniLM-L6-v2", str(tiny)
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "card", "exec"), {})
    assert (tmp_path / "trained" / "modules.json").exists()


@pytest.mark.skipif(not SHIPPED.exists(), reason="the archive of the source does not hold the data set")
def test_the_one_that_ships_holds_and_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import load_dataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    said = list(check.check(SHIPPED, testsets.read_tests([])))
    assert len(said) == 5
    loaded = load_dataset(str(SHIPPED), cache_dir=str(tmp_path / "cache"))
    facts = [json.loads(path.read_text()) for path in sorted((SHIPPED / "corpora").glob("*.json"))]
    for split, part in loaded.items():
        assert part.num_rows == sum(one["rows"][split] for one in facts) > 0
    assert {path.stem for path in (SHIPPED / "corpora").glob("*.json")} <= {one.name for one in corpora.load_corpora()}
    assert all(len(row["candidates"]) == 20 for row in loaded["train"])
    for path in SHIPPED.rglob("*.*"):
        if path.suffix in (".md", ".json"):
            assert not re.search(r"(^|[\s\"'(])/(home|root|tmp|work)/", path.read_text()), path


def test_it_can_be_sent_and_looked_at(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["push", str(data), "me/fret-open", "--dataset", "--dry-run"])
    assert done.exit_code == 0 and "train/pages.parquet" in done.output and "datasets/me/fret-open" in done.output
    refused = CliRunner().invoke(app, ["push", str(data), "me/fret-open", "--dry-run"])
    assert refused.exit_code != 0 and "give --dataset" in f"{refused.output}{refused.exception}"
    shown = CliRunner().invoke(app, ["inspect", str(data)])
    assert shown.exit_code == 0 and (tmp_path / "inspect.html").exists()


def rewrite(folder: Path, change: Any) -> None:
    """Change the rows of the corpus `pages` in the split train, and its hash."""
    import release

    path, facts = folder / "train" / "pages.parquet", folder / "corpora" / "pages.json"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    release.write_rows(rows, path)
    known = json.loads(facts.read_text())
    known["files"]["train/pages.parquet"] = hashlib.sha256(path.read_bytes()).hexdigest()
    facts.write_text(json.dumps(known))


def first(rows: list[dict[str, Any]], **changed: Any) -> None:
    rows[0]["candidates"][0] |= changed


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda rows: first(rows, rc=float("nan")), "is no number"),
        (lambda rows: first(rows, rc=-50.0), "not in the order of their scores"),
        (lambda rows: first(rows, licence="Secret"), "has the licence 'Secret'"),
        (lambda rows: first(rows, text="other"), "other texts|reads otherwise"),
        (lambda rows: rows[0].update(seed_id="x"), "its seed is not among"),
        (lambda rows: rows[0].update(reason="x"), "reason = 'x'"),
        (lambda rows: rows[1].update(query_id=rows[0]["query_id"]), "the same query_id"),
        (lambda rows: rows.pop(), "rows, not"),
        (lambda rows: rows[0].update(query="Swap the endianness of every element in a typed array."), None),
        (lambda rows: rows[0].update(query="What makes bread go stale?"), "nearly those of a test set"),
    ],
)
def test_damage_is_found(change: Any, wrong: str | None, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    rewrite(copy, change)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "queries.jsonl").write_text('{"_id": "1", "text": "What makes the bread go stale?"}\n')
    tests = testsets.read_tests([tmp_path / "mine"])
    if wrong is None:
        list(check.check(copy, tests))
        return
    with pytest.raises(RunError, match=wrong):
        list(check.check(copy, tests))


def test_a_changed_file_is_found(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    (copy / "train" / "words.parquet").unlink()
    with pytest.raises(RunError, match=r"words\.parquet is missing or is not what"):
        list(check.check(copy, testsets.read_tests([])))


# --- test sets


def test_texts_of_test_sets(tmp_path: Path) -> None:
    (tmp_path / "beir").mkdir()
    (tmp_path / "beir" / "queries.jsonl").write_text('{"_id": "q 1 2", "text": "how tall is the old tower"}\n')
    (tmp_path / "beir" / "corpus.jsonl").write_text('{"_id": "1", "text": "a passage and no query"}\n')
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "test.jsonl").write_text(
        json.dumps({"sentence1": "a cat sits", "sentence2": "word " * 61, "label": "no text", "score": 1.5}) + "\n"
    )
    found = testsets.read_tests([tmp_path])
    assert {"how tall is the old tower", "a cat sits"} <= set(found.texts)
    assert not {"a passage and no query", "no text", "q 1 2"} & set(found.texts)
    assert found.names == ("stdlib-questions", "probe", "beir", "pairs") and len(found.texts) > 500
    queries = ["How tall is the OLD tower?", "who built the bridge", "Who built the bridge?", "where is the market"]
    assert testsets.repeated(queries, found) == ["near a test set", "", "near another query", ""]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="no table"):
        testsets.read_tests([tmp_path / "empty"])
