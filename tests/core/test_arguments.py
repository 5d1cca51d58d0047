from collections import Counter, OrderedDict, UserList, deque
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gecko.core.arguments import dim_of, in_order, one_of, passages_of, spec_of, strings, strings_for, whole
from gecko.core.errors import ConfigError
from gecko.core.records import Passage, Text

KINDS = {
    "list": list,
    "tuple": tuple,
    "generator": lambda texts: (text for text in texts),
    "iterator": iter,
    "deque": deque,
    "user list": UserList,
    "dict values": lambda texts: dict(enumerate(texts)).values(),
    "array of objects": lambda texts: np.array([*texts, None], dtype=object)[:-1],
    "Arrow array": lambda texts: pa.array(texts, pa.string()),
    "chunked Arrow array": lambda texts: pa.chunked_array([texts[:2], texts[2:]], pa.string()),
    "dictionary-encoded Arrow array": lambda texts: pa.array(texts, pa.string()).dictionary_encode(),
    "column": lambda texts: pa.table({"text": pa.array(texts, pa.string())})["text"],
}


@st.composite
def _texts_and_labels(draw) -> tuple[list[str], list[int]]:
    texts = draw(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=8), max_size=12))
    return texts, draw(st.permutations(range(len(texts))))


@settings(deadline=None)
@given(_texts_and_labels(), st.sampled_from([*KINDS, "series", "series with equal labels", "categories", "index"]))
def test_any_sequence_is_taken_in_its_order(drawn, kind) -> None:
    texts, labels = drawn
    match kind:
        case "series":
            values = pd.Series(texts, index=labels, dtype=object)
        case "series with equal labels":
            values = pd.Series(texts, index=[0] * len(texts), dtype=object)
        case "categories":
            values = pd.Series(pd.Categorical(texts), index=labels)
        case "index":
            values = pd.Index(texts, dtype=object)
        case _:
            values = KINDS[kind](texts)
    assert strings(values) == texts


def test_columns_of_other_libraries() -> None:
    texts = ["plum", "cherry", "medlar"]
    assert strings(np.array(texts)) == texts
    assert strings(dict.fromkeys(texts, 1).keys()) == texts
    polars, datasets = pytest.importorskip("polars"), pytest.importorskip("datasets")
    assert strings(polars.Series(texts)) == texts
    assert strings(datasets.Dataset.from_dict({"text": texts})["text"]) == texts
    with pytest.raises(ConfigError, match="one column"):
        strings(polars.DataFrame({"text": texts}))
    with pytest.raises(ConfigError, match="one column"):
        strings(datasets.Dataset.from_dict({"text": texts}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"plum": "cherry"}, "text: a dict has no places"),
        (OrderedDict(plum=1), "OrderedDict has no places"),
        (Counter("plum"), "Counter has no places"),
        (MappingProxyType({"plum": 1}), "mappingproxy has no places"),
        ({"plum", "cherry"}, "text: a set has no places"),
        (frozenset({"plum"}), "frozenset has no places"),
        ("plum", r"one string is given \('plum'\) where a list is needed"),
        (b"plum", "bytes are no text"),
        (bytearray(b"plum"), "bytes are no text"),
        (5, "a int is no sequence"),
        (None, "NoneType is no sequence"),
        (np.array("plum"), "of 0 dimensions"),
        (np.array([["plum"]]), "of 2 dimensions; give one column"),
        (pd.DataFrame({"text": ["plum"]}), "DataFrame of 2 dimensions; give one column"),
        (pa.table({"text": ["plum"]}), "Table of 2 dimensions; give one column"),
        (["plum", None], "text 2 is a NoneType"),
        (["plum", 3], "text 2 is a int, not a string: 3"),
        (["plum", b"cherry"], "text 2 is a bytes"),
        (pd.Series(["plum", float("nan")], index=[7, 3]), "text 2 is a float, not a string: nan"),
        (pd.Series(["plum", pd.NA], dtype=object), "text 2 is a NAType"),
        (pa.array(["plum", None]), "text 2 is a NoneType"),
        (["plum", ["cherry"]], "text 2 is a list"),
        (["plum", "\ud800"], "text 2 holds half of a surrogate"),
    ],
)
def test_what_is_no_list_of_strings(values, said) -> None:
    with pytest.raises(ConfigError, match=said):
        strings(values)


def test_what_a_generator_raises_is_its_own() -> None:
    def broken():
        yield "plum"
        raise TypeError("of the caller")

    with pytest.raises(TypeError, match="of the caller"):
        in_order(broken(), "text")


def test_one_for_all_or_one_for_each() -> None:
    assert strings_for("plum", 2, "title", "texts") == ["plum", "plum"]
    assert strings_for(pd.Series(["plum", "cherry"], index=[1, 0]), 2, "title", "texts") == ["plum", "cherry"]
    with pytest.raises(ConfigError, match="2 texts but 1 titles; give one title for all, or one for each"):
        strings_for(["plum"], 2, "title", "texts")


def test_passages() -> None:
    items = [Passage("1", "", "plum"), Text("2", "red", "cherry")]
    assert passages_of(pd.Series(items, index=[1, 0])) == items
    with pytest.raises(ConfigError, match="passage 2 is a str; give gecko.Passage"):
        passages_of([items[0], "cherry"])
    with pytest.raises(ConfigError, match="text of passage 1 is a NoneType"):
        passages_of([Passage("1", "", None)])  # type: ignore[arg-type]


def test_values() -> None:
    assert one_of("kind", "flat", ("flat", "hnsw")) == "flat"
    for wrong, shown in (("", "''"), ("FLAT", "FLAT"), (None, "None"), (["flat"], r"\['flat'\]")):
        with pytest.raises(ConfigError, match=f"^kind {shown}: give one of flat, hnsw$"):
            one_of("kind", wrong, ("flat", "hnsw"))
    assert (whole("k", 3), whole("k", np.int64(3))) == (3, 3)
    for value in (3.0, "3", True, None):
        with pytest.raises(ConfigError, match="give a whole number"):
            whole("k", value)
    assert (dim_of(None, 8, "m"), dim_of(np.int32(3), 8, "m")) == (8, 3)
    for dim in (0, 9, -1):
        with pytest.raises(ConfigError, match=f"dim = {dim}: model 'm' has 8 dimensions; give 1 to 8"):
            dim_of(dim, 8, "m")
    assert (spec_of("minilm"), spec_of(Path("a") / "b")) == ("minilm", "a/b")
    with pytest.raises(ConfigError, match="model None is a NoneType; give a string or a path"):
        spec_of(None)  # type: ignore[arg-type]
