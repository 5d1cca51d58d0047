"""Where `make` takes torch from: prints the arguments for pip, and on standard error which index that is and why.

    python tools/torch_index.py torch==2.13.0 [INDEX]

On Linux the plain package index gives a build for CUDA of several gigabytes. Where there is no NVIDIA device and pip is
not told where to look, the CPU build's own index is asked once whether it has this version, and taken if it says so.
"""

import shutil
import subprocess
import sys
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SECONDS = 5
PLACES = ("index-url", "extra-index-url", "find-links", "no-index")  # settings of pip that say where packages are


def has_nvidia() -> bool:
    """Whether this machine shows an NVIDIA device: natively, or under WSL, which has no device file of its own for it."""
    device = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/proc/driver/nvidia/version").exists()
    return device or shutil.which("nvidia-smi") is not None or Path("/usr/lib/wsl/lib/nvidia-smi").exists()


def pip(*arguments: str, seconds: float | None = None) -> str | None:
    """What pip prints; none: it fails, or takes longer."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def configured() -> list[str]:
    """Which settings of pip say where packages are, as ``:env:.find-links``: not their values, which may hold a password."""
    keys = [line.partition("=")[0] for line in (pip("config", "list") or "").splitlines()]
    return [key for key in keys if key.rpartition(".")[2] in PLACES]


def choose(requirement: str, index: str = "") -> tuple[str, str]:
    """The index to take torch from, empty for what pip is set to, and the reason."""
    if index:
        return index, "as TORCH_INDEX says"
    if places := configured():
        return "", f"as pip is configured by {', '.join(places)}"
    if not sys.platform.startswith("linux"):
        return "", "the plain index has the build for this system"
    if has_nvidia():
        return "", "the plain index, since there is an NVIDIA device"
    name, _, version = requirement.partition("==")
    asked = ("index", "versions", name, "--index-url", CPU_INDEX, "--timeout", str(SECONDS), "--retries", "0")
    if (found := pip(*asked, seconds=SECONDS)) is None:
        why = f"{CPU_INDEX} did not answer within {SECONDS} seconds"
    elif f"{version}+cpu" not in found.replace(",", " ").split():
        why = f"{CPU_INDEX} has no {requirement}"
    else:
        return CPU_INDEX, "the CPU build, since there is no NVIDIA device"
    return "", f"the plain index, since {why}: a build of several gigabytes; TORCH_INDEX=URL names another"


def main() -> None:
    """See above."""
    index, why = choose(*sys.argv[1:3])
    print(f"torch: {why}{f' ({index})' if index else ''}", file=sys.stderr)
    if index:
        print(f"--index-url {index}")


if __name__ == "__main__":
    main()
