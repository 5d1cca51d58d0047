"""Debian packages as folders: fetched by hash, unpacked without dpkg, and the licence of each file.

A package is named with its version, its place in a Debian archive and its SHA-256, so it is the same file wherever it comes
from: a folder that has it already, a mirror (``--mirror URL``), or ``apt-get download``.
"""

import fnmatch
import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gecko.core.errors import CorpusError

AR_MAGIC, AR_HEADER = b"!<arch>\n", 60

# All of these allow anyone to pass the text on, changed or not, under the same terms.
ALLOWED = frozenset(
    {"BSD-2-clause", "BSD-3-clause", "BSD-4-clause", "CC-BY-SA-3.0", "Expat", "FHS", "GPL-1+", "GPL-2", "GPL-2+"}
    | {"GPL-2.0+", "GPL-3+", "LGPL-2.1+", "Linux-man-pages-copyleft", "PSF-2.0", "PostgreSQL", "WordNet3.0", "Zlib"}
    | {"preserve-notice", "public-domain"}
)


@dataclass(frozen=True)
class Package:
    """A file of a Debian archive."""

    name: str
    version: str
    path: str
    sha256: str

    @property
    def file(self) -> str:
        """Its name without folders."""
        return self.path.rpartition("/")[2]


def fetch(package: Package, folder: Path, mirror: str = "") -> Path:
    """The package's file in ``folder``; it is downloaded if it is not there.

    Args:
        package: which.
        folder: where packages are kept.
        mirror: the address of a Debian archive; empty: ``apt-get download`` gets it from wherever apt does.

    Raises:
        CorpusError: it cannot be had, or it is another file than the one that is meant.
    """
    target = folder / package.file
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{package.file}.part"
        try:
            if mirror:
                _download(f"{mirror.rstrip('/')}/{package.path}", part)
            else:
                _by_apt(package, folder, part)
        except (OSError, subprocess.SubprocessError) as error:
            raise CorpusError(
                f"{package.name} {package.version} cannot be downloaded ({error}); give --mirror URL of a Debian archive "
                f"that has {package.path} (one of snapshots has every version), or put the file into {folder}"
            ) from error
        part.replace(target)
    found = hashlib.sha256(target.read_bytes()).hexdigest()
    if found != package.sha256:
        raise CorpusError(
            f"{target} has the SHA-256 {found}, not {package.sha256}; delete it to have it downloaded again, or name the "
            "version that you have in the corpus's TOML file"
        )
    return target


def _download(url: str, target: Path) -> None:
    if not url.startswith(("http://", "https://", "file://")):
        raise CorpusError(f"--mirror {url}: write http://, https:// or file://")
    with urllib.request.urlopen(url, timeout=120) as reply, target.open("wb") as file:  # noqa: S310 - checked above
        shutil.copyfileobj(reply, file)


def _by_apt(package: Package, folder: Path, target: Path) -> None:
    if shutil.which("apt-get") is None:
        raise OSError("there is no apt-get here")
    inside = folder / f"apt-{package.name}"
    inside.mkdir(exist_ok=True)
    command = ["apt-get", "download", "-q", f"{package.name}={package.version}"]
    done = subprocess.run(command, cwd=inside, capture_output=True, text=True, check=False)
    files = sorted(inside.glob("*.deb"))
    if done.returncode or not files:
        lines = done.stderr.strip().splitlines() or ["apt-get gave no file"]
        raise OSError(f"{lines[-1]}; perhaps apt-get update helps")
    files[0].replace(target)
    shutil.rmtree(inside)


def unpack(deb: Path, target: Path) -> Path:
    """The files of a package below ``target``, which is made whole or not at all.

    Raises:
        CorpusError: it is no Debian package.
    """
    if not target.exists():
        aside = target.with_name(f"{target.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(_data(deb))) as archive:
            archive.extractall(aside, filter="data")
        aside.replace(target)
    return target


def _data(deb: Path) -> bytes:
    """The archive ``data.tar.*`` in the ``ar`` archive that a package is."""
    content = deb.read_bytes()
    at = len(AR_MAGIC)
    while content.startswith(AR_MAGIC) and at + AR_HEADER <= len(content):
        header = content[at : at + AR_HEADER]
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar") and not name.endswith(".zst"):  # which tarfile reads from Python 3.14 on
            return content[at + AR_HEADER : at + AR_HEADER + size]
        at += AR_HEADER + size + size % 2
    raise CorpusError(f"{deb} is no Debian package with a data.tar in gz, bz2 or xz; delete it and run again")


@dataclass(frozen=True)
class Terms:
    """One stanza of a machine-readable ``debian/copyright``: these files are under this licence."""

    patterns: tuple[str, ...]
    licence: str


def read_terms(text: str) -> list[Terms]:
    """The stanzas of a machine-readable ``debian/copyright`` (DEP-5) that name files, in their order."""
    found = []
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1] in " \t" and name:
                fields[name] += f"\n{line.strip()}"
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "files" in fields and fields.get("license"):
            found.append(Terms(tuple(fields["files"].split()), fields["license"].partition("\n")[0].strip()))
    return found


def licence_of(path: str, terms: Sequence[Terms]) -> str:
    """The licence of a file: that of the last stanza that names it, as the format has it; empty: none does."""
    found = ""
    for one in terms:
        if any(fnmatch.fnmatchcase(path, pattern.removeprefix("./")) for pattern in one.patterns):
            found = one.licence
    return found


def is_allowed(licence: str) -> bool:
    """Whether a licence allows passing the text on: each part of an ``and``, one part of an ``or``."""
    return any(
        all(part.strip() in ALLOWED for part in re.split(r"\s+and\s+|,\s*", either))
        for either in re.split(r"\s+or\s+", licence)
    )


def files_below(root: Path, include: Sequence[str], exclude: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Files below a folder by their path in it, sorted; links are left out, so that no page comes twice."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not path.is_symlink():
            wanted = any(fnmatch.fnmatchcase(name, pattern) for pattern in include)
            if wanted and not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude):
                yield name, path
