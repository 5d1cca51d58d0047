"""Word files as review, templates and other programs leave them: what a reader sees is read, once and in order."""

import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts
from gecko.corpus import ingest
from gecko.corpus.bounds import Unreadable
from gecko.corpus.word import read_word

TRANSITIONAL = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
STRICT = "http://purl.oclc.org/ooxml/wordprocessingml/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006"
STYLES = """<w:style w:styleId="berschrift2"><w:name w:val="heading 2"/></w:style>
<w:style w:styleId="Mine"><w:name w:val="My chapter"/><w:basedOn w:val="berschrift2"/></w:style>
<w:style w:styleId="A"><w:name w:val="a"/><w:basedOn w:val="B"/></w:style>
<w:style w:styleId="B"><w:name w:val="b"/><w:basedOn w:val="A"/></w:style>"""
FOOTNOTES = """<w:footnote w:id="0"><w:p/></w:footnote>
<w:footnote w:id="2"><w:p><w:r><w:t>See the oath.</w:t></w:r></w:p></w:footnote>"""


def run(text: str, properties: str = "") -> str:
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


def par(*parts: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr>{''.join(part if '<' in part else run(part) for part in parts)}</w:p>"


def cell(*blocks: str, properties: str = "") -> str:
    inner = "".join(block if "<" in block else par(block) for block in blocks)
    return f"<w:tc><w:tcPr>{properties}</w:tcPr>{inner}</w:tc>"


def row(*cells: str, properties: str = "") -> str:
    inner = "".join(part if "<" in part else cell(part) for part in cells)
    return f"<w:tr><w:trPr>{properties}</w:trPr>{inner}</w:tr>"


def table(*rows: str) -> str:
    return f"<w:tbl><w:tblPr/><w:tblGrid/>{''.join(rows)}</w:tbl>"


def control(inner: str, properties: str = "") -> str:
    return f"<w:sdt><w:sdtPr>{properties}</w:sdtPr><w:sdtContent>{inner}</w:sdtContent></w:sdt>"


def mark(kind: str) -> str:
    return f'<w:r><w:fldChar w:fldCharType="{kind}"/></w:r>'


def code(text: str) -> str:
    return f"<w:r><w:instrText>{text}</w:instrText></w:r>"


def deleted(text: str) -> str:
    return f'<w:del w:id="1"><w:r><w:delText>{text}</w:delText></w:r></w:del>'


def box(text: str) -> str:
    """A text box in both of its forms."""
    inner = f"<w:txbxContent>{par(text)}</w:txbxContent>"
    return (
        '<w:r><mc:AlternateContent><mc:Choice Requires="wps"><w:drawing><wps:txbx>'
        f"{inner}</wps:txbx></w:drawing></mc:Choice><mc:Fallback><w:pict><v:textbox>{inner}</v:textbox></w:pict>"
        "</mc:Fallback></mc:AlternateContent></w:r>"
    )


def write(path: Path, body: str, main: str = "word/document.xml", namespace: str = TRANSITIONAL) -> Path:
    spaces = (
        f'xmlns:w="{namespace}" xmlns:m="{OFFICE}/math" '
        'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006" '
        'xmlns:v="urn:v" xmlns:wps="urn:wps"'
    )
    relation = '<Relationship Id="{0}" Type="' + OFFICE + '/relationships/{0}" Target="{1}"/>'
    packed = 'xmlns="http://schemas.openxmlformats.org/package/2006/relationships"'
    folder, _, name = main.rpartition("/")
    parts = {
        "_rels/.rels": f"<Relationships {packed}>{relation.format('officeDocument', '/' + main)}</Relationships>",
        f"{folder}/_rels/{name}.rels": f"<Relationships {packed}>"
        f"{relation.format('styles', 'styles.xml')}{relation.format('footnotes', 'footnotes.xml')}</Relationships>",
        f"{folder}/styles.xml": f"<w:styles {spaces}>{STYLES}</w:styles>",
        f"{folder}/footnotes.xml": f"<w:footnotes {spaces}>{FOOTNOTES}</w:footnotes>",
        main: f"<w:document {spaces}><w:body>{body}<w:sectPr/></w:body></w:document>",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, text in parts.items():
            archive.writestr(part, text)
    return path


INSERTED = f'<w:ins w:id="1">{run("seven")}{deleted("eight")}</w:ins>'
MARK_DELETED = '<w:rPr><w:del w:id="3"/></w:rPr>'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(par("It weighs ", deleted("five"), INSERTED, " stone."), "It weighs seven stone.", id="changes"),
        pytest.param(par("Bees ", properties=MARK_DELETED) + par("sleep."), "Bees sleep.", id="paragraphs joined"),
        pytest.param(
            par(f"<w:moveFrom>{run('Wax melts.')}</w:moveFrom>") + par(f"<w:moveTo>{run('Wax melts.')}</w:moveTo>"),
            "Wax melts.",
            id="moved",
        ),
        pytest.param(
            control(par("The hive.", properties='<w:pStyle w:val="Mine"/>') + control(par("It hums.")))
            + par("Due in ", control(run("June")), "."),
            "## The hive.\n\nIt hums.\n\nDue in June.",
            id="controls",
        ),
        pytest.param(
            table(control(row("a", control(cell("b")))), row(cell(control(par("c"))), "d")),
            "a | b\n\nc | d",
            id="around cells",
        ),
        pytest.param(
            control(par("Hive\t3"), '<w:docPartObj><w:docPartGallery w:val="Table of Contents"/></w:docPartObj>')
            + par("x"),
            "x",
            id="contents",
        ),
        pytest.param(
            par("Smoke calms.", box("Wear gloves.")) + par("End."), "Smoke calms.\n\nWear gloves.\n\nEnd.", id="box"
        ),
        pytest.param(
            par(
                f"<w:hyperlink>{run('a')}</w:hyperlink><w:smartTag>{run('b')}</w:smartTag>"
                f'<w:customXml>{run("c")}</w:customXml><w:fldSimple w:instr="DATE">{run("d")}</w:fldSimple>'
            ),
            "abcd",
            id="wrappers",
        ),
        pytest.param(
            par("p. ", mark("begin"), code("PAGEREF x"), mark("begin"), run("inner"), mark("end"), mark("separate"))
            + par("12", mark("end"), "!"),
            "p. \n\n12!",
            id="field",
        ),
        pytest.param(par("a", mark("begin"), code("X"), run("y")) + par("b"), "a\n\nb", id="field without an end"),
        pytest.param(
            par(
                run("a")
                + "<w:r><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t><w:noBreakHyphen/><w:softHyphen/><w:t>d</w:t></w:r>"
            ),
            "a\tb\nc-d",
            id="signs",
        ),
        pytest.param(par("a", run("b", "<w:vanish/>"), run("c", '<w:vanish w:val="0"/>')), "ac", id="hidden"),
        pytest.param(
            par('<w:r><w:sym w:font="x" w:char="2192"/><w:sym w:font="Wingdings" w:char="F0E0"/></w:r>'),
            "→",
            id="symbols",
        ),
        pytest.param(
            par(
                "<m:oMath><m:sSup><m:e><m:r><m:t>c</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup></m:oMath>"
            ),
            "c^2",
            id="equation",
        ),
        pytest.param(
            par("They swear", '<w:r><w:footnoteReference w:id="2"/></w:r>', ".") + par("End."),
            "They swear.\n\nSee the oath.\n\nEnd.",
            id="footnote",
        ),
        pytest.param(par("a", "<w:r><w:commentReference w:id='0'/></w:r>"), "a", id="comment"),
        pytest.param(
            par("H", properties='<w:pStyle w:val="berschrift2"/>')
            + par("I", properties='<w:outlineLvl w:val="0"/>')
            + par("J", properties='<w:pStyle w:val="A"/>'),
            "## H\n\n# I\n\nJ",
            id="headings",
        ),
        pytest.param(
            table(row(cell("Spring", properties='<w:gridSpan w:val="2"/>')), row("a", "b")),
            "Spring\n\na | b",
            id="merged across",
        ),
        pytest.param(
            table(
                row(cell("North", properties='<w:vMerge w:val="restart"/>'), "a"),
                row(cell("North", properties="<w:vMerge/>"), "b"),
                row(cell(par(), properties="<w:vMerge/>"), "c"),
                row("North", "d"),
            ),
            "North | a\n\nb\n\nc\n\nNorth | d",
            id="merged down",
        ),
        pytest.param(
            table(
                row(cell("a", properties='<w:vMerge w:val="continue"/>'), "b"),
                row("c", "d", "e", properties='<w:gridBefore w:val="3"/><w:gridAfter w:val="7"/>'),
                row(),
            ),
            "a | b\n\nc | d | e",
            id="irregular",
        ),
        pytest.param(
            table(row("a", cell("b", table(row("c", "d"), row("e", cell(table(row("f"))))), par()))),
            "a | b\nc | d\ne | f",
            id="nested",
        ),
        pytest.param(
            table(
                row("gone", "too", properties='<w:del w:id="1"/>'), row("a", cell("x", properties="<w:cellDel/>"), "b")
            ),
            "a | b",
            id="deleted row and cell",
        ),
        pytest.param(
            table(row(cell(par("H", properties='<w:pStyle w:val="berschrift2"/>'), "text"))),
            "## H\n\ntext",
            id="layout",
        ),
    ],
)
@pytest.mark.parametrize("namespace", [TRANSITIONAL, STRICT])
def test_what_a_reader_sees_is_read_once(tmp_path, body, expected, namespace):
    assert read_word(write(tmp_path / "a.docx", body, namespace=namespace))[1] == expected


