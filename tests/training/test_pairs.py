"""Pairs as rows of the first stage: names, tasks, what is dropped and what is refused."""

import json
from collections import Counter

import pytest

from gecko.config.training import PretrainConfig
from gecko.core.errors import ConfigError, TrainingError
from gecko.core.records import Example, Text
from gecko.training.pairs import pair_sources, read_pairs

PAIR = {"query": "a", "title": "t", "text": "x"}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_folder_is_a_source_a_file_with_its_own_task(tmp_path):
    write(tmp_path / "one.jsonl", PAIR)
    write(tmp_path / "two.jsonl", {"query": "b", "text": "y", "title": None, "other": 3})
    config = PretrainConfig(sources=[str(tmp_path)], tasks={"two": "question answering"})
    sources = pair_sources(config)
    rows = [row for name, source in sources.items() for row in read_pairs(name, source, config, 0, Counter())]
    assert rows == [
        Example("one", "search result", "a", Text("", "t", "x")),
        Example("two", "question answering", "b", Text("", "", "y")),
    ]


def test_what_is_dropped_is_counted(tmp_path):
    path = write(
        tmp_path / "s.jsonl", PAIR, PAIR, {**PAIR, "query": " "}, {**PAIR, "text": None}, {**PAIR, "text": "y"}
    )
    drops = Counter()
    assert len(read_pairs("s", path, PretrainConfig(), 0, drops)) == 2
    assert drops == {"pair that was there before": 1, "empty query": 1, "empty text": 1}


def test_a_limit_draws_by_seed(tmp_path):
    path = write(tmp_path / "s.jsonl", *({"query": str(n), "text": "x"} for n in range(50)))

    def drawn(seed):
        return [row.query for row in read_pairs("s", path, PretrainConfig(limit=10), seed, Counter())]

    assert len(set(drawn(0))) == 10
    assert drawn(0) == drawn(0) == sorted(drawn(0), key=int)
    assert drawn(0) != drawn(1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "text": "x"}, r"set 's', row 2 of s\.jsonl: no column query; .* there are question, text"),
        ({"query": "a", "text": 3}, r"set 's', row 2 of s\.jsonl: column text is 3, and must be a text"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path, row, message):
    path = write(tmp_path / "s.jsonl", PAIR, row)
    with pytest.raises(TrainingError, match=message):
        read_pairs("s", path, PretrainConfig(), 0, Counter())


def test_a_source_without_a_usable_pair_is_refused(tmp_path):
    path = write(tmp_path / "s.jsonl", {"query": "", "text": "x"})
    with pytest.raises(TrainingError, match="set 's': .* has no pair"):
        read_pairs("s", path, PretrainConfig(), 0, Counter())


def test_half_a_character_is_named(tmp_path):
    path = write(tmp_path / "s.jsonl", PAIR, {"query": "a \ud83d", "text": "x"})
    with pytest.raises(TrainingError, match=r"s\.jsonl:2: the text holds half a surrogate pair"):
        read_pairs("s", path, PretrainConfig(), 0, Counter())


def test_names_must_be_one_and_known(tmp_path):
    (tmp_path / "sub").mkdir()
    one, two = write(tmp_path / "one.jsonl", PAIR), write(tmp_path / "sub" / "one.jsonl", PAIR)
    with pytest.raises(ConfigError, match="two sources are called 'one'"):
        pair_sources(PretrainConfig(sources=[one, two]))
    for key in ("tasks", "weights"):
        given = {key: {"three": "t" if key == "tasks" else 1.0}}
        with pytest.raises(ConfigError, match=rf"pretrain\.{key} names three, but the sources are one"):
            pair_sources(PretrainConfig(sources=[one], **given))
    with pytest.raises(ConfigError, match="gecko pretrain needs pairs"):
        pair_sources(PretrainConfig())
