"""Files of each kind, made on the spot, and a PostgreSQL server of the tests' own."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def pdf_bytes(*contents: bytes, title: str = "") -> bytes:
    """A PDF with one page a content stream."""
    count = len(contents)
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(count))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, content in enumerate(contents):
        packed = zlib.compress(content)
        page = f"/Parent 2 0 R /MediaBox [0 0 600 800] /Contents {5 + 2 * number} 0 R"
        objects.append(f"<< /Type /Page {page} /Resources << /Font << /F1 3 0 R >> >> >>".encode())
        objects.append(b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed))
    objects.append(f"<< /Title ({title}) >>".encode())
    data, places = bytearray(b"%PDF-1.4\n"), []
    for number, value in enumerate(objects, start=1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, value)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    data += b"".join(b"%010d 00000 n \n" % place for place in places)
    data += b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        len(objects) + 1,
        len(objects),
        start,
    )
    return bytes(data)


@pytest.fixture
def make_pdf() -> Callable[..., bytes]:
    """The bytes of a PDF from its pages' content streams."""
    return pdf_bytes


@pytest.fixture
def pdf(tmp_path: Path) -> Callable[..., Path]:
    """Write a PDF whose pages hold one line each."""

    def make(name: str, *pages: str, title: str = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pdf_bytes(*(f"BT /F1 12 Tf 50 700 Td ({page}) Tj ET".encode() for page in pages), title=title))
        return path

    return make


PASSWORD = "not in the source"


def _binary(name: str) -> str:
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


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """``postgresql://gecko@127.0.0.1:PORT/postgres``, where a table of four pages lies; its password is in PGPASSWORD."""
    psycopg = pytest.importorskip("psycopg", reason="gecko-embed[corpus] is not installed")
    initdb, postgres = _binary("initdb"), _binary("postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
                connection = _connected(psycopg, port, process, folder / "log")
                with connection:
                    connection.execute(
                        "CREATE TABLE page (id int, title text, body text, made timestamp DEFAULT now())"
                    )
                    connection.execute("CREATE SEQUENCE counter")
                    rows = [
                        (1, "A", "first"),
                        (2, None, "zweite, größer"),
                        (3, "C", "at :noon, 100 % of it"),
                        (4, "", "last"),
                    ]
                    connection.cursor().executemany("INSERT INTO page VALUES (%s, %s, %s)", rows)
                connection.close()
                yield f"postgresql://gecko@127.0.0.1:{port}/postgres"
            finally:
                process.send_signal(signal.SIGINT)  # the server's word for: now, without waiting for its clients


def _connected(psycopg: Any, port: int, process: "subprocess.Popen[bytes]", log: Path) -> Any:
    end = time.monotonic() + 60
    while True:
        try:
            return psycopg.connect(host="127.0.0.1", port=port, user="gecko", dbname="postgres")
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"the server does not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
