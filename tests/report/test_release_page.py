"""The page of a release: its data are those of the release, and a browser filters, searches and shows both orders."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gecko.cli.main import app
from gecko.core.errors import RunError
from gecko.fret.release import shipped
from gecko.report.release_page import MISSING, is_release, write_page

from ..serving.browser import open_chromium

EVIL = "</script><img src=x onerror=\"document.title='taken'\"> \u202e {{ rows }} <!--"


def row(number: int, **changed: Any) -> dict[str, Any]:
    """A row of four candidates: the start model has the last first, and the teacher the first."""
    candidates = [
        {
            "passage_id": f"p{number}-{place}",
            "title": f"Title {number}-{place}",
            "text": f"text {number}-{place} {EVIL}",
            "source": "made up",
            "licence": "Expat",
            "cosine": place / 10,
            "cosine_rank": 4 - place,
            "ql_sum": -10.0 - place,
            "ql_tokens": 5,
            "rc": 3.0 - place,
        }
        for place in range(4)
    ]
    return {
        "query_id": f"q{number}",
        "query": f"query number {number}",
        "task": "Given a claim, find a passage.",
        "corpus": ("apples", "pears")[number % 2],
        "kind": ("claim", "question", "keywords")[number % 3],
        "language": "en",
        "seed_id": f"p{number}-1",
        "candidates": candidates,
    } | changed


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    for split, numbers in (("train", range(60)), ("heldout", range(60, 66))):
        (folder / split).mkdir()
        rows = [row(number) for number in numbers]
        if split == "heldout":
            rows[0]["query"] = f"evil {EVIL}"
        pq.write_table(pa.Table.from_pylist(rows), folder / split / "apples.parquet")
    return folder


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_holds_the_rows_in_the_teachers_order(release: Path, tmp_path: Path) -> None:
    assert write_page(release, tmp_path / "page.html", 100) == (66, 66)
    data = data_of(tmp_path / "page.html")
    assert len(data["rows"]) == 66 and len(data["passages"]) == 66 * 4
    first = next(one for one in data["rows"] if one["query"] == "query number 7")
    assert (first["corpus"], first["kind"], first["split"]) == ("pears", "question", "train")
    titles = [data["passages"][number]["title"] for number, *_ in first["candidates"]]
    assert titles == [f"Title 7-{place}" for place in range(4)]
    assert next(scores for _, *scores in first["candidates"]) == [4, 0.0, -2.0, 3.0]
    assert data["passages"][first["seed"]]["title"] == "Title 7-1"
    assert {"source": "made up", "licence": "Expat"}.items() <= data["passages"][0].items()


def test_nothing_foreign_is_markup(release: Path, tmp_path: Path) -> None:
    write_page(release, tmp_path / "page.html", 100)
    text = (tmp_path / "page.html").read_text()
    assert "<img" not in text and "\u202e" not in text
    assert text.count("</script>") == 2
    assert any(one["query"].startswith("evil </script><img") for one in data_of(tmp_path / "page.html")["rows"])


def test_rows_that_were_judged_by_answers(tmp_path: Path) -> None:
    graded = row(0)
    for place, candidate in enumerate(graded["candidates"]):
        candidate |= {"ql_sum": None, "ql_tokens": None, "rc": None, "grade": (0, 3, 1, 2)[place]}
    pq.write_table(pa.Table.from_pylist([graded]), tmp_path / "rows.parquet")
    write_page(tmp_path, tmp_path / "page.html", 5)
    data = data_of(tmp_path / "page.html")
    [found] = data["rows"]
    assert [data["passages"][one[0]]["id"] for one in found["candidates"]] == ["p0-1", "p0-3", "p0-2", "p0-0"]
    assert all(ql is None for *_, ql, _ in found["candidates"])
    assert [rc > 0 for *_, rc in found["candidates"]] == [True, True, False, False]


def test_too_many_rows_are_drawn_alike(release: Path, tmp_path: Path) -> None:
    pages = []
    for name, most in (("a", 10), ("b", 10), ("c", 20)):
        assert write_page(release, tmp_path / name, most) == (most, 66)
        pages.append([one["query"] for one in data_of(tmp_path / name)["rows"]])
    assert pages[0] == pages[1] and set(pages[0]) < set(pages[2])


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_release_has_the_texts_of_this_python(name: str, tmp_path: Path) -> None:
    assert is_release(Path(name))
    assert write_page(Path(name), tmp_path / "page.html", 20)[0] == 20
    data = data_of(tmp_path / "page.html")
    texts = [one["text"] for one in data["passages"]]
    assert sum(text != MISSING for text in texts) > 0.8 * len(texts)
    assert all(one["kind"] for one in data["rows"])


def test_rows_without_texts_say_so(tmp_path: Path) -> None:
    bare = row(1)
    bare["candidates"] = [{key: one[key] for key in one if key not in ("title", "text")} for one in bare["candidates"]]
    pq.write_table(pa.Table.from_pylist([bare]), tmp_path / "rows.parquet")
    write_page(tmp_path, tmp_path / "page.html", 5)
    assert {one["text"] for one in data_of(tmp_path / "page.html")["passages"]} == {MISSING}


def test_what_is_no_release_is_refused(tmp_path: Path) -> None:
    assert not is_release(tmp_path)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "passages.parquet")
    with pytest.raises(RunError, match=r"passages\.parquet has no column candidates"):
        write_page(tmp_path, tmp_path / "page.html", 5)
    (tmp_path / "passages.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(RunError, match="cannot be read"):
        write_page(tmp_path, tmp_path / "page.html", 5)
    (tmp_path / "config.json").write_text("{}")
    assert not is_release(tmp_path)


def test_the_command(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["inspect", str(release), "--rows", "9"])
    assert done.exit_code == 0 and "inspect.html: 9 of 66 rows" in done.output
    assert len(data_of(tmp_path / "inspect.html")["rows"]) == 9
    refused = CliRunner().invoke(app, ["inspect", str(release), "--json"])
    assert refused.exit_code != 0 and "leave --json out" in f"{refused.output}{refused.exception}"
    (tmp_path / "run").mkdir()
    refused = CliRunner().invoke(app, ["inspect", "run", "-o", "page.html"])
    assert refused.exit_code != 0 and "gecko report makes that of a run" in f"{refused.output}{refused.exception}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("selenium")
    chrome = open_chromium(tmp_path_factory.mktemp("chromium"))
    if chrome is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    yield chrome
    chrome.quit()


def titles(browser: Any) -> list[list[str]]:
    """The candidates' titles in each order, of the row that is open."""
    script = """return [...document.querySelectorAll('details.row[open] .orders > section')].map(
        (column) => [...column.querySelectorAll('li > details > summary')].map((title) => title.textContent))"""
    return list(browser.execute_script(script))


