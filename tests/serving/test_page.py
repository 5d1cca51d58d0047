"""The page in a real browser: it ranks, is used with the keyboard alone, and shows markup as text."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gecko.core.progress import Silent
from gecko.core.records import Passage
from gecko.encoder import Embedder, load
from gecko.serving.keys import load_keys
from gecko.serving.search import embed_corpus

from .browser import open_chromium
from .conftest import FakeModel, Live, StartServer

pytestmark = pytest.mark.slow

pytest.importorskip("selenium")

EVIL = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
CORPUS = [
    Passage("p0", "red cat", "the red cat sleeps in the house", ""),
    Passage("p1", "fish", "a big fish in the river", ""),
    Passage("p2", EVIL, f"the old tree {EVIL}", ""),
    Passage("p3", "", "bird flies fast", ""),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chrome = open_chromium(tmp_path_factory.mktemp("chromium"))
    if chrome is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    yield chrome
    chrome.quit()


def until(condition: Callable[[], Any]) -> Any:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    # The page may put new rows where those stood that are being read.
    wait = WebDriverWait(None, 60, 0.1, ignored_exceptions=[StaleElementReferenceException])
    return wait.until(lambda _: condition())  # type: ignore[type-var]


@pytest.fixture(scope="module")
def models(tiny: Embedder, tiny_model: Path) -> dict[str, Embedder]:
    return {"start": load(str(tiny_model), precision="float32", form="native"), "student": tiny}


def shown(browser: Any) -> list[list[tuple[str, str]]]:
    """(title, text) of the passages of each model, as the page shows them."""
    script = """return [...document.querySelectorAll('section')].map(
        (column) => [...column.querySelectorAll('li')].map(
            (row) => [row.querySelector('.title').textContent, row.querySelector('.text').textContent]))"""
    return [[(title, text) for title, text in column] for column in browser.execute_script(script)]


def heading(browser: Any) -> list[str]:
    return [element.text for element in browser.find_elements("css selector", "h2")]


def test_side_by_side_with_the_keyboard_alone(
    browser: Any, start_server: StartServer, models: dict[str, Embedder]
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    search = embed_corpus(models, CORPUS, Silent())
    live: Live = start_server(models, search=search)
    browser.get(live.url)
    until(lambda: "4 passages" in browser.find_element("id", "about").text)

    def press(*keys: str) -> None:
        ActionChains(browser).send_keys(*keys).perform()

    def expected(query: str, task: str, dim: int) -> list[list[tuple[str, str]]]:
        columns = []
        for name, model in models.items():
            hits = search.top(name, model.embed(query, task=task), dim, 10)
            columns.append([(hit["title"], hit["text"]) for hit in hits])
        return columns

    press("big fish", Keys.ENTER)  # the query has the focus from the start
    until(lambda: shown(browser) == expected("big fish", "RETRIEVAL_QUERY", 32))
    assert heading(browser) == ["start 32 dimensions", "student 32 dimensions"]
    press(Keys.TAB, "clu")  # the task menu
    until(lambda: browser.find_element("id", "task").get_attribute("value") == "CLUSTERING")
    press(Keys.TAB, *[Keys.ARROW_LEFT] * 28)  # the slider
    until(lambda: heading(browser) == ["start 4 dimensions", "student 4 dimensions"])
    until(lambda: shown(browser) == expected("big fish", "CLUSTERING", 4))
    focused = "return [document.activeElement.id || document.activeElement.className]"
    order = [browser.execute_script(focused)[0]]
    for _ in range(3):
        press(Keys.TAB)
        order.append(browser.execute_script(focused)[0])
    assert order == ["dim", "go", "text", "text"]

    # Nothing in a passage became markup, and the browser had nothing to complain about.
    assert browser.title == "Gecko: search side by side"
    assert browser.execute_script("return document.querySelectorAll('#results img, #results script').length") == 0
    assert EVIL in browser.find_element("id", "results").get_property("textContent")
    severe = [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]
    assert severe == []


def test_passages_of_ones_own(browser: Any, start_server: StartServer, models: dict[str, Embedder]) -> None:
    live = start_server(models)
    browser.get(live.url)
    until(lambda: browser.find_element("id", "passages").is_displayed())
    browser.find_element("id", "query").send_keys("house\n")
    until(lambda: "Give some passages" in browser.find_element("id", "status").text)
    browser.find_element("id", "passages").send_keys("a cat\na house\n\n" + "the fish")
    browser.find_element("id", "go").click()
    until(lambda: len(shown(browser)) == 2)
    assert all({text for _, text in column} == {"a cat", "a house", "the fish"} for column in shown(browser))


def test_a_server_with_keys_asks_for_one(browser: Any, start_server: StartServer, fake: FakeModel) -> None:
    key = "gecko-test-key-0123456789"
    live = start_server({"m": fake}, keys=load_keys(None, {"GECKO_API_KEYS": key}))
    browser.get(live.url)
    until(lambda: browser.find_element("id", "key").is_displayed())
    assert "an API key is needed" in browser.find_element("id", "status").text
    browser.find_element("id", "key").send_keys(key)
    browser.find_element("id", "query").send_keys("house")
    browser.find_element("id", "go").click()
    until(lambda: browser.find_element("id", "passages").is_displayed())
    browser.find_element("id", "passages").send_keys("one\ntwo")
    browser.find_element("id", "go").click()
    until(lambda: len(shown(browser)) == 1 and len(shown(browser)[0]) == 2)


def test_headers(live: Live) -> None:
    for path in ("/", "/page.js", "/page.css"):
        headers = live.ask(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    page = live.ask("/").body.decode()
    assert "http" not in page.replace("http-equiv", "") and "<style" not in page and " style=" not in page
    assert "innerHTML" not in live.ask("/page.js").body.decode()
