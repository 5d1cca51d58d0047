"""The report and the page in light and in dark colours: text can be read, and the docs show both."""

import re
from pathlib import Path

import pytest
from PIL import Image, ImageStat

ROOT = Path(__file__).parents[1]
STYLES = {name: ROOT / "src" / "gecko" / name for name in ("report/report.html.j2", "serving/page/page.css")}
TEXT = {
    "--ink",
    "--soft",
    "--accent",
    "--warn",
    "--second",
    "--bad",
    "--down",
}  # those that a style has are text on paper


def luminance(colour: str) -> float:
    """Relative luminance of a colour (WCAG 2.2), 0 to 1."""
    digits = "".join(2 * digit for digit in colour) if len(colour) == 3 else colour
    parts = (int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def schemes(style: str) -> dict[str, dict[str, str]]:
    """The colours that each scheme names."""
    light = re.search(r"^:root \{(.*?)\}", style, re.MULTILINE | re.DOTALL)
    dark = re.search(r"@media \(prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}", style, re.DOTALL)
    assert light and dark
    colours = {
        name: dict(re.findall(r"(--\w+): #(\w+)", found[1])) for name, found in (("light", light), ("dark", dark))
    }
    assert colours["light"].keys() == colours["dark"].keys()
    return colours


def test_contrast_of_black_and_white() -> None:
    assert contrast("000", "ffffff") == pytest.approx(21)
    assert contrast("777777", "fff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("name", STYLES)
def test_text_can_be_read(name: str) -> None:
    for scheme, colours in schemes(STYLES[name].read_text(encoding="utf-8")).items():
        low = {each: contrast(colours[each], colours["--paper"]) for each in TEXT & colours.keys()}
        assert len(low) >= 5
        assert not {(scheme, each): ratio for each, ratio in low.items() if ratio < 4.5}


@pytest.mark.parametrize("name", ["report", "page"])
def test_the_docs_show_both(name: str) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        path = ROOT / "docs" / "screenshots" / f"{name}-{scheme}.png"
        assert path.stat().st_size < 150_000
        with Image.open(path) as picture:
            assert picture.width >= 1000
            brightness[scheme] = ImageStat.Stat(picture.convert("L")).median[0]
    assert brightness["light"] > 220 and brightness["dark"] < 60
