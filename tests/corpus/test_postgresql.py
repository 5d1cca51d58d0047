"""A SQL query against a PostgreSQL server of the test's own, on a port of the loopback address."""

import pytest

from gecko.config.stages import CorpusConfig
from gecko.core.counts import Counts
from gecko.core.errors import CorpusError
from gecko.corpus import ingest
from gecko.corpus.readers import Reader, read_placed, read_source, source_identity

pytestmark = pytest.mark.slow

QUERY = "SELECT id, title, body AS text FROM page ORDER BY id"


def test_the_rows_of_a_query(postgresql: str) -> None:
    spec = f"{postgresql}#{QUERY}"
    found = [(passage.id, passage.title, passage.text, passage.source) for passage in read_source(spec)]
    assert found == [
        ("1", "A", "first", "postgresql"),
        ("2", "", "zweite, größer", "postgresql"),
        ("3", "C", "at :noon, 100 % of it", "postgresql"),
        ("4", "", "last", "postgresql"),
    ]
    assert [place for place, _ in read_placed(spec, Reader())][-1] == f"{postgresql}: row 4"
    counts = Counts()
    passages = list(ingest(CorpusConfig(sources=[spec], min_chars=5), counts))
    assert [passage.id for passage in passages] == ["1", "2", "3"]
    assert counts.drops == {"too short": 1}


def test_marks_of_the_language_stay(postgresql: str) -> None:
    query = "SELECT id::text, body AS text FROM page WHERE body LIKE '%:noon%' OR body = 'a :b'"
    assert [passage.id for passage in read_source(f"{postgresql}#{query}")] == ["3"]


def test_rows_come_one_at_a_time(postgresql: str) -> None:
    """A client that fetched all of these rows first would never give one."""
    rows = read_source(f"{postgresql}#SELECT generate_series(1, 2000000000) AS id, 'text' AS text")
    assert [next(rows).id for _ in range(3000)] == [str(number) for number in range(1, 3001)]
    rows.close()  # type: ignore[attr-defined]


def test_identity_follows_the_rows(postgresql: str) -> None:
    one = source_identity(f"{postgresql}#{QUERY}")
    assert one == source_identity(f"{postgresql}#{QUERY}")
    assert one != source_identity(f"{postgresql}#{QUERY.replace('ORDER BY', 'WHERE id < 4 ORDER BY')}")


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
        ("SELECT id FROM page", "no field is named text"),
        ("SELECT made AS id, body AS text FROM page", "the id is of type datetime"),
        ("SELEC", "syntax error"),
    ],
)
def test_what_is_refused(postgresql: str, query: str, says: str) -> None:
    with pytest.raises(CorpusError, match=says) as caught:
        list(read_source(f"{postgresql}#{query}"))
    assert postgresql in str(caught.value)
    assert len(list(read_source(f"{postgresql}#{QUERY}"))) == 4


def test_a_wrong_password_and_no_server(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "wrong one")
    with pytest.raises(CorpusError, match="password authentication failed") as caught:
        list(read_source(f"{postgresql}#{QUERY}"))
    assert "wrong one" not in str(caught.value)
    with pytest.raises(CorpusError, match=r"127\.0\.0\.1.*refused"):
        list(read_source(f"postgresql://gecko@127.0.0.1:1/postgres#{QUERY}"))
