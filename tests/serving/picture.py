"""Makes the picture of the page that docs/how-to/serve.md shows, from a real server.

python -m tests.serving.picture MODEL [--corpus stdlib] [--query "read a file line by line"]
"""

import argparse
import io
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selenium.webdriver.common.keys import Keys

from .browser import open_chromium

OUT = Path(__file__).parents[2] / "docs" / "page.png"
COLOURS = 64  # enough for text, and a quarter of the bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--query", default="read a file line by line")
    options = parser.parse_args()
    command = [sys.executable, "-c", "from gecko.cli.main import main; main()", "serve", options.model]
    command += ["--start", "minilm", "--corpus", options.corpus, "--port", "0"]
    with tempfile.TemporaryDirectory() as profile:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        browser = open_chromium(Path(profile))
        try:
            if browser is None or server.stdout is None:
                sys.exit("needs chromium and chromedriver: apt-get install chromium chromium-driver")
            lines = iter(server.stdout)
            while (match := re.search(r"http://127\.0\.0\.1:\d+", line := next(lines))) is None:
                print(line, end="")
            browser.get(match[0])
            browser.find_element("id", "query").send_keys(options.query, Keys.ENTER)
            for _ in range(100):
                if browser.find_elements("css selector", "li"):
                    break
                time.sleep(0.1)
            time.sleep(1)
            save(browser.get_screenshot_as_png())
        finally:
            if browser is not None:
                browser.quit()
            server.terminate()
            server.wait(60)


def save(png: bytes) -> None:
    from PIL import Image

    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS).save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
