"""A SQL query against a PostgreSQL server of the test's own, on a port of the loopback address."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gecko.config import CorpusConfig
from gecko.corpus import ingest
from gecko.corpus.readers import Reader, read_placed, read_source, source_identity
from gecko.errors import CorpusError
from gecko.store import Counts

PASSWORD = "not in the source"


def binary(name: str) -> str:
    """A program of the server, which distributions keep out of the path; the newest of several."""
    found = shutil.which(name) or max(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), default=None)
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not on this machine; install the package postgresql to run this test")
    return found


def unprivileged(folder: Path) -> dict[str, Any]:
    """The server refuses to be root: then it is nobody, whose folder this is."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    for path in (folder, *folder.iterdir()):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """``postgresql://gecko@127.0.0.1:PORT/postgres``, where a table of four pages lies; its password is in PGPASSWORD."""
    psycopg = pytest.importorskip("psycopg", reason="gecko-embed[corpus] is not installed")
    initdb, postgres = binary("initdb"), binary("postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not in pytest's own folder, which nobody else may enter.
    with tempfile.TemporaryDirectory(prefix="gecko-postgresql-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        (folder / "password").write_text(PASSWORD)
        who = unprivileged(folder)
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
                        "CREATE TABLE page (number int, head text, body text, made timestamp DEFAULT now())"
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


QUERY = "SELECT number AS id, head AS title, body AS text FROM page ORDER BY number"


def test_the_rows_of_a_query(server: str) -> None:
    spec = f"{server}#{QUERY}"
    found = [(passage.id, passage.title, passage.text, passage.source) for passage in read_source(spec)]
    assert found == [
        ("1", "A", "first", "postgresql"),
        ("2", "", "zweite, größer", "postgresql"),
        ("3", "C", "at :noon, 100 % of it", "postgresql"),
        ("4", "", "last", "postgresql"),
    ]
    assert [place for place, _ in read_placed(spec, Reader())][-1] == f"{server}: row 4"
    counts = Counts()
    passages = list(ingest(CorpusConfig(sources=[spec], min_chars=5), counts))
    assert [passage.id for passage in passages] == ["1", "2", "3"]
    assert counts.drops == {"too short": 1}


def test_marks_of_the_language_stay(server: str) -> None:
    query = "SELECT number::text AS id, body AS text FROM page WHERE body LIKE '%:noon%' OR body = 'a :b'"
    assert [passage.id for passage in read_source(f"{server}#{query}")] == ["3"]


def test_rows_come_one_at_a_time(server: str) -> None:
    """A client that fetched all of these rows first would never give one."""
    rows = read_source(f"{server}#SELECT generate_series(1, 2000000000) AS id, 'text' AS text")
    assert [next(rows).id for _ in range(3000)] == [str(number) for number in range(1, 3001)]
    rows.close()  # type: ignore[attr-defined]


def test_identity_follows_the_rows(server: str) -> None:
    one = source_identity(f"{server}#{QUERY}")
    assert one == source_identity(f"{server}#{QUERY}")
    assert one != source_identity(f"{server}#{QUERY.replace('ORDER BY', 'WHERE number < 4 ORDER BY')}")


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("DELETE FROM page", "syntax error"),  # where a cursor wants a SELECT
        (
            "WITH gone AS (DELETE FROM page RETURNING body) SELECT body AS text FROM gone",
            "must not contain data-modifying",
        ),
        ("SELECT nextval('counter')::text AS text", "read-only transaction"),
        ("SELECT absent FROM page", 'column "absent" does not exist'),
        ("SELECT number AS id FROM page", "no field is named text"),
        ("SELECT made AS id, body AS text FROM page", "the id is of type datetime"),
        ("SELEC", "syntax error"),
    ],
)
def test_what_is_refused(server: str, query: str, says: str) -> None:
    with pytest.raises(CorpusError, match=says) as caught:
        list(read_source(f"{server}#{query}"))
    assert server in str(caught.value)
    assert len(list(read_source(f"{server}#{QUERY}"))) == 4


def test_a_wrong_password_and_no_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "wrong one")
    with pytest.raises(CorpusError, match="password authentication failed") as caught:
        list(read_source(f"{server}#{QUERY}"))
    assert "wrong one" not in str(caught.value)
    with pytest.raises(CorpusError, match=r"127\.0\.0\.1.*refused"):
        list(read_source(f"postgresql://gecko@127.0.0.1:1/postgres#{QUERY}"))
