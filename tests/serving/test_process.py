"""``gecko serve`` as a process: what it refuses at start, and how it ends."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gecko.core.errors import ConfigError
from gecko.serving.config import ServeConfig, make_serve_config
from gecko.serving.keys import ApiKeys
from gecko.serving.server import bind, check_open, load_models, spec_name

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def gecko(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from gecko.cli.main import main; main()", "serve", *map(str, arguments)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"} | {"GECKO_API_KEYS": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=300)


def test_bad_clients_and_sigterm_lose_nothing(tiny_model: Path) -> None:
    """The soak in its short form: drops, vectors, memory, SIGTERM under load, keys in logs."""
    done = subprocess.run(
        [sys.executable, "benchmarks/serve_soak.py", "--model", tiny_model, "--seconds", "4", "--clients", "12"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"] and result["ratio"] == 1 and result["answers checked"] > 20


def test_other_machines_need_keys(tmp_path: Path) -> None:
    done = gecko("minilm", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2 and "there are no API keys" in done.stderr and "--new-key" in done.stderr
    made = gecko("--new-key", "alice", "--api-keys", tmp_path / "keys")
    key = made.stdout.strip()
    assert made.returncode == 0 and key.startswith("gecko-") and key not in (tmp_path / "keys").read_text()
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600


def test_open_only_on_loopback() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check_open(host, ApiKeys([]))
    for host in ("0.0.0.0", "::", "", "10.0.0.1", "example.org"):
        with pytest.raises(ConfigError, match="no API keys"):
            check_open(host, ApiKeys([]))
        check_open(host, ApiKeys([b"x" * 32]))


def test_a_port_that_is_taken() -> None:
    first = bind("127.0.0.1", 0)
    first.listen()
    with pytest.raises(ConfigError, match=r"cannot listen on 127.0.0.1:\d+: .*--port"):
        bind("127.0.0.1", first.getsockname()[1])
    first.close()


def test_names(tiny_model: Path) -> None:
    assert [spec_name(spec) for spec in ("minilm", "hf:a/b-c.1", "runs/demo/model", "some/folder", "model")] == [
        *("minilm", "b-c.1", "demo", "folder", "model"),
    ]
    both = load_models(str(tiny_model), str(tiny_model), None)
    first, second = both
    assert first == f"{second}-start"
    with pytest.raises(ConfigError, match="--name"):
        load_models(str(tiny_model), None, "no/slashes")


def test_settings() -> None:
    assert make_serve_config([]) == ServeConfig()
    assert make_serve_config(["max_texts=5", "timeout=1.5"]) == ServeConfig(max_texts=5, timeout=1.5)
    for text, message in (
        ("max_text=5", "not known; a server has max_body_bytes"),
        ("timeout=0", "timeout = 0"),
        ("timeout=inf", "finite"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_serve_config([text])
