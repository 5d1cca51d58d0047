"""What the stages that have pairs judged share: how the work is cut into shards, and what is done with one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from gecko.core.counts import Counts
from gecko.core.records import Candidate, Grade, Judged, Passage, Place, Query, Score, by_query
from gecko.fret.answered import grade_pairs, order_lists
from gecko.fret.judging import JudgeForm
from gecko.fret.relabel import relabel
from gecko.prompts import Prompt
from gecko.stages.models import TeacherLoader
from gecko.stages.spending import booked


@dataclass(frozen=True)
class Judging:
    """A shard: passages, each with the queries that retrieved it, or queries with their candidates, and what is known."""

    pairs: Sequence[tuple[Passage, Sequence[Query]]] = ()
    lists: Sequence[tuple[Query, Sequence[Passage]]] = ()
    known: Mapping[tuple[str, str], Judged] = field(default_factory=dict)

    @property
    def asked(self) -> list[tuple[str, str]]:
        """The pairs, by query id and passage id."""
        return [(query.id, passage.id) for passage, queries in self.pairs for query in queries] + [
            (query.id, passage.id) for query, passages in self.lists for passage in passages
        ]


@dataclass(frozen=True)
class Judge:
    """What is done with a shard; it can be sent to another process, if ``teacher``, which loads one, can.

    ``prompts`` are by role; ``window`` candidates are put in order in one request.
    """

    teacher: TeacherLoader
    form: JudgeForm
    prompts: Mapping[str, Prompt]
    window: int

    def __call__(self, task: Judging, counts: Counts) -> list[Judged]:
        """The judgements of a shard."""
        if not task.lists and all(pair in task.known for pair in task.asked):
            return [task.known[pair] for pair in task.asked]
        teacher, prompts = self.teacher(counts), self.prompts
        with booked(teacher.usage, counts):
            match self.form.name:
                case "logprobs":
                    scores = cast("Mapping[tuple[str, str], Score]", task.known)
                    pair = prompts["likelihood"], prompts["relevance"]
                    return list(relabel(task.pairs, teacher, *pair, counts, scores))
                case "graded":
                    grades = cast("Mapping[tuple[str, str], Grade]", task.known)
                    return list(grade_pairs(task.pairs, teacher, prompts["graded"], counts, grades))
                case "listwise":
                    places = cast("Mapping[tuple[str, str], Place]", task.known)
                    pair = prompts["listwise"], prompts["relevance"]
                    return list(order_lists(task.lists, teacher, *pair, self.window, counts, places))


@dataclass(frozen=True)
class Work:
    """What there is to judge: queries and passages by id, in the order in which these are judged, and the candidates."""

    queries: Mapping[str, Query]
    passages: Mapping[str, Passage]
    candidates: Sequence[Candidate]

    def shards(self, form: JudgeForm, size: int) -> list[Judging]:
        """The work in parts of ``size`` passages, or of as many queries where these are judged as a whole."""
        if form.name == "listwise":
            found = [
                (self.queries[key], [self.passages[one.passage_id] for one in sorted(some, key=lambda one: one.rank)])
                for key, some in by_query(self.candidates).items()
            ]
            return [Judging(lists=found[start : start + size]) for start in range(0, len(found), size)]
        by_passage: dict[str, list[Query]] = {}
        for candidate in self.candidates:
            by_passage.setdefault(candidate.passage_id, []).append(self.queries[candidate.query_id])
        pairs = [(passage, by_passage[key]) for key, passage in self.passages.items() if key in by_passage]
        return [Judging(pairs=pairs[start : start + size]) for start in range(0, len(pairs), size)]

    def title(self, form: JudgeForm, size: int) -> str:
        """Of the progress bar."""
        used = {
            candidate.query_id if form.name == "listwise" else candidate.passage_id for candidate in self.candidates
        }
        unit = "queries" if form.name == "listwise" else "passages"
        at_once = min(size, len(used))
        return f"judging {len(self.candidates):,} pairs, {at_once:,} of {len(used):,} {unit} at a time"
