"""The whole run with a fake teacher and a tiny student: it ends, it resumes, and it is refused where it should be."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file

from gecko.config.load import load_config
from gecko.config.run import RunConfig
from gecko.core.errors import ConfigError, CorpusError, RunError, TeacherError, TeacherRefused
from gecko.core.files import read_json, write_json
from gecko.core.records import SCHEMAS, Candidate, Example, Passage, Query, Score
from gecko.evaluation import builtin
from gecko.evaluation.teacher import probe
from gecko.fret.seeds import most_seeds, prefix_costs
from gecko.llm.base import Usage
from gecko.llm.fake import FakeLM
from gecko.run import shards
from gecko.run.folder import Run
from gecko.stages import check, plan
from gecko.stages.choose import chosen_format
from gecko.stages.mine import seeds_found
from gecko.stages.reuse import REUSED
from gecko.stages.runner import Pipeline, distill

from ..conftest import Listener, rewrite_shards, write_corpus

RECORDS = {"ingest": Passage, "generate": Query, "mine": Candidate, "relabel": Score, "select": Example}


@pytest.fixture(scope="module")
def corpus(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", words)


def settings(corpus: Path, model: Path, *more: str):
    overrides = (
        "generate.queries=24",
        "generate.batch=5",
        "generate.neighbourhood=4",
        "generate.min_seed_chars=10",
        "mine.n=6",
        "relabel.shard_passages=7",
        "select.min_rc=null",
        "train.epochs=2",
        "train.min_steps=0",
        "train.batch=8",
        "train.max_tokens=32",
        "train.checkpoint_steps=1",
        "train.learning_rate=0.0002",
        "evaluate.resamples=100",
        "check.enabled=false",
        *more,
    )
    base = {"corpus": {"sources": [str(corpus)]}, "llm": "fake", "backbone": str(model)}
    return load_config(None, overrides, base)


def content(folder: Path) -> dict[str, object]:
    """Everything that a run made, without the seconds."""
    with Run(folder) as run:
        made: dict[str, object] = {stage: run.read(stage, kind) for stage, kind in RECORDS.items()}
        stages = (*RECORDS, "train-native", "train-unified", "agreement")
        made["identities"] = {stage: run.finished(stage).identity for stage in stages}
    made["model"] = (folder / "model" / "model.safetensors").read_bytes()
    made["results"] = json.loads((folder / "evaluate" / "results.json").read_text())
    return made


@pytest.fixture(scope="module")
def whole(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    with Run(folder, settings(corpus, tiny_model)) as run:
        distill(run)
    return folder


def test_the_run_makes_every_part(whole: Path) -> None:
    made = content(whole)
    queries, scores, rows = made["generate"], made["relabel"], made["select"]
    assert len(queries) > 15
    assert {query.split for query in queries} == {"train", "heldout"}
    assert len(scores) == 6 * len(queries)
    assert len(rows) == sum(query.split == "train" for query in queries)
    assert any(row.positive.id != row.seed_id for row in rows)
    assert all(row.negatives and row.negatives[0].id != row.positive.id for row in rows)
    assert made["results"]["agreement"]["queries"] > 0
    page = (whole / "report.html").read_text()
    assert f"{len(rows):,} training rows" in page
    for stage in (*RECORDS, "train-native", "train-unified", "agreement", "evaluate"):
        assert f'<th scope="row">{stage}</th>' in page


def test_a_second_run_loads_no_model(
    whole: Path, corpus: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(whole)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("gecko.llm.registry.load_teacher", refuse)
    monkeypatch.setattr("gecko.encoder.load_encoder", refuse)
    with Run(whole, settings(corpus, tiny_model)) as run:
        distill(run)
    assert content(whole) == before


KILLER = """
import os, signal, sys
from pathlib import Path
from gecko.run import shards
from gecko.run.folder import Run
from gecko.stages.runner import distill
from gecko.config.load import make_config
import json
folder, config, stage, part = sys.argv[1:5]
if stage == "train":
    from gecko.training import trainer
    kept = trainer._Trainer._save_checkpoint
    def save(self, *args, **kwargs):
        kept(self, *args, **kwargs)
        if self.state.global_step >= int(part):
            os.kill(os.getpid(), signal.SIGKILL)
    trainer._Trainer._save_checkpoint = save
