"""Runs whose teacher is a server on loopback, in each form of judging: as it should be, and with the faults of real ones."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gecko.config.load import load_config
from gecko.core.errors import TeacherError
from gecko.core.records import Example, Grade, Judged, Query
from gecko.fret.view import judgements
from gecko.llm.openai_http import Patience, Requests
from gecko.report.spending import spent_of
from gecko.run.folder import Run
from gecko.stages.runner import Pipeline

from ..conftest import Listener, write_corpus
from ..llm.loopback import SETTINGS, Teacher, served
from ..llm.test_openai_faults import Skipping

FORMS = list(SETTINGS)
CAUGHT = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # which a shell in the background turns off
KEY = "sk-lakes-and-rivers"


@pytest.fixture(scope="module")
def corpus(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", words)


@pytest.fixture(autouse=True)
def _apart(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a pause, and the user's cache and key are not touched."""
    before = Requests.__init__

    def hasty(self: Requests, *given: Any, **more: Any) -> None:
        before(self, *given, **{"clock": Skipping(), "patience": Patience(attempts=3), **more})

    monkeypatch.setattr(Requests, "__init__", hasty)
    monkeypatch.setenv("GECKO_API_KEY", KEY)


def overrides(*more: str) -> tuple[str, ...]:
    return (
        "generate.queries=6",
        "generate.batch=3",
        "generate.neighbourhood=3",
        "generate.min_seed_chars=10",
        "generate.heldout=0",
        "mine.n=4",
        "relabel.shard_passages=4",
        "relabel.requests=3",
        "select.fusion=rc",
        "select.min_rc=null",
        "check.enabled=false",
        *more,
    )


@pytest.fixture
def run(corpus: Path, tiny_model: Path, tmp_path: Path) -> Iterator[Callable[..., tuple[list[Judged], Listener]]]:
    def through(spec: str, *more: str, stage: str = "select", folder: str = "run") -> tuple[list[Judged], Listener]:
        base = {"corpus": {"sources": [str(corpus)]}, "llm": spec, "backbone": str(tiny_model)}
        ui = Listener()
        with Run(tmp_path / folder, load_config(None, overrides(*more), base), say=ui.say) as run:
            pipeline = Pipeline(run, ui)
            pipeline.ingest()
            pipeline.through(stage)
            return judgements(run, "relabel"), ui

    yield through


def judge(form: str) -> str:
    return f"relabel.judge={SETTINGS[form]}"


