import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from gecko.core.errors import RunError
from gecko.core.files import read_json, write_json
from gecko.report import write_report
from gecko.report.page import EXAMPLES
from gecko.stages.graph import history

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags, ids and text; fails on tags that do not close in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.ids, self.attributes, self.texts, self.open = [], [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def write(pipeline):
    path = pipeline.run.path / "report.html"
    write_report(pipeline, history(pipeline.run), path)
    return path.read_text(encoding="utf-8")


def test_whole_report(make_run, result):
    pipeline = make_run(result())
    page = Page(write(pipeline))
    rows = pipeline.run.finished("select").rows
    assert rows > 3
    assert f"30 passages, {rows} training rows" in page.text
    assert "student, native format (kept)" in page.text
    assert "+1.4 [+0.2, +2.6] better" in page.text
    assert "not relevance" in page.text
    assert "Generations that could be used: 15 of 20 (75 %)" in page.text
    assert "seed is among the start model’s first 20: 14 of 15 (93 %)" in page.text
    assert "2 judgements name documents" in page.text
    assert "5 no query" in page.text
    assert page.tags.count("svg") == 5
    # generate and relabel, 10 s each
    assert f"took 20 s of teacher time (generate and relabel), {20 / rows:.2f} seconds a kept row" in page.text
    assert "earlier" not in page.text


def test_the_plots_stand_alone_in_a_folder(make_run, result, tmp_path):
    pipeline = make_run(result())
    folder = tmp_path / "new" / "plots"
    write_report(pipeline, history(pipeline.run), tmp_path / "report.html", folder)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page == write(pipeline)
    assert {path.name for path in folder.iterdir()} == {"gain.svg", "loss.svg", "time.svg", "seed.svg", "rc.svg"}
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "var(--" not in text  # the page's colours are not there


def test_what_the_teacher_changed_is_counted_over_all_judged_queries(make_run):
    pipeline = make_run()
    moved = sum(ranked[0].passage_id != f"p{name[1:]}" for name, ranked in pipeline.labels.items())
    assert 0 < moved < 15
    page = Page(write(pipeline))
    assert f"is not the seed for {moved} of 15" in page.text
    assert "judged 75 pairs of query and passage, but only 19 different passages" in page.text


def test_what_was_dropped_is_shown_by_reason_with_examples(make_run):
    pipeline = make_run()
    text = Page(write(pipeline)).text
    for stage, reasons in {"ingest": ["empty"], "generate": ["no query"], "select": ["held out"]}.items():
        manifest = pipeline.run.finished(stage)
        part = text.partition(f"What {stage} dropped: examples")[2].partition("dropped: examples")[0]
        for reason in reasons:
            assert f"{manifest.drops[reason]} {reason}" in part
            assert len(manifest.examples[reason]) == min(3, manifest.drops[reason]) > 1
        assert manifest.examples.keys() == manifest.drops.keys()
    assert "no query, number 2 <script>" in text


def test_examples_show_places(make_run):
    pipeline = make_run()
    text = Page(write(pipeline)).text
    rows = pipeline.run.finished("select").rows
    assert text.count("Task:") == min(EXAMPLES, rows)
    assert re.search(r"retriever \d, QL \d, RC \d, fused \d\.\d{3}", text)
    assert "p_N, hard negative" in text


def test_foreign_text_is_shown_and_never_obeyed(make_run, result, hostile):
    raw = write(make_run(result(name=hostile)))
    page = Page(raw)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "{{7*7}}" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", raw)
    assert "‹U+202E›" in raw


def test_nothing_is_fetched(make_run, result):
    page = Page(write(make_run(result())))
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith("#")
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_ids_are_unique_and_references_hold(make_run, result):
    raw = write(make_run(result()))
    page = Page(raw)
    assert len(page.ids) == len(set(page.ids))
    used = re.findall(r'href="#([^"]+)"', raw) + re.findall(r"url\(#([^)]+)\)", raw)
    assert used
    assert set(used) <= set(page.ids)


def test_every_plot_has_words_and_the_colours_of_the_page(make_run, result):
    raw = write(make_run(result()))
    page = Page(raw)
    words = [value for name, value in page.attributes if name == "aria-label"]
    assert any("scifact, native format: +1.4 [+0.2, +2.6]" in text for text in words)
    assert any("rank 1: " in text for text in words)
    assert "currentColor" in raw
    assert "#010203" not in raw
    assert "#040506" not in raw
    assert "prefers-color-scheme: dark" in raw


def test_two_writes_are_equal(make_run, result):
    pipeline = make_run(result())
    assert write(pipeline) == write(pipeline)


def test_two_equal_runs_have_equal_reports(make_run, result, tmp_path):
    first = write(make_run(result()))
    shutil.rmtree(tmp_path / "run")
    assert write(make_run(result())) == first


def test_without_the_optional_parts(make_run):
    text = Page(write(make_run())).text
    assert "What was asked of the queries" not in text
    assert "Not measured yet." in text
    assert "The reranking probe was not run." in text


@pytest.mark.parametrize("changed", [{"sets": {}}, {"agreement": None}, {"sets": {}, "agreement": None}])
def test_without_sets_or_agreement(make_run, result, changed):
    text = Page(write(make_run(result(**changed)))).text
    if "sets" in changed:
        assert "Give a labelled set with --eval DIR" in text
    if "agreement" in changed:
        assert "agreement with the teacher is not known" in text


def test_without_the_loss_file(make_run, result):
    pipeline = make_run(result())
    (pipeline.run.path / "train-native" / "training.json").unlink()
    assert "unified: from 2.500 to 1.500" in write(pipeline)
    (pipeline.run.path / "train-unified" / "training.json").unlink()
    assert "Training loss" not in write(pipeline)


def test_without_a_row(make_run):
    text = Page(write(make_run(None, "select.min_rc=99"))).text
    assert "15 passages" not in text
    assert text.count("No row was kept.") == 2


def test_an_earlier_stage_made_anew_is_told(make_run, result):
    pipeline = make_run(result())
    file = pipeline.run.path / "train-native" / "manifest.json"
    made = read_json(file)
    made["parts"]["rows"] = "another"
    write_json(file, made)
    text = Page(write(pipeline)).text
    assert "train-native was made from an earlier select" in text


def test_an_unfinished_run_says_which_stage(make_run):
    pipeline = make_run()
    file = pipeline.run.path / "select" / "manifest.json"
    write_json(file, read_json(file) | {"done": False})
    with pytest.raises(RunError, match="stage select is not finished"):
        write(pipeline)
