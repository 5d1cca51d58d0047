"""Whether a tag may be released: it is the version of the package, and CHANGELOG.md has a section for it.

python tools/release_check.py v1.2.3
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def problem(tag: str, root: Path = ROOT) -> str | None:
    """Why a tag may not be released; none: it may."""
    source = (root / "src/gecko/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    if found is None:
        return 'src/gecko/__init__.py has no line __version__ = "…"'
    version = found[1]
    if tag != f"v{version}":
        return f"the tag is {tag or 'not given (TAG=v…)'}, the version in src/gecko/__init__.py is {version}"
    if not re.search(
        rf"^## {re.escape(version)}\b(?!.*unreleased)", (root / "CHANGELOG.md").read_text("utf-8"), re.M | re.I
    ):
        return f"CHANGELOG.md has no section `## {version}` with its date"
    return None


if __name__ == "__main__":
    if found := problem(sys.argv[1]):
        sys.exit(f"not to be released: {found}")