def opinions(found: list[Judged]) -> set[tuple[Any, ...]]:
    """Judgements without what they are known by."""
    names = ("grade", "first", "second", "relevant", "rc")
    return {
        (
            one.query_id,
            one.passage_id,
            *(round(value, 6) for name in names if (value := getattr(one, name, None)) is not None),
        )
        for one in found
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("schemas", [True, False])
def test_a_server_judges_as_the_teacher_behind_it(form: str, schemas: bool, run: Any, tmp_path: Path) -> None:
    with served(Teacher(form=form, schemas=schemas)) as spec:
        found, _ = run(spec, judge(form), "price.input=1", "price.output=2.5")
        expected, _ = run("fake", judge(form), folder="fake")
        assert opinions(found) == opinions(expected) and len(found) == len(expected) > 0
    with Run(tmp_path / "run") as made:
        rows = made.read("select", Example)
        manifests = [made.finished("generate"), made.finished("relabel")]
        spent = spent_of(manifests)
        assert rows
        assert spent.requests > 0 and spent.written == 9 * spent.requests and spent.read == 30 * spent.requests


def test_what_the_server_can_is_asked_once_and_kept(run: Any, tmp_path: Path) -> None:
    teacher = Teacher()
    with served(teacher) as spec:
        first, ui = run(spec)
        assert any("judges by grades in its answers, not by log-probabilities" in text for text in ui.said)
        teacher.form, before = "labels", teacher.requests  # it has learned something, but the run goes on as it began
        again, ui = run(spec)
        assert again == first and teacher.requests == before
        assert not any("judges by" in text for text in ui.said)
        with Run(tmp_path / "run") as made:
            assert made.finished("relabel").parts["judge"] == "graded"
        _, ui = run(spec, folder="new")
        assert any("judges by the log-probabilities" in text for text in ui.said)
    with Run(tmp_path / "new") as made:
        assert "judge" not in made.finished("relabel").parts


def test_a_server_without_likelihood_judges_by_grades_and_says_what_else_there_is(run: Any) -> None:
    with served(Teacher(form="labels")) as spec:
        found, ui = run(spec, "select.fusion=rrf")
        assert found and all(isinstance(one, Grade) for one in found)
        assert any("judges by grades" in text and "select.fusion=rc judges by the first" in text for text in ui.said)
        with pytest.raises(TeacherError, match=r"select.fusion=rc, or by grades .*judge=graded"):
            run(spec, "select.fusion=rrf", "relabel.judge=logprobs", folder="logprobs")


@pytest.mark.parametrize(
    ("labels", "says"),
    [({"<think>": -0.1, "Okay": -3.0}, "'<think>', 'Okay'"), ({"YES": -0.1, "NO": -3.0}, "'YES', 'NO'")],
)
def test_what_cannot_judge_is_found_before_queries_are_paid_for(labels: dict[str, float], says: str, run: Any) -> None:
    teacher = Teacher(form="words", labels=labels)
    with served(teacher) as spec:
        with pytest.raises(TeacherError, match=f"cannot judge by log-probabilities: its answers begin with {says}"):
            run(spec, "relabel.judge=logprobs")
        assert not teacher.written
        found, _ = run(spec)
        assert found and teacher.written


# --- faults of real servers

FILTERED = {"choices": [], "prompt_filter_results": [{"prompt_index": 0}], "usage": {"prompt_tokens": 5}}
ONE_TEXT = {
    "firewall": lambda: httpx2.Response(403, text="<html><title>Blocked</title><p>Sorry, you have been blocked"),
    "moderation": lambda: httpx2.Response(403, json={"error": {"code": 403, "message": "flagged for violence"}}),
    "one text at fault": lambda: httpx2.Response(
        500, json={"object": "error", "message": "not compliant", "code": 500}
    ),
    "filter": lambda: httpx2.Response(200, json=FILTERED),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ONE_TEXT)
def test_one_text_that_the_server_cannot_answer(form: str, kind: str, run: Any, tmp_path: Path) -> None:
    with served(Teacher(form=form)) as spec:
        whole, _ = run(spec, judge(form))
    counted = {one.passage_id: 0 for one in whole}
    for one in whole:
        counted[one.passage_id] += 1
    with Run(tmp_path / "run") as made:
        seeds = {query.seed_id for query in made.read("generate", Query)}
    bad = min((key for key in counted if key not in seeds), key=lambda key: (counted[key], key))

    def fault(body: dict[str, Any], number: int) -> httpx2.Response | None:
        return ONE_TEXT[kind]() if f"passage {bad[1:]} about" in str(body) else None

    teacher = Teacher(form=form, fault=fault)
    with served(teacher) as spec:
        found, ui = run(spec, judge(form), folder="bad")
        assert sum("does not answer one text" in text for text in ui.said) == 1
        assert not any("key" in text for text in ui.said)
        lost = {one.query_id for one in whole if one.passage_id == bad}
        if form == "listwise":  # an order of its query's candidates cannot be had without it
            assert {one.query_id for one in found} == {one.query_id for one in whole} - lost
        else:
            assert opinions(found) == {one for one in opinions(whole) if one[1] != bad}
        with Run(tmp_path / "bad") as made:
            dropped = made.finished("relabel").drops
            assert any(reason.startswith("refused by the teacher") for reason in dropped)
            assert {row.query_id for row in made.read("select", Example)} == {one.query_id for one in whole} - lost
        before = teacher.requests
        again, _ = run(spec, judge(form), folder="bad")
        assert again == found and teacher.requests == before


PROVIDER = {"message": "Provider returned error", "code": 429, "metadata": {"raw": "Too Many Requests"}}


@pytest.mark.parametrize("form", FORMS)
def test_errors_in_a_200_and_redirects(form: str, run: Any) -> None:
    said = {
        "provider": (
            httpx2.Response(200, json={"choices": None, "usage": None, "error": PROVIDER}),
            r"Provider returned error \(Too Many Requests\)",
        ),
        "credit": (
            httpx2.Response(200, json={"error": {"message": "Insufficient credits", "code": 402}}),
            "wants to be paid .*Insufficient credits",
        ),
        "moved": (
            httpx2.Response(307, headers={"Location": "/v2/chat/completions"}),
            r"redirected to http.*give that address: --llm openai:http.*/v2#m",
        ),
    }
    for name, (reply, message) in said.items():

        def fault(body: dict[str, Any], number: int, reply: httpx2.Response = reply) -> httpx2.Response | None:
            return reply if "top_p" not in body else None

        teacher = Teacher(form=form, fault=fault)
        with served(teacher) as spec, pytest.raises(TeacherError, match=message) as told:
            run(spec, judge(form), folder=name)
        assert "key" not in str(told.value)
        judged = teacher.requests - len(teacher.written)
        assert name == "provider" or judged <= 3, "each of the requests that were under way, once"


@pytest.mark.parametrize("form", FORMS)
def test_a_long_pause_that_the_server_asks_for(form: str, run: Any) -> None:
    def fault(body: dict[str, Any], number: int) -> httpx2.Response | None:
        said = {"error": {"message": "Rate limit reached for tokens per day"}}
        return None if "top_p" in body else httpx2.Response(429, headers={"Retry-After": "3600"}, json=said)

    teacher = Teacher(form=form, fault=fault)
    with served(teacher) as spec:
        with pytest.raises(
            TeacherError, match=r"m at http.* pause of 3,600 seconds, until 20.*per day.*run the same command again"
        ):
            run(spec, judge(form))
        teacher.fault = lambda body, number: None
        before = len(teacher.written)
        found, _ = run(spec, judge(form))
        assert found and len(teacher.written) == before, "queries are not written twice"


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_ctrl_c_on_a_server_that_hangs(form: str, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    """One Ctrl-C ends the command with 130, what had arrived is kept, and the same command goes on."""
    server = Path(__file__).parents[1] / "llm" / "loopback.py"
    environment = os.environ | {"GECKO_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}

    def command(spec: str) -> list[str]:
        sets = [word for one in overrides(judge(form), "relabel.shard_passages=64") for word in ("--set", one)]
        gecko = [sys.executable, "-c", f"import signal; {CAUGHT}; from gecko.cli.main import main; main()"]
        return [
            *gecko,
            "distill",
            str(corpus),
            "-o",
            str(tmp_path / "run"),
            "--llm",
            spec,
            "--start",
            str(tiny_model),
            *sets,
        ]

    hung = subprocess.Popen([sys.executable, server, form, "2"], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert hung.stdout
        spec = hung.stdout.readline().strip()
        run = subprocess.Popen(
            command(spec),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for _ in range(3):  # as many requests as are under way at a time, after two that were answered
            assert hung.stdout.readline().strip() == "hangs"
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=120)
        assert run.returncode == 130, said
        assert "answers of unfinished work are kept for the next run" in said
        assert said.rstrip().endswith("stopped; run the same command again to continue")
        hung.send_signal(signal.SIGUSR1)
        again = subprocess.run(command(spec), capture_output=True, text=True, env=environment, timeout=300, check=False)
        assert again.returncode == 0, again.stderr
        assert "writing" not in again.stderr, "queries are not written twice"
        assert re.search(r"^Rows +\d+ made here", again.stdout, re.MULTILINE)
    finally:
        hung.kill()
        hung.wait()
