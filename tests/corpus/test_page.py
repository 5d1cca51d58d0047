"""HTML pages of every kind keep their main text, whole and once, and lose their menus."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts
from gecko.corpus import ingest
from gecko.corpus.bounds import Unreadable
from gecko.corpus.page import read_page

MENU = "<nav><a href='/'>Start</a> <a href='/all'>All herbs</a></nav>"
FOOT = "<footer><p>Printed by nobody</p></footer>"
BOILERPLATE = ("Start", "All herbs", "Printed by nobody")
LONG = "".join(
    f"<p>Paragraph {number} tells how sage grew in bed {number}, what the gardener did with it over the year, and why the "
    f"second cut in August, which her neighbours left out, brought {number + 3} pounds more than the first one.</p>"
    for number in range(12)
)


def page(body: str, title: str = "Herbs") -> str:
    head = f"<head><meta charset='utf-8'><title>{title}</title></head>"
    return f"<!doctype html><html>{head}<body>{MENU}{body}{FOOT}</body></html>"


def text_of(body: str, mode: str = "main") -> str:
    return read_page(page(body).encode(), mode)[1]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param("<main><p>Bed two is dry.</p></main>", "Bed two is dry.", id="short"),
        pytest.param("<p>Bed two is dry.</p>", "Bed two is dry.", id="short, not marked"),
        pytest.param(
            "<main><h1>Help</h1><details><summary>Is mint hardy?</summary><div>Yes.</div></details></main>",
            "# Help\n\n## Is mint hardy?\n\nYes.",
            id="details",
        ),
        pytest.param(
            "<main><h1>Help</h1><h2>Mint</h2><div><button aria-expanded='false' aria-controls='a'>Is it hardy?</button>"
            "<div id='a' hidden>Yes.</div></div><button>Print</button></main>",
            "# Help\n\n## Mint\n\n### Is it hardy?\n\nYes.",
            id="buttons",
        ),
        pytest.param(
            "<div><div class='card-header'><a data-toggle='collapse' href='#a'>Is it hardy?</a></div>"
            "<div id='a' style='display:none'>Yes.</div></div>",
            "## Is it hardy?\n\nYes.",
            id="links that open",
        ),
        pytest.param(
            "<main><dl><dt>Sage<dd>A shrub.<dt>Mint<dd><p>A herb.</p><p>It spreads.</p></dl></main>",
            "Sage\n: A shrub.\n\nMint\n: A herb.\n\nIt spreads.",
            id="definitions",
        ),
        pytest.param(
            "<main><table><thead><tr><th>Herb<th>Height</thead><tr><td>Sage<td>60 | 70<tr><td><p>Mint</p><p>big</p><td>"
            "</table></main>",
            "| Herb | Height |\n|---|---|\n| Sage | 60 \\| 70 |\n| Mint big |  |",
            id="table",
        ),
        pytest.param(
            "<table><tr><td><a href='/'>Start</a><td><h1>Old</h1><p>Sage is old.</p></table>",
            "# Old\n\nSage is old.",
            id="table that arranges",
        ),
        pytest.param(
            "<main><p>Call <code>dig()</code>:</p><pre><code>def dig():\n    return ```\n</code></pre></main>",
            "Call dig():\n\n````\ndef dig():\n    return ```\n````",
            id="code",
        ),
        pytest.param(
            "<main><table><tr><td class='linenos'><pre>1\n2</pre><td><pre># soil\nx = 1</pre></table></main>",
            "```\n# soil\nx = 1\n```",
            id="code with numbers",
        ),
        pytest.param(
            "<main><ul><li>Sage<ul><li>white<li>red</ul><li>Mint<p>It spreads.</p></ul><ol><li>Dig<li>Sow</ol></main>",
            "- Sage\n  - white\n  - red\n- Mint\n  It spreads.\n1. Dig\n2. Sow",
            id="lists",
        ),
        pytest.param(
            "<ul><li><h3><a href='/1'>Sage</a></h3><p>A shrub of the south.</p><li><h3><a href='/2'>Mint</a></h3>"
            "<p>A herb of the north.</p></ul>",
            "### Sage\n\nA shrub of the south.\n\n### Mint\n\nA herb of the north.",
            id="cards with headings",
        ),
        pytest.param(
            "<div><div><a href='/1'>Sage</a><p>A shrub of the south.</p><a href='/1'>More</a></div>"
            "<div><a href='/2'>Mint</a><p>A herb of the north.</p><a href='/2'>More</a></div></div>",
            "Sage\n\nA shrub of the south.\n\nMint\n\nA herb of the north.",
            id="cards with links",
        ),
        pytest.param(
            "<main><a href='/1'><div>Sage</div><div>A shrub of the south, with grey leaves, which bees like in June.</div>"
            "</a></main>",
            "Sage\n\nA shrub of the south, with grey leaves, which bees like in June.",
            id="card that is a link",
        ),
        pytest.param(
            "<main><h1>Beds</h1><ul><li><a href='/1'>Sage</a></ul></main>", "# Beds\n\n- Sage", id="list of links"
        ),
        pytest.param(
            "<div class='nav-bar'><a href='/x'>Beds</a></div><div><a href='/y'>Shop</a> <a href='/z'>Map</a></div>"
            "<div>Sage is dry.</div><div>Mint is wet.</div>",
            "Sage is dry.\n\nMint is wet.",
            id="menus of divs",
        ),
        pytest.param(
            "<main><h1>Why is it dry?</h1><p>Mine is.</p><div class='comments'><div class='comment'><p>Water it.</p></div>"
            "<div class='comment'><p>Or move it.</p></div></div></main>",
            "# Why is it dry?\n\nMine is.\n\nWater it.\n\nOr move it.",
            id="forum",
        ),
        pytest.param(
            "<article><h2>One</h2><p>Sage.</p></article><article><h2>Two</h2><p>Mint.</p></article>",
            "## One\n\nSage.\n\n## Two\n\nMint.",
            id="articles",
        ),
        pytest.param(
            "<main><p>Seen.</p><p hidden>a</p><p style='display: none'>b</p><p aria-hidden='true'>c</p><template>d</template>"
            "<noscript>e</noscript><script>f</script><img src='data:image/png;base64,iVBORw0='><div role='tabpanel' hidden>"
            "A tab.</div></main>",
            "Seen.\n\nA tab.",
            id="hidden",
        ),
        pytest.param(
            "<main><h1>Herbs</h1></main><section><p>Outside.</p></section>", "# Herbs\n\nOutside.", id="empty main"
        ),
        pytest.param(
            "<form><h1>Tax</h1><p>It is due in May.</p></form>", "# Tax\n\nIt is due in May.", id="page in a form"
        ),
        pytest.param(
            "<main><p>Rain.</p><form><label>Name</label><input><button>Send it</button></form></main>",
            "Rain.",
            id="form",
        ),
        pytest.param(
            "<main><aside class='note'>Wear gloves.</aside><aside>Our shop</aside></main>", "Wear gloves.", id="asides"
        ),
        pytest.param(
            "<main><p>It is <math alttext='x^2'><mi>x</mi></math>, H<sub>2</sub>O<br>and so&shy;il.</p></main>",
            "It is $x^2$, H2O\nand soil.",
            id="inline",
        ),
        pytest.param(
            "<p>One <b>two <i>three</b> four</i><div>five<p>six</div>",
            "One two three four\n\nfive\n\nsix",
            id="malformed",
        ),
    ],
)
def test_the_main_text_is_kept_and_nothing_else(body, expected):
    assert text_of(body) == expected


@pytest.mark.parametrize(
    "around",
    [
        "<main><article>{}</article>{}</main>",
        "<div class='row'><div class='content'>{}</div>{}</div>",
        "<div class='x'><div class='y'>{}</div><div class='z'>{}</div></div>",
    ],
)
def test_a_long_article_keeps_all_of_its_parts_and_none_of_its_surroundings(around):
    parts = (
        "<h2>Harvest</h2><table><tr><th>Herb<th>Pounds<tr><td>Sage<td>9</table><details><summary>Why so late?</summary>"
    )
    parts += "<div>It rained.</div></details><pre>dig()</pre><dl><dt>Lime<dd>A white dust.</dl>"
    beside = (
        "<div class='related-posts'><h3>More</h3><p>A beside text.</p></div><div class='share'><a href='/f'>Tell beside</a>"
        "</div><div id='comments'><div class='comment'>A beside comment.</div></div><aside>More beside.</aside>"
        "<div class='newsletter'>Subscribe beside.</div>"
    )
    text = text_of(around.format(f"<h1>The year of the sage</h1>{LONG}{parts}", beside))
    assert text.startswith("# The year of the sage\n\nParagraph 0 tells how")
    assert text.count("tells how sage grew") == 12
    assert (
        "## Harvest\n\n| Herb | Pounds |\n|---|---|\n| Sage | 9 |\n\n### Why so late?\n\nIt rained.\n\n```\ndig()\n```"
        in text
    )
    assert text.endswith("Lime\n: A white dust.")
    assert not any(word in text for word in (*BOILERPLATE, "beside"))


ROWS = [
    f"Row {number} of the sage was cut in week {number + 20}, after the rain of the week before."
    for number in range(20)
]
OPEN = "The garden opens at nine on every day but Monday."


@pytest.mark.parametrize(
    ("long", "expected"),
    [
        pytest.param(f"<p>{' '.join(ROWS)}</p>", " ".join(ROWS), id="paragraph"),
        pytest.param(
            f"<ul>{''.join(f'<li>{row}</li>' for row in ROWS)}</ul>", "\n".join(f"- {row}" for row in ROWS), id="list"
        ),
        pytest.param(f"<blockquote>{' '.join(ROWS)}</blockquote>", " ".join(ROWS), id="quote"),
        pytest.param(f"<pre>{' '.join(ROWS)}</pre>", f"```\n{' '.join(ROWS)}\n```", id="code"),
        pytest.param(f"<dl><dt>Sage<dd>{' '.join(ROWS)}</dl>", f"Sage\n: {' '.join(ROWS)}", id="definitions"),
        pytest.param(
            f"<table><tr><th>Herb<th>Told<tr><td>Sage<td>{' '.join(ROWS)}</table>",
            f"| Herb | Told |\n|---|---|\n| Sage | {' '.join(ROWS)} |",
            id="table",
        ),
        pytest.param(
            f"<div><h2>Rows</h2>{''.join(f'<p>{row}</p>' for row in ROWS)}</div>",
            "## Rows\n\n" + "\n\n".join(ROWS),
            id="box",
        ),
    ],
)
@pytest.mark.parametrize("short", [f"<p>{OPEN}</p>", f"<div><p>{OPEN}</p></div>"])
def test_a_long_part_does_not_displace_the_short_ones_beside_it(long, expected, short):
    assert (
        text_of(f"<h1>The herb garden</h1>{long}{short}").removeprefix("# The herb garden\n\n")
        == f"{expected}\n\n{OPEN}"
    )


def test_a_word_beside_the_main_text_is_not_kept_because_the_text_has_it_too():
    text = text_of(f"<div class='byline'><p>Sage</p></div><div class='y'><h1>The herb garden</h1>{LONG}</div>")
    assert text.startswith("# The herb garden\n\nParagraph 0 tells how")


@pytest.mark.parametrize("around", ["<main>{}</main>", "<div class='body'>{}</div>"])
@pytest.mark.parametrize("tag", ["section", "div"])
@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("related-gardens", "Related gardens"),
        ("sharing-cuttings", "3.1. Sharing cuttings"),
        ("social-bees", "Social Bees <a href='#social-bees'>¶</a>"),
        ("newsletter-archive-1", "The newsletter archive"),
        ("footer", "Footer"),
        ("promo-cafe", "Promo café"),
        ("comments", "2.4. Comments"),
        ("comments-on-soil", "Comments on soil"),
        ("gdpr", "GDPR"),
        ("cookies-policy", "Cookies policy"),
        ("sidebar", "<span>Sidebar</span>"),
    ],
)
def test_a_section_whose_id_repeats_its_heading_is_text(around, tag, name, heading):
    said = f"<{tag} id='{name}'><h2>{heading}</h2><p>The bees of this bed come in June.</p></{tag}>"
    text = text_of(around.format(f"<h1>The herb garden</h1>{LONG}{said}"))
    assert text.endswith("The bees of this bed come in June.")
    assert "\n\n## " in text


@pytest.mark.parametrize(
    "beside",
    [
        "<div id='sidebar'><h3>About me</h3><p>A beside text.</p></div>",
        "<div id='newsletter'><p>A beside text.</p></div>",
        "<section class='newsletter' id='newsletter'><h2>Newsletter</h2><p>A beside text.</p></section>",
        "<div id='related-posts'><h2>Related posts</h2><ul><li><a href='/1'>The other texts of this month</a></ul></div>",
        "<div id='comments'><h2>Comments</h2><ol class='commentlist'><li><p>A beside comment.</p></ol></div>",
        "<aside id='sharing'><h2>Sharing</h2><p>A beside text.</p></aside>",
    ],
)
def test_a_widget_with_a_heading_is_no_text(beside):
    text = text_of(f"<main><h1>The herb garden</h1>{LONG}{beside}</main>")
    assert text.count("tells how sage grew") == 12
    assert text.endswith("more than the first one.")


def test_marks_of_headings_are_no_text():
    body = (
        "<div role='main'><h1>herbs.Sage<a class='headerlink' href='#sage'>¶</a></h1><dl><dt>cut(inches)<a href='#cut'>¶</a>"
        "</dt><dd>Cuts it.</dd></dl><h2>Notes <button>Copy</button></h2><p>Dry.</p></div>"
    )
    assert read_page(page(body, "x").encode(), "main") == (
        "herbs.Sage",
        "# herbs.Sage\n\ncut(inches)\n: Cuts it.\n\n## Notes\n\nDry.",
    )


def test_all_is_all():
    text = text_of("<main><h2>Bed</h2><p hidden>Later.</p></main><aside>Shop</aside>", "all")
    assert text == "Start All herbs\n\n## Bed\n\nLater.\n\nShop\n\nPrinted by nobody"


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "windows-1252"])
def test_the_encoding_that_a_page_declares(encoding):
    html = page("<main><p>Thymian, Süßholz, “Gänseblümchen”</p></main>").replace("utf-8", encoding)
    written = "cp1252" if encoding == "iso-8859-1" else encoding  # as browsers take it
    assert read_page(html.encode(written), "main")[1] == "Thymian, Süßholz, “Gänseblümchen”"


@pytest.mark.parametrize("declared", ["windows-1251", "shift_jis", "no such thing", ""])
def test_utf_8_is_read_as_such_whatever_the_page_declares(declared):
    html = page("<main><p>Süßholz</p></main>").replace("utf-8", declared)
    assert read_page(html.encode(), "main")[1] == "Süßholz"
    assert read_page(html.encode("utf-16"), "main")[1] == "Süßholz"


@pytest.mark.parametrize("tag", ["div", "b", "span", "font"])
def test_deep_nesting_loses_nothing(tag):
    assert text_of(f"<p>Before.</p>{f'<{tag}>' * 4000}<p>Inside.</p>{f'</{tag}>' * 4000}<p>After.</p>").split() == [
        "Before.",
        "Inside.",
        "After.",
    ]


def test_text_that_only_a_script_shows():
    said = "The sage stood in bed nine until the frost came and took it. " * 4
    data = json.dumps({"@type": "Article", "articleBody": said})
    assert said.strip() in text_of(f"<div id='app'></div><script type='application/ld+json'>{data}</script>")


def test_a_page_without_main_text_is_counted(tmp_path):
    (tmp_path / "a.html").write_text(page("<main><p>Sage is dry.</p></main>"))
    (tmp_path / "b.html").write_text(page(""))
    (tmp_path / "c.html").write_text(page("<div id='app'></div><noscript>Turn scripts on.</noscript>"))
    (tmp_path / "d.html").write_bytes(b"")
    (tmp_path / "e.html").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "f.html").write_text("<p>A fragment.</p>")
    counts = Counts()
    passages = list(ingest(CorpusConfig(sources=[str(tmp_path)]), counts))
    assert [passage.text for passage in passages] == ["Sage is dry.", "A fragment."]
    assert counts.drops == {"page without main text": 2, "unreadable document": 2}
    assert "b.html (--set corpus.html=all keeps" in counts.examples["page without main text"][0]
    with pytest.raises(Unreadable, match="it is empty"):
        read_page(b" ", "main")


words = st.lists(st.sampled_from(["sage", "mint", "thyme", "lovage"]), min_size=1, max_size=5).map(" ".join)
blocks = st.recursive(
    words.map(lambda text: ([text], f"<p>{text}</p>")),
    lambda parts: st.tuples(
        st.sampled_from(["div", "section", "ul", "details", "blockquote", "table", "dl", "h2", "x-box"]),
        st.lists(parts, min_size=1, max_size=3),
    ).map(lambda made: nested(*made)),
    max_leaves=8,
)


def nested(tag: str, parts: list[tuple[list[str], str]]) -> tuple[list[str], str]:
    inside = {"ul": "<li>{}</li>", "table": "<tr><td>{}</td><td>x</td></tr>", "dl": "<dd>{}</dd>", "h2": "<b>{}</b>"}
    inner = "".join(inside.get(tag, "{}").format(html) for _, html in parts)
    return [text for said, _ in parts for text in said], f"<{tag}>{inner}</{tag}>"


@given(st.lists(blocks, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_marked_text_is_read_in_order_and_once(parts):
    expected = " ".join(text for said, _ in parts for text in said)
    _, text = read_page(
        page(f"<main><p>first</p>{''.join(html for _, html in parts)}<p>last</p></main>").encode(), "main"
    )
    found = [word for word in text.replace("|", " ").split() if word.isalpha() and word != "x"]
    assert found == ["first", *expected.split(), "last"]
