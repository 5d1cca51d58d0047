"""A PostgreSQL server of the tests' own, on a port of the loopback address."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "not in the source"


def installed(name: str) -> str:
    """A program of the server, which distributions keep out of the path; the newest of several."""
    found = shutil.which(name) or max(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), default=None)
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not on this machine; install the package postgresql to run this test")
    return found


def _unprivileged(folder: Path) -> dict[str, Any]:
    """The server refuses to be root: then it is nobody, whose folder this is."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    for path in (folder, *folder.iterdir()):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@contextmanager
def serve(initdb: str, postgres: str) -> Iterator[str]:
    """``postgresql://gecko@127.0.0.1:PORT/postgres``; the password is in PGPASSWORD meanwhile."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"postgresql://gecko@127.0.0.1:{port}/postgres"
    # Not in pytest's own folder, which nobody else may enter.
    with tempfile.TemporaryDirectory(prefix="gecko-postgresql-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        (folder / "password").write_text(PASSWORD)
        who = _unprivileged(folder)
        options = ["--username=gecko", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync"]
        command = [initdb, "-D", str(folder / "data"), *options, "--encoding=UTF8", "--locale=C"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **who)
        settings = ("listen_addresses=127.0.0.1", f"port={port}", "unix_socket_directories=", "fsync=off")
        command = [postgres, "-D", str(folder / "data"), *(word for one in settings for word in ("-c", one))]
        log = (folder / "log").open("wb")
        with log, subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **who) as process:
            try:
                patch.setenv("PGPASSWORD", PASSWORD)
                _wait(address, process, folder / "log")
                yield address
            finally:
                process.send_signal(signal.SIGINT)  # the server's word for: now, without waiting for its clients


def _wait(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    import psycopg

    end = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(address).close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"the server does not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
