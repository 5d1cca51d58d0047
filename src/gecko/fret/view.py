"""A run as those read it that make nothing: its passages, queries, labels and prompts, from the run folder alone."""

from dataclasses import replace
from functools import cached_property

from gecko.config.run import RunConfig
from gecko.core.records import Candidate, Judged, Passage, Query
from gecko.fret.fuse import Label
from gecko.fret.judging import JudgeForm, form_of
from gecko.fret.release import Released, load_release
from gecko.fret.select import group_labels
from gecko.fret.variables import varied
from gecko.prompts import Prompt
from gecko.run.folder import Run

ASKED = "asked"  # the stage of the queries that people asked


def asked_queries(run: Run) -> list[Query]:
    """The queries of a run that people asked, in the order in which they are judged; none where it has no such."""
    return run.read(ASKED, Query) if run.config.asked.sources else []


def own_queries(run: Run) -> list[Query]:
    """The queries of a run: those that people asked, and those that the teacher wrote."""
    return [*asked_queries(run), *run.read("generate", Query)]


def relabel_folders(config: RunConfig) -> list[str]:
    """The folders that hold scores: one a teacher, that of ``llm`` first."""
    return ["relabel", *(f"relabel-{number}" for number, _ in enumerate(config.relabel.teachers, start=2))]


def judgements(run: Run, folder: str, *, so_far: bool = False) -> list[Judged]:
    """What is in a folder of judgements, whatever their form; with ``so_far`` also of one that has not come to its end.

    Raises RunError: it is not finished, or has nothing yet, or a shard is damaged.
    """
    return (run.read_so_far if so_far else run.read)(folder, judged_form(run, folder).record)


def judged_form(run: Run, folder: str = "relabel") -> JudgeForm:
    """The form of the judgements in a folder; that of log-probabilities where there are none."""
    manifest = run.manifest(folder)
    return form_of(manifest.parts if manifest else {})


def all_scores(run: Run) -> list[Judged]:
    """The judgements of every teacher of a run."""
    return [score for folder in relabel_folders(run.config) for score in judgements(run, folder)]


class RunView:
    """What a run (its folder, held) holds; each part is read when it is first asked for."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config = run.config

    @cached_property
    def passages(self) -> list[Passage]:
        """The corpus."""
        return self.run.read("ingest", Passage)

    @cached_property
    def by_id(self) -> dict[str, Passage]:
        """The corpus by id."""
        return {passage.id: passage for passage in self.passages}

    @cached_property
    def prompts(self) -> dict[str, Prompt]:
        """The prompts of the run, by role: ``generate``, and those that judge."""
        config = self.config
        return {
            "generate": varied(self.run.prompt("generate"), config.generate.variables, config.corpus.languages),
            "likelihood": self.run.prompt("query_likelihood"),
            "relevance": self.run.prompt("relevance"),
            "graded": self.run.prompt("graded"),
            "listwise": self.run.prompt("listwise"),
        }

    @cached_property
    def released(self) -> list[Released]:
        """Rows that were labelled elsewhere; of several that hold the same query, the first has it."""
        own = own_queries(self.run)
        heldout = {query.seed_id for query in own if query.split == "heldout"} - {""}
        seen = {query.id for query in own}
        found = []
        for spec in self.config.select.released:
            released = load_release(spec, self.by_id, self.config.select, heldout)
            new = [query for query in released.queries if query.id not in seen]
            for query in released.queries:
                if query.id in seen:
                    released.counts.drop(f"{spec}: known already", query.text)
            seen |= {query.id for query in new}
            found.append(replace(released, queries=new))
        return found

    @cached_property
    def queries(self) -> list[Query]:
        """The run's own queries, then the released ones."""
        return [*own_queries(self.run), *(query for one in self.released for query in one.queries)]

    @cached_property
    def labels(self) -> dict[str, list[Label]]:
        """Each query's candidates in fused order."""
        candidates = self.run.read("mine", Candidate)
        judged = group_labels(own_queries(self.run), candidates, all_scores(self.run), self.config.select)
        return judged | {query.id: one.labels[query.id] for one in self.released for query in one.queries}

    @cached_property
    def heldout(self) -> list[Query]:
        """The queries kept from training that the teacher has labelled."""
        return [query for query in self.queries if query.split == "heldout" and query.id in self.labels]