def test_parts_are_found_by_what_they_are(tmp_path):
    path = write(tmp_path / "a.docx", par("H", properties='<w:pStyle w:val="Mine"/>'), main="Other/main2.xml")
    assert read_word(path)[1] == "## H"


def test_deep_nesting(tmp_path):
    deep, spans = par("inside"), run("far")
    for _ in range(150):
        deep, spans = table(row(cell(deep, par()))), f"<w:smartTag>{spans}</w:smartTag>"
    assert read_word(write(tmp_path / "a.docx", deep + par(spans)))[1] == "inside\n\nfar"


def wrapped(made: tuple[list[tuple[list[str], str]], str]) -> tuple[list[str], str]:
    parts, name = made
    xml = "".join(part for _, part in parts)
    texts = [] if name in ("w:del", "w:moveFrom") else [text for said, _ in parts for text in said]
    return texts, control(xml) if name == "sdt" else f"<{name}>{xml}</{name}>"


@given(
    st.recursive(
        st.text("abcde ", min_size=1, max_size=4).map(lambda text: ([text], run(text))),
        lambda parts: st.tuples(
            st.lists(parts, min_size=1, max_size=3),
            st.sampled_from(
                ["w:ins", "w:hyperlink", "w:smartTag", "w:moveTo", "w:customXml", "w:del", "w:moveFrom", "sdt"]
            ),
        ).map(wrapped),
        max_leaves=8,
    )
)
@settings(max_examples=60, deadline=None)
def test_wrappers_in_any_order(tmp_path_factory, tree):
    texts, xml = tree
    path = write(tmp_path_factory.mktemp("word") / "a.docx", f"<w:p>{xml}</w:p>{par('end')}")
    expected = "".join(texts)
    assert read_word(path)[1] == (f"{expected}\n\nend" if expected.strip() else "end")


def test_what_cannot_be_read_is_counted_with_its_reason(tmp_path):
    whole = write(tmp_path / "a.docx", par("fine")).read_bytes()
    (tmp_path / "b.docx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.docx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"))
    (tmp_path / "d.docx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 WordDocument")
    with zipfile.ZipFile(tmp_path / "e.docx", "w") as archive:
        archive.writestr("other.txt", "no document")
    (tmp_path / "f.docx").write_bytes(b"")
    counts = Counts()
    passages = list(ingest(CorpusConfig(sources=[str(tmp_path)]), counts))
    assert [passage.text for passage in passages] == ["fine"]
    assert counts.drops == {"unreadable document": 4, "locked document": 1}
    assert "c.docx (it is locked with a password; save it without one)" in counts.examples["locked document"][0]
    with pytest.raises(Unreadable, match="it holds no document"):
        read_word(tmp_path / "e.docx")