else:
    kept = shards._write_shard
    def write(run, name, index, *rest):
        if name == stage and index == int(part):
            os.kill(os.getpid(), signal.SIGKILL)
        return kept(run, name, index, *rest)
    shards._write_shard = write
with Run(Path(folder), make_config(json.loads(config), "test")) as run:
    distill(run)
"""


def test_a_finished_run_imports_no_library_that_trains(whole: Path, corpus: Path, tiny_model: Path) -> None:
    script = """if True:
        import json, sys
        from pathlib import Path
        from gecko.config.load import make_config
        from gecko.run.folder import Run
        from gecko.stages.runner import distill
        with Run(Path(sys.argv[1]), make_config(json.loads(sys.argv[2]), "test")) as run:
            distill(run)
        print({"torch", "sentence_transformers", "transformers"} & sys.modules.keys())
    """
    command = [sys.executable, "-c", script, str(whole), settings(corpus, tiny_model).model_dump_json()]
    done = subprocess.run(command, check=True, capture_output=True, env=dict(os.environ, HF_HUB_OFFLINE="1"))
    assert done.stdout.decode().strip() == "set()"


def test_killed_in_every_stage_it_ends_as_if_it_never_was(
    whole: Path, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    config = settings(corpus, tiny_model)
    folder = tmp_path / "run"
    killed = 0
    env = dict(os.environ, HF_HUB_OFFLINE="1")
    for stage, part in (("generate", 2), ("relabel", 3), ("train", 2)):
        arguments = [str(folder), config.model_dump_json(), stage, str(part)]
        done = subprocess.run([sys.executable, "-c", KILLER, *arguments], check=False, capture_output=True, env=env)
        assert done.returncode == -9, done.stderr.decode()[-2000:]
        killed += 1
    assert killed == 3
    with Run(folder, config) as run:
        distill(run)
    assert content(folder) == content(whole)


def test_another_selection_costs_no_teacher(
    whole: Path, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr("gecko.llm.registry.load_teacher", refuse)
    with Run(folder, settings(corpus, tiny_model, "select.positive=seed"), force=True) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.make("generate")
        pipeline.make("mine")
        pipeline.make("relabel")
        pipeline.make("select")
        rows = run.read("select", Example)
    assert rows and all(row.positive.id == row.seed_id for row in rows)


def test_other_settings_are_refused_and_nothing_is_lost(whole: Path, corpus: Path, tiny_model: Path) -> None:
    before = content(whole)
    with pytest.raises(RunError, match=r"mine\.n: 6 -> 5"):
        Run(whole, settings(corpus, tiny_model, "mine.n=5"))
    assert content(whole) == before


def test_a_budget_in_tokens_bounds_the_run(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    sizes = []
    for number, budget in enumerate(("3000tok", "9000tok")):
        config = settings(corpus, tiny_model, "generate.queries=null", f"budget={budget}", "generate.neighbourhood=3")
        with Run(tmp_path / str(number), config) as run:
            pipeline = Pipeline(run)
            pipeline.ingest()
            pipeline.make("generate")
            pipeline.make("mine")
            pipeline.make("relabel")
            sizes.append(len({score.query_id for score in run.read("relabel", Score)}))
    assert 0 < sizes[0] < sizes[1]


def test_the_batch_of_a_run_is_settled_when_it_is_begun(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(corpus, tiny_model)
    open_ = config.model_copy(update={"generate": config.generate.model_copy(update={"batch": None})})
    monkeypatch.setattr("gecko.run.settings.texts_together", lambda llm: 7)
    folder = tmp_path / "run"

    def identities() -> list[str]:
        through_select(folder, open_)
        with Run(folder) as run:
            return [run.finished(stage).identity for stage in ("generate", "mine", "relabel", "select")]

    before = identities()
    monkeypatch.setattr("gecko.run.settings.texts_together", lambda llm: 512)  # another machine
    for given in (None, open_):
        with Run(folder, given) as run:
            assert run.config.generate.batch == 7
    assert identities() == before
    with Run(folder, settings(corpus, tiny_model, "generate.batch=9")) as run:
        assert run.config.generate.batch == 9


def test_a_budget_that_is_more_than_the_seeds_need_says_so(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    ui = Listener()
    for budget in ("9000tok", "900000tok"):
        with Run(tmp_path / budget, settings(corpus, tiny_model, "generate.queries=null", f"budget={budget}")) as run:
            pipeline = Pipeline(run, ui)
            pipeline.ingest()
            seeds = sum(map(len, plan.make(pipeline).blocks))
    few, many = (line for line in ui.said if "the budget of" in line)
    assert "buys about" in few
    assert f"is more than the {seeds} seeds of the corpus need" in many and "generate.rounds" in many


@pytest.mark.parametrize("budget", ["3000tok", "20s"])
def test_drawing_no_more_seeds_than_a_budget_buys_changes_no_plan(
    corpus: Path, tiny_model: Path, tmp_path: Path, budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gecko.stages.plan.measure", lambda context: (150.0, 20.0, 1.0))
    plans, drawn = [], []
    monkeypatch.setattr(
        "gecko.stages.plan.prefix_costs",
        lambda blocks, *rest: drawn.append(len(blocks)) or prefix_costs(blocks, *rest),
    )
    config = settings(corpus, tiny_model, "generate.queries=null", f"budget={budget}", "generate.neighbourhood=1")
    for most in (most_seeds, lambda *_: 50_000):
        monkeypatch.setattr("gecko.stages.plan.most_seeds", most)
        with Run(tmp_path / str(len(plans)), config) as run:
            Pipeline(run).ingest()
            plans.append(plan.make(Pipeline(run)))
    assert plans[0] == plans[1]
    assert drawn[0] < drawn[2]  # each plan is priced twice: all that was drawn, and what it buys


def test_the_papers_initial_embedder_is_trained_first(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    mined = []
    for epochs in (0, 1):
        with Run(tmp_path / str(epochs), settings(corpus, tiny_model, f"mine.warmup_epochs={epochs}")) as run:
            pipeline = Pipeline(run)
            pipeline.ingest()
            pipeline.make("generate")
            pipeline.make("mine")
            mined.append(run.read("mine", Candidate))
    assert [row.query_id for row in mined[0]] == [row.query_id for row in mined[1]]
    assert mined[0] != mined[1]


def test_seeds_are_looked_for_by_the_start_model_whichever_model_mines(
    corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    [weights] = other.rglob("model.safetensors")
    tensors = load_file(weights)
    save_file({name: tensor.flip(-1) for name, tensor in tensors.items()}, weights, {"format": "pt"})
    more = ("check.enabled=true", "check.min_parsed=0", "check.min_seed_found=0")
    found, natural = [], []
    for number, miner in enumerate(("", str(other))):
        given = settings(corpus, tiny_model, *more, f"mine.model={miner}")
        with Run(tmp_path / str(number), given) as run:
            pipeline = Pipeline(run)
            pipeline.ingest()
            pipeline.make("generate")
            pipeline.make("mine")
            queries = run.read("generate", Query)
            found.append(seeds_found(pipeline))
            natural.append(len(queries) - sum(not row.natural for row in run.read("mine", Candidate)))
    assert found[0] == natural[0] == found[1] != natural[1]


def test_few_rows_are_warned_of(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    said = []
    for queries in (12, 40):
        ui = Listener()
        given = settings(corpus, tiny_model, f"generate.queries={queries}", "evaluate.sets=[]", "train.epochs=1")
        with Run(tmp_path / str(queries), given) as run:
            distill(run, ui)
        said.append(any("few to learn from" in line for line in ui.said))
    assert said == [True, False]


def test_too_few_passages_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "three.jsonl"
    path.write_text("".join(json.dumps({"text": f"the passage of number {number}"}) + "\n" for number in range(3)))
    with (
        Run(tmp_path / "run", settings(path, tiny_model)) as run,
        pytest.raises(CorpusError, match=r"has 3 passages.*mine\.n to at most 3"),
    ):
        distill(run)


def test_a_teacher_whose_texts_do_not_parse_is_refused(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        FakeLM, "generate", lambda self, prompt, passages, sampling: ["I cannot do that."] * len(passages)
    )
    monkeypatch.setattr("gecko.evaluation.teacher.probe.refuse_by_probe", lambda *_: None)
    monkeypatch.setenv("GECKO_CACHE", str(tmp_path / "cache"))
    with (
        Run(tmp_path / "run", settings(corpus, tiny_model, "check.enabled=true")) as run,
        pytest.raises(TeacherRefused, match=r"only 0 of 24 generations of fake parse \(24 no query line\)"),
    ):
        distill(run)


def test_a_text_that_parses_counts_as_such_though_its_query_is_dropped(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(self: FakeLM, prompt: object, passages: list[str], sampling: object) -> list[str]:
        titles = [passage.partition("\n")[0] for passage in passages]
        return [f" Given a name, find it.\nQuery: {title}" for title in titles]

    monkeypatch.setattr(FakeLM, "generate", generate)
    with Run(tmp_path / "run", settings(corpus, tiny_model, "check.enabled=true")) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        manifest = pipeline.make("generate")
    assert manifest.rows == 0 and manifest.drops.keys() <= {"title alone", "repeated"}


def test_a_teacher_that_misorders_the_probe_is_refused_unless_forced(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_score, kept_labels = FakeLM.score, FakeLM.label_logprobs

    def worst_first(self, prompt, groups):
        return [[(-total, count) for total, count in row] for row in kept_score(self, prompt, groups)]

    def denied(self, prompt, groups):
        return [[values[::-1] for values in row] for row in kept_labels(self, prompt, groups)]

    monkeypatch.setattr(FakeLM, "score", worst_first)
    monkeypatch.setattr(FakeLM, "label_logprobs", denied)
    monkeypatch.setenv("GECKO_CACHE", str(tmp_path / "cache"))
    ui = Listener()
    config = settings(corpus, tiny_model, "check.enabled=true")
    with Run(tmp_path / "run", config) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        with pytest.raises(TeacherRefused, match="would make the embedder worse"):
            pipeline.make("check")
        assert Pipeline(run, ui, force=True).make("check") is not None
    assert any("because of --accept-teacher" in line for line in ui.said)


# --- a run that grows


class Asked:
    """What the teacher was asked, over all runs of a test."""

    def __init__(self) -> None:
        self.passages: list[str] = []
        self.pairs: list[tuple[str, str]] = []

    def take(self) -> tuple[list[str], list[tuple[str, str]]]:
        taken = self.passages, self.pairs
        self.passages, self.pairs = [], []
        return taken


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    record = Asked()
    generate, judge = FakeLM.generate, FakeLM.judge

    def recorded(self, prompt, passages, sampling):
        record.passages += passages
        return generate(self, prompt, passages, sampling)

    def judged(self, prompt, groups):
        record.pairs += [(query, group.passage) for group in groups for query in group.queries]
        return judge(self, prompt, groups)

    monkeypatch.setattr(FakeLM, "generate", recorded)
    monkeypatch.setattr(FakeLM, "judge", judged)
    yield record


def through_select(folder: Path, config: RunConfig, say: list[str] | None = None) -> None:
    with Run(folder, config, say=(say if say is not None else []).append) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("select")


def pairs_of(folder: Path) -> list[tuple[str, str]]:
    """(query's text, passage's content) of every score."""
    with Run(folder) as run:
        texts = {query.id: query.text for query in run.read("generate", Query)}
        passages = Pipeline(run).by_id
        return [(texts[score.query_id], passages[score.passage_id].content) for score in run.read("relabel", Score)]


def test_grown_is_as_if_asked_at_once(
    whole: Path, corpus: Path, tiny_model: Path, tmp_path: Path, asked: Asked
) -> None:
    folder, said = tmp_path / "run", []
    pairs: list[tuple[str, str]] = []
    for queries, before in ((4, 0), (13, 4)):  # neither is a whole number of shards
        through_select(folder, settings(corpus, tiny_model, f"generate.queries={queries}"))
        seeds, more = asked.take()
        assert len(seeds) == queries - before
        pairs += more
    with Run(folder, settings(corpus, tiny_model), say=said.append) as run:  # no --force
        distill(run)
        notes = run.finished("relabel").notes
        tokens = {stage: run.finished(stage).tokens for stage in ("generate", "relabel")}
        drops = run.finished("generate").drops
    assert content(folder) == content(whole)
    new_seeds, new_pairs = asked.take()
    assert len(new_seeds) == 24 - 13
    assert not set(seeds) & set(new_seeds)
    assert Counter(new_pairs) + Counter(pairs) == Counter(pairs_of(whole))  # each was asked once
    assert notes[REUSED] == len(pairs) > 0
    with Run(whole) as run:
        assert drops == run.finished("generate").drops
        assert tokens["generate"] == run.finished("generate").tokens
        assert tokens["relabel"] == pytest.approx(run.finished("relabel").tokens, abs=len(pairs))
    assert any("seeds changed, what was paid for is used again" in line for line in said)
    # And back: nothing is asked, what was made for fewer queries is still there.
    through_select(folder, settings(corpus, tiny_model, "generate.queries=13"))
    assert asked.take() == ([], [])


def test_more_queries_than_passages(corpus: Path, tiny_model: Path, tmp_path: Path, asked: Asked) -> None:
    """A passage becomes a seed again once all have been one; held-out ones do not, and nothing is written twice."""
    folder = tmp_path / "run"
    through_select(folder, settings(corpus, tiny_model, "generate.queries=55"))
    first = asked.take()
    through_select(folder, settings(corpus, tiny_model, "generate.queries=150"))
    second = asked.take()
    assert (len(first[0]), len(second[0])) == (55, 95)
    with Run(folder) as run:
        queries = run.read("generate", Query)
        drops = run.finished("generate").drops
        rows = run.read("select", Example)
    assert len(queries) + drops.total() == 150
    assert drops["repeated"] > 0
    assert max(Counter(query.seed_id for query in queries).values()) == 3
    texts = [(query.seed_id, query.text) for query in queries]
    assert len(set(texts)) == len(texts)
    held = {query.seed_id for query in queries if query.split == "heldout"}
    assert held and not held & {query.seed_id for query in queries if query.split == "train"}
    assert {row.seed_id for row in rows} == {query.seed_id for query in queries if query.split == "train"}
    assert Counter(first[1]) + Counter(second[1]) == Counter(pairs_of(folder))


def test_a_larger_budget_only_adds(corpus: Path, tiny_model: Path, tmp_path: Path, asked: Asked) -> None:
    def of(budget: str) -> RunConfig:
        return settings(corpus, tiny_model, "generate.queries=null", f"budget={budget}", "generate.neighbourhood=3")

    through_select(tmp_path / "grown", of("3000tok"))
    first = asked.take()
    through_select(tmp_path / "grown", of("6000tok"))
    second = asked.take()
    through_select(tmp_path / "at once", of("6000tok"))
    at_once = asked.take()
    assert first[1] and second[1]
    assert len(first[0]) + len(second[0]) == len(at_once[0])
    assert sorted(first[1] + second[1]) == sorted(at_once[1])
    with Run(tmp_path / "grown") as grown, Run(tmp_path / "at once") as whole:
        for stage in ("generate", "mine", "relabel", "select"):
            assert grown.finished(stage).identity == whole.finished(stage).identity


def test_other_cuts_of_the_work_pay_for_nothing_again(
    whole: Path, corpus: Path, tiny_model: Path, tmp_path: Path, asked: Asked
) -> None:
    folder = tmp_path / "run"
    through_select(folder, settings(corpus, tiny_model))
    written, judged = asked.take()
    said: list[str] = []
    through_select(folder, settings(corpus, tiny_model, "generate.batch=3", "relabel.shard_passages=5"), said)
    again = asked.take()
    assert judged and again[1] == []
    with Run(folder) as run, Run(whole) as other:
        dropped = run.finished("generate").drops.total()
        assert len(again[0]) <= dropped < len(written) / 2  # what gave no query is asked for it again
        assert run.read("generate", Query) == other.read("generate", Query)
        assert sorted(map(repr, run.read("relabel", Score))) == sorted(map(repr, other.read("relabel", Score)))
    assert [line for line in said if line.startswith("generate: settings changed, what was paid for is used again")]


def test_killed_while_growing(
    whole: Path, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended before it was complete, grown, killed while growing in each stage that is paid for, and gone on with."""
    folder, large = tmp_path / "run", settings(corpus, tiny_model)
    kept = shards._write_shard

    def write(run: Run, stage: str, index: int, *rest):
        if (stage, index) == ("relabel", 3):
            raise InterruptedError
        return kept(run, stage, index, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(shards, "_write_shard", write)
        with pytest.raises(InterruptedError):
            through_select(folder, settings(corpus, tiny_model, "generate.queries=13"))
    env = dict(os.environ, HF_HUB_OFFLINE="1")
    for stage, part in (("generate", 3), ("relabel", 2)):
        arguments = [str(folder), large.model_dump_json(), stage, str(part)]
        done = subprocess.run([sys.executable, "-c", KILLER, *arguments], check=False, capture_output=True, env=env)
        assert done.returncode == -9, done.stderr.decode()[-2000:]
    through_select(folder, large)
    with Run(folder) as run, Run(whole) as other:
        assert run.finished("relabel").notes[REUSED] > 0
        for stage in RECORDS:
            assert run.finished(stage).identity == other.finished(stage).identity


def test_another_text_is_judged_anew(
    corpus: Path, tiny_model: Path, tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are of a text: a query that was written otherwise (its folder was deleted, say) takes none over."""
    folder = tmp_path / "run"
    through_select(folder, settings(corpus, tiny_model, "generate.queries=13"))
    pairs = asked.take()[1]
    recorded = FakeLM.generate
    monkeypatch.setattr(FakeLM, "generate", lambda *arguments: [f"{text} indeed" for text in recorded(*arguments)])
    manifest = read_json(folder / "generate" / "manifest.json")
    for shard in manifest["shards"]:
        shard["key"] = ""  # as if written by something that told no keys
    write_json(folder / "generate" / "manifest.json", manifest)
    through_select(folder, settings(corpus, tiny_model))
    seeds, new = asked.take()
    assert len(seeds) == 24
    assert not set(pairs) & set(new)
    assert sorted(new) == sorted(pairs_of(folder))


def test_only_amounts_may_change_unasked(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    through_select(folder, settings(corpus, tiny_model, "generate.queries=6"))
    with pytest.raises(RunError, match=r"mine\.n: 6 -> 5") as caught:
        Run(folder, settings(corpus, tiny_model, "generate.queries=9", "mine.n=5"))
    assert "generate.queries" not in str(caught.value)


def test_more_candidates_keep_the_scores_of_the_first(
    corpus: Path, tiny_model: Path, tmp_path: Path, asked: Asked
) -> None:
    folder = tmp_path / "run"
    through_select(folder, settings(corpus, tiny_model, "mine.n=5"))
    pairs = asked.take()[1]
    with Run(folder, settings(corpus, tiny_model, "mine.n=9"), force=True):
        pass
    through_select(folder, settings(corpus, tiny_model, "mine.n=9"))
    seeds, new = asked.take()
    assert seeds == []
    every = pairs_of(folder)
    assert Counter(new) + Counter(pairs) == Counter(every)
    assert 0 < len(new) < len(every)


def test_a_second_round_pays_for_new_pairs_only(
    whole: Path, corpus: Path, tiny_model: Path, tmp_path: Path, asked: Asked
) -> None:
    """Mined with the student of the first round: its candidates are judged, what was judged before is kept."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    first = pairs_of(folder)
    with Run(folder, settings(corpus, tiny_model, f"mine.model={folder / 'model'}"), force=True) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        with pytest.raises(ConfigError, match=r"is the run's own model.*copy it first: cp -r .*round-1"):
            pipeline.through("mine")
    shutil.copytree(folder / "model", folder / "round-1")
    config = settings(corpus, tiny_model, f"mine.model={folder / 'round-1'}")
    with Run(folder, config, force=True) as run:
        mined = run.read("mine", Candidate)
    through_select(folder, config)
    seeds, new = asked.take()
    assert seeds == []
    every = pairs_of(folder)
    assert Counter(new) == Counter(every) - Counter(first)
    assert 0 < len(new) < len(every)
    with Run(folder) as run:
        assert run.read("mine", Candidate) != mined
        assert run.finished("relabel").notes[REUSED] == len(every) - len(new)


def grown(corpus: Path, target: Path, changed: str = "", gone: str = "") -> Path:
    """The corpus with 20 new passages among the others, one of which may be edited and one taken away."""
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    for row in rows:
        if row["_id"] == changed:
            row["text"] += " edited"
    rows = [row for row in rows if row["_id"] != gone]
    for number in range(20):
        text = f"new passage {number} about " + " ".join(row["title"] for row in rows[number : number + 9])
        rows.insert(3 * number, {"_id": f"new{number}", "title": rows[number]["title"], "text": text})
    target.write_text("\n".join(map(json.dumps, rows)))
    return target


def test_a_grown_corpus_costs_only_its_new_passages(
    corpus: Path, tiny_model: Path, tmp_path: Path, asked: Asked
) -> None:
    folder, source, said = tmp_path / "run", tmp_path / "corpus.jsonl", []
    source.write_bytes(corpus.read_bytes())
    through_select(folder, settings(source, tiny_model))
    seeds, pairs = asked.take()
    with Run(folder) as run:
        before = run.read("generate", Query)
    grown(corpus, source)
    through_select(folder, settings(source, tiny_model), said)
    new_seeds, new_pairs = asked.take()
    assert new_seeds == []
    every = pairs_of(folder)
    assert Counter(new_pairs) + Counter(pairs) == Counter(every) + (Counter(pairs) - Counter(every))
    assert new_pairs and all("new passage" in passage for _, passage in new_pairs)
    with Run(folder) as run:
        assert run.read("generate", Query) == before
        assert run.finished("relabel").notes[REUSED] == len(every) - len(new_pairs)
    assert "generate: passages changed, what was paid for is used again; the old output is kept in archive/" in said
    # More queries then begin with those that there are, and the old corpus has all of its own again.
    through_select(folder, settings(source, tiny_model, "generate.queries=40"))
    more, _ = asked.take()
    assert len(more) == 16 and not set(more) & set(seeds)
    source.write_bytes(corpus.read_bytes())
    through_select(folder, settings(source, tiny_model))
    assert asked.take() == ([], [])
    assert sorted(pairs_of(folder)) == sorted(pairs)


def test_an_edited_passage_is_paid_for_again(corpus: Path, tiny_model: Path, tmp_path: Path, asked: Asked) -> None:
    folder, source = tmp_path / "run", tmp_path / "corpus.jsonl"
    source.write_bytes(corpus.read_bytes())
    through_select(folder, settings(source, tiny_model))
    pairs = asked.take()[1]
    with Run(folder) as run:
        queries = run.read("generate", Query)
        dropped = run.finished("generate").drops.total()
    changed, gone = queries[3].seed_id, queries[8].seed_id
    grown(corpus, source, changed, gone)
    through_select(folder, settings(source, tiny_model))
    new_seeds, new_pairs = asked.take()
    # Two others in their places, and, at most, those again of which there was no query.
    assert 2 <= len(new_seeds) <= 2 + dropped
    with Run(folder) as run:
        found = run.read("generate", Query)
        passages = Pipeline(run).by_id
    kept = {query.id: query for query in queries if query.seed_id not in (changed, gone)}
    assert kept.items() <= {query.id: query for query in found}.items()
    assert gone not in passages and passages[changed].text.endswith("edited")
    assert not set(pairs) & set(new_pairs)
    new_texts = {query.text for query in found} - {query.text for query in queries}
    for text, passage in new_pairs:
        assert "new passage" in passage or passage.endswith("edited") or text in new_texts


def test_queries_of_an_older_version_stay_paid_for(
    corpus: Path, tiny_model: Path, tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of another form are taken over where they can be read, and else refused: they are not paid for again."""
    folder, config = tmp_path / "run", settings(corpus, tiny_model)
    with monkeypatch.context() as older:
        for kind in (Query, Score):
            older.setitem(SCHEMAS, kind, pa.schema(list(SCHEMAS[kind])[::-1]))
        through_select(folder, config)
    seeds, pairs = asked.take()
    said: list[str] = []
    through_select(folder, config, said)
    assert asked.take() == ([], [])
    assert len(seeds) == 24 and sorted(pairs) == sorted(pairs_of(folder))
    assert [line for line in said if "schema changed, what was paid for is used again" in line]
    rewrite_shards(
        folder / "generate", lambda table: table.rename_columns([f"old_{name}" for name in table.column_names])
    )
    with pytest.raises(RunError, match=r"part-00000\.parquet was written by another version of Gecko"):
        through_select(folder, config)
    assert asked.take() == ([], [])


def test_a_damaged_archive_is_an_error(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    """It was paid for, so it is not passed over in silence."""
    folder = tmp_path / "run"
    through_select(folder, settings(corpus, tiny_model, "generate.queries=6"))
    (folder / "generate" / "part-00000.parquet").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"archive.*does not match its checksum"):
        through_select(folder, settings(corpus, tiny_model))


def test_another_format_is_kept_only_for_a_clear_gain(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(whole) as run:
        pipeline = Pipeline(run)
        assert run.config.train.formats == ["native", "unified"]
        assert pipeline.heldout
        first = [0.5] * 8
        for second, kept in (
            ([0.5, 0.9, 0.5, 0.9, 0.1, 0.9, 0.5, 0.4], "native"),  # higher on average, by chance
            ([0.6, 0.7, 0.6, 0.7, 0.6, 0.7, 0.6, 0.7], "unified"),
            ([0.4] * 8, "native"),
            (first, "native"),
        ):
            found = {"native": first, "unified": second}
            monkeypatch.setattr("gecko.stages.agreement.make", lambda _, found=found: found)
            assert chosen_format(pipeline) == kept
        few = {"native": [0.5, 0.6], "unified": [0.6, 0.7]}  # an interval of two is above 0 whenever both are
        monkeypatch.setattr("gecko.stages.agreement.make", lambda _: few)
        assert chosen_format(pipeline) == "native"


def test_a_precision_that_is_chosen_is_part_of_what_was_asked(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    with Run(tmp_path / "run", settings(corpus, tiny_model)) as run:
        pipeline = Pipeline(run)
        pipeline.ingest()
        pipeline.through("relabel")
        before = run.finished("relabel").parts
    with Run(tmp_path / "run", settings(corpus, tiny_model, "relabel.precision=full"), force=True) as run:
        Pipeline(run).make("relabel")
        assert run.finished("relabel").parts == {**before, "precision": "full"}


def test_a_teacher_that_counts_no_tokens_has_no_budget(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Usage, "tokens", property(lambda _: 0))
    given = settings(corpus, tiny_model, "generate.queries=null", "budget=1m")
    with (
        Run(tmp_path / "run", given) as run,
        pytest.raises(TeacherError, match=r"does not say how many tokens .* set generate\.queries"),
    ):
        distill(run)


def test_the_shipped_result_of_the_probe_is_taken_for_its_teacher_and_prompts_alone(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(builtin, "probe_results", lambda: known)
    monkeypatch.setattr(check, "write_shipped", lambda results: known.update(results))
    asked = settings(corpus, tiny_model, "check.enabled=true", "check.shipped=false")
    with Run(tmp_path / "asked", asked) as run:
        pipeline = Pipeline(run, force=True)
        pipeline.ingest()
        found = pipeline.make("check")
        key = check.ship(run)
    assert known[key] == {**found, "seconds": 0.0, "tokens": 0, "cached": True}
    monkeypatch.setattr(probe, "run_probe", lambda *_, **__: pytest.fail("the teacher was asked"))
    ui = Listener()
    with Run(tmp_path / "told", settings(corpus, tiny_model, "check.enabled=true", "seed=7")) as run:
        pipeline = Pipeline(run, ui, force=True)
        pipeline.ingest()
        assert pipeline.make("check") == known[key]
        with pytest.raises(RunError, match=r"check\.shipped=false"):
            check.ship(run)
    assert "ships with the package" in str(ui.said)
    with (
        Run(
            tmp_path / "told", settings(corpus, tiny_model, "check.enabled=true", "seed=7", "check.shipped=false")
        ) as run,
        pytest.raises(pytest.fail.Exception, match="was asked"),
    ):
        Pipeline(run, force=True).make("check")
    other = settings(corpus, tiny_model, "check.enabled=true", "relabel.passage_tokens=100")
    with Run(tmp_path / "other", other) as run:
        pipeline = Pipeline(run, force=True)
        pipeline.ingest()
        with pytest.raises(pytest.fail.Exception, match="was asked"):
            pipeline.make("check")
