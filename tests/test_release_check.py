"""What may be released: a tag of the version, with a section of the changelog that is no longer open."""

from pathlib import Path

import pytest

import gecko

from .conftest import load_script

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("tag", "changelog", "says"),
    [
        ("v1.2.3", "## 1.2.3 (2027-01-02)\n", None),
        ("v1.2.3", "## 1.2.3 (unreleased)\n", "no section `## 1.2.3` with its date"),
        ("v1.2.3", "## 1.2.30 (2027-01-02)\n", "no section `## 1.2.3`"),
        ("v1.2.4", "## 1.2.4 (2027-01-02)\n", "the tag is v1.2.4, the version in src/gecko/__init__.py is 1.2.3"),
        ("", "", "the tag is not given"),
    ],
)
def test_a_tag_is_of_the_version_and_written_up(tag: str, changelog: str, says: str | None, tmp_path: Path) -> None:
    tool = load_script(ROOT / "tools" / "release_check.py")
    source = tmp_path / "src" / "gecko" / "__init__.py"
    source.parent.mkdir(parents=True)
    source.write_text('"""Words."""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    found = tool.problem(tag, tmp_path)
    assert found is None if says is None else found is not None and says in found


def test_the_changelog_has_the_version_of_the_package() -> None:
    assert f"\n## {gecko.__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