@pytest.mark.slow
def test_a_browser_searches_filters_and_shows_both_orders(release: Path, tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    write_page(release, tmp_path / "page.html", 100)
    browser.get((tmp_path / "page.html").as_uri())

    def listed() -> int:
        return len(browser.find_elements(By.CSS_SELECTOR, "details.row"))

    def said() -> str:
        return str(browser.find_element(By.ID, "count").text)

    assert (said(), listed()) == ("66 found", 50)
    browser.find_element(By.ID, "more").click()
    assert listed() == 66 and not browser.find_element(By.ID, "more").is_displayed()
    Select(browser.find_element(By.ID, "corpus")).select_by_visible_text("pears")
    Select(browser.find_element(By.ID, "kind")).select_by_visible_text("claim")
    assert said() == "11 found"  # 3, 9, …, 63
    Select(browser.find_element(By.ID, "split")).select_by_visible_text("heldout")
    assert said() == "1 found"
    for name in ("corpus", "kind", "split"):
        Select(browser.find_element(By.ID, name)).select_by_visible_text("all")
    browser.find_element(By.ID, "search").send_keys("Title 61-1")
    assert said() == "1 found"  # the words of the query and of its candidates' titles
    browser.find_element(By.CSS_SELECTOR, "details.row > summary").click()
    WebDriverWait(browser, 30).until(lambda _: titles(browser))
    order = [f"Title 61-{place}" for place in range(4)]
    assert titles(browser) == [order, order[::-1]]
    assert len(browser.find_elements(By.CSS_SELECTOR, "li.seed")) == 2
    browser.find_element(By.CSS_SELECTOR, "li summary").click()
    assert "<img src=x" in browser.find_element(By.CSS_SELECTOR, "li details[open] blockquote").text
    assert browser.title != "taken" and not browser.find_elements(By.TAG_NAME, "img")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not browser.find_element(By.ID, "language").is_displayed()  # there is one alone
