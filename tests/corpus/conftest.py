"""Files of each kind, made on the spot, and a PostgreSQL server of the tests' own."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..postgresql import installed, serve


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


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """``postgresql://gecko@127.0.0.1:PORT/postgres``, where a table of four pages lies; its password is in PGPASSWORD."""
    psycopg = pytest.importorskip("psycopg", reason="gecko-embed[corpus] is not installed")
    with serve(installed("initdb"), installed("postgres")) as address:
        with psycopg.connect(address) as connection:
            connection.execute("CREATE TABLE page (id int, title text, body text, made timestamp DEFAULT now())")
            connection.execute("CREATE SEQUENCE counter")
            rows = [(1, "A", "first"), (2, None, "zweite, größer"), (3, "C", "at :noon, 100 % of it"), (4, "", "last")]
            connection.cursor().executemany("INSERT INTO page VALUES (%s, %s, %s)", rows)
        yield address
