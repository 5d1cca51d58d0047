"""BM25 where words are not parted by spaces, and where vowels are marks: one tokenizer for passages and queries."""

from pathlib import Path
from unicodedata import normalize

from hypothesis import given, settings
from hypothesis import strategies as st

from gecko.core.records import Passage
from gecko.core.text import spaced
from gecko.encoder import Embedder
from gecko.evaluation.bm25 import bm25_run
from gecko.search import IndexConfig, build_index
from gecko.search.index import query_words

PASSAGES = [
    Passage("zh", "", "图书馆周日不开放，归还图书请投入门口的箱子。"),
    Passage("ja", "", "新幹線の切符は駅の窓口で買えます。"),
    Passage("th", "", "รถไฟขบวนสุดท้ายออกเวลาสี่ทุ่ม"),
    Passage("lo", "", "ຕະຫຼາດເປີດແຕ່ເຊົ້າ"),
    Passage("my", "", "ဆေးခန်းသည်မနက်တွင်ဖွင့်သည်"),
    Passage("km", "", "ហាងបើកនៅព្រឹក"),
    Passage("kana", "", "ｺﾋﾟｰ機は二階です"),
    Passage("hi", "", "पुस्तकालय रविवार को बंद रहता है"),
    Passage("en", "", "The library closes on Sundays; put APIs in the box."),
    Passage("mixed", "", "打开API设置页面"),
]
ASKED = {
    "zh": "归还图书",
    "ja": "切符",
    "th": "สุดท้าย",
    "lo": "ຕະຫຼາດ",
    "my": "ဆေးခန်း",
    "km": "ព្រឹក",
    "kana": "ｺﾋﾟｰ",
    "hi": "रविवार",
    "en": "library box",
    "mixed": "设置",
}


def test_every_script_is_found(embedder: Embedder, tmp_path: Path) -> None:
    with build_index(embedder, iter(PASSAGES), tmp_path / "index", IndexConfig()) as index:
        found = index.search(list(ASKED.values()), method="bm25")
        assert {key: hits[0].passage.id for key, hits in zip(ASKED, found, strict=True)} == {key: key for key in ASKED}
        assert [hit.passage.id for hit in index.search(["箱"], method="bm25")[0]] == ["zh"]
        assert [hit.passage.id for hit in index.search(["api"], method="bm25")[0]] == ["en", "mixed"]
        assert index.search(["。！", "\u0e34"], method="bm25")[0] == []
    run = bm25_run(PASSAGES, list(ASKED.items()), 3)
    assert {key: next(iter(scores)) for key, scores in run.items()} == {key: key for key in ASKED}


def test_neighbours_count_more_than_characters(embedder: Embedder, tmp_path: Path) -> None:
    rows = [Passage("turned", "", "京东的东西"), Passage("city", "", "东京的西方"), *PASSAGES]
    with build_index(embedder, iter(rows), tmp_path / "index", IndexConfig()) as index:
        assert index.search(["东京"], method="bm25")[0][0].passage.id == "city"
    assert next(iter(bm25_run(rows, [("q", "东京")], 5)["q"])) == "city"


def test_how_texts_are_taken_apart() -> None:
    assert spaced("Plain words, ça va? Привет 안녕 하세요") == "Plain words, ça va? Привет 안녕 하세요"
    every = "".join(map(chr, range(128)))
    assert spaced(every) == every and spaced(every + "茶") == f"{every} 茶 "
    assert spaced("用API吗・はい").split() == ["用", "API", "吗", "・", "は", "い", "はい"]
    assert query_words("The 茶 cup") == ["茶", "cup"]
    assert query_words("เก็บ") == ["เ", "ก", "็", "บ", "เก", "ก็", "็บ"]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cn"]), max_size=40))
def test_a_text_keeps_its_words_in_order(text: str) -> None:
    text = normalize("NFC", text)
    apart = spaced(text)
    assert (apart == text) or len(apart) > len(text)
    assert set("".join(apart.split())) == set("".join(text.split()))
    assert all(word == word.strip() and word for word in query_words(text))


def test_composed_and_decomposed_characters_are_the_same_word(embedder: Embedder, tmp_path: Path) -> None:
    rows = [Passage("nfc", "", "l'\u00e9tude du piano"), Passage("nfd", "", "une e\u0301tude de cas"), *PASSAGES]
    with build_index(embedder, iter(rows), tmp_path / "index", IndexConfig()) as index:
        for query in ("\u00e9tude", "e\u0301tude"):
            assert {hit.passage.id for hit in index.search([query], method="bm25")[0]} == {"nfc", "nfd"}
            assert set(bm25_run(rows, [("q", query)], 5)["q"]) == {"nfc", "nfd"}
