"""Takes the pictures that the docs show: a run's report and the page of its model, in light and in dark colours.

    python -m tools.screenshots runs/demo --corpus stdlib --query "read a file line by line"

Chromium and its driver are needed: apt-get install chromium chromium-driver. The page is that of a real server. A picture
has few colours, so that it stays below 150 kB.
"""

import argparse
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.serving.browser import open_chromium

OUT = Path(__file__).resolve().parents[1] / "docs" / "screenshots"
COLOURS = 64  # enough for text, and a quarter of the bytes
LARGEST = 150_000  # bytes


def save(browser: Any, folder: Path, name: str) -> None:
    """Two files: ``NAME-light.png`` and ``NAME-dark.png``."""
    from PIL import Image

    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        path = folder / f"{name}-{scheme}.png"
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        picture.quantize(COLOURS).save(path, optimize=True)
        size = path.stat().st_size
        print(f"{path}: {size:,} bytes")
        if size > LARGEST:
            sys.exit(f"{path} is larger than {LARGEST:,} bytes")


def take(browser: Any, run: Path, corpus: str, query: str, folder: Path) -> None:
    """The report of a run as it opens, and what the page finds for a query."""
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get((run / "report.html").resolve().as_uri())
    save(browser, folder, "report")
    command = [sys.executable, "-c", "from gecko.cli.main import main; main()", "serve", str(run / "model")]
    command += ["--start", "minilm", "--corpus", corpus, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in server.stdout or ():
            print(line, end="")
            if match := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            sys.exit("the server did not start")
        browser.get(match[0])
        browser.find_element("id", "query").send_keys(query, Keys.ENTER)
        WebDriverWait(browser, 60, 0.1).until(lambda _: browser.find_elements("css selector", "li"))
        browser.execute_script("document.activeElement.blur()")
        save(browser, folder, "page")
    finally:
        server.terminate()
        server.wait(60)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--corpus", required=True, help="what the page searches: a file, a folder or stdlib")
    parser.add_argument("--query", required=True)
    parser.add_argument("-o", "--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = open_chromium(Path(profile))
        if browser is None:
            sys.exit("needs chromium and chromedriver: apt-get install chromium chromium-driver")
        try:
            take(browser, options.run, options.corpus, options.query, options.out)
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
