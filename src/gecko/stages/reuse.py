"""What the teacher was paid for under another amount (``FREE`` of :mod:`gecko.config.run`) or another corpus, used again.

- **Queries**: seeds are drawn in an order in which more of them begin with fewer of them, and each text is drawn from its
  own generator, so a shard of seeds, or the beginning of one, is looked up by its seeds, and else each query by its own.
- **Scores** are looked up by query, text and passage; teacher and prompts are those of the stage's fingerprint.
- **Another corpus**: the seeds of the plan before come first in the new one. What is taken over is of passages whose
  title and text are the same as they were.

A run that is asked for more therefore has the rows of a run that had asked for as much at once, wherever the teacher
answers the same for a prompt whatever stands beside it. Backends on real hardware do so but for the rounding of a batched
sum; there a grown run keeps its first queries and scores to the bit, and those that it adds may differ in the last digits.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gecko.config.run import FREE
from gecko.core.counts import Counts
from gecko.core.files import digest, file_sha256, read_json
from gecko.core.records import Judged, Passage, Query, Score
from gecko.fret.seeds import Seed
from gecko.fret.view import ASKED
from gecko.run.folder import Run
from gecko.run.manifest import Shard

REUSED = "taken over"
PLAN_FILE = "plan.json"


def seeds_key(seeds: Sequence[Seed]) -> str:
    """What a shard of queries was asked for."""
    return digest(*(f"{seed.passage_id}={seed.split}" + (f" {seed.round}" if seed.round else "") for seed in seeds))


def unchanged(run: Run, identity: str, passages: Mapping[str, Passage]) -> Collection[str]:
    """Ids of the ``passages`` that were the same in the corpus of this identity; none where it is no longer there."""
    if identity == run.finished("ingest").identity:
        return passages.keys()
    before = run.made("ingest", identity, Passage) or []
    return {
        old.id for old in before if (new := passages.get(old.id)) and (new.title, new.text) == (old.title, old.text)
    }


def paid_seeds(run: Run, parts: Mapping[str, str], passages: Mapping[str, Passage]) -> list[list[Seed]]:
    """The neighbourhoods of an earlier plan for another corpus, without the seeds that are gone or read otherwise.

    Of several plans it is the one that has most seeds left. There is none where nothing but amounts (not of ``parts``)
    has changed: then the order of the seeds is the same anyway. The run's stage ``ingest`` is finished.
    """
    best: list[list[Seed]] = []
    current = run.manifest("plan")
    for folder, manifest in [*([(run.path / "plan", current)] if current else []), *run.archived("plan")]:
        if manifest.parts["passages"] == parts["passages"] or not _is_alike(manifest.parts, parts):
            continue
        path = folder / PLAN_FILE
        if not (manifest.done and path.exists() and file_sha256(path) == manifest.shards[0].sha256):
            continue  # damaged: a plan costs nothing but its seeds' order
        same = unchanged(run, manifest.parts["passages"], passages)
        blocks = [[Seed(**seed) for seed in block] for block in read_json(path)["blocks"]]
        kept = [[seed for seed in block if not seed.round and seed.passage_id in same] for block in blocks]
        if sum(map(len, kept)) > sum(map(len, best)):
            best = kept
    return best


def _is_alike(old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Whether two plans differ in nothing but the corpus, amounts, and settings that one of them did not know."""
    besides = {"passages": "", "budget": "", "settings": "", ASKED: ""}
    one, other = json.loads(old["settings"]), json.loads(new["settings"])
    known = (one.keys() & other.keys()) - {key.removeprefix("generate.") for key in FREE}
    return {**old, **besides} == {**new, **besides} and all(one[key] == other[key] for key in known)


@dataclass(frozen=True)
class _PaidShard:
    """A shard of queries, and the passages that are still what they were when it was written."""

    shard: Shard
    queries: list[Query]
    same: Collection[str]


@dataclass
class PaidQueries:
    """Shards of queries by the seeds that they answer, and the queries themselves by id, each with what it has cost.

    ``name`` gives the id of a seed's query.
    """

    name: Callable[[Seed], str]
    shards: dict[str, _PaidShard] = field(default_factory=dict)
    queries: dict[str, tuple[Query, float, float]] = field(default_factory=dict)

    def take(self, seeds: Sequence[Seed], counts: Counts) -> tuple[list[Query], Sequence[Seed]]:
        """The queries that are known of ``seeds``, and the seeds that are left.

        The longest beginning that a shard has answered counts as a whole, with the seeds that it dropped; of the rest,
        each query that is there.
        """
        known, answered = self._beginning(seeds, counts)
        left = []
        for seed in seeds[answered:]:
            if (found := self.queries.get(self.name(seed))) is None:
                left.append(seed)
                continue
            query, tokens, seconds = found
            known.append(replace(query, split=seed.split))
            counts.tokens += round(tokens)
            counts.spent += seconds
        if len(left) < len(seeds):
            counts.notes.update({REUSED: len(known)})
        return known, left

    def _beginning(self, seeds: Sequence[Seed], counts: Counts) -> tuple[list[Query], int]:
        for length in range(len(seeds), 0, -1):
            found = self.shards.get(seeds_key(seeds[:length]))
            if found and all(seed.passage_id in found.same for seed in seeds[:length]):
                counts.take_drops(found.shard.drops, found.shard.examples)
                counts.tokens += found.shard.tokens
                counts.spent += found.shard.seconds
                return list(found.queries), length
        return [], 0


def paid_queries(
    run: Run,
    parts: Mapping[str, str],
    growing: Collection[str],
    passages: Mapping[str, Passage],
    name: Callable[[Seed], str],
) -> PaidQueries:
    """All queries that earlier plans of this run had written, of passages that are still the same."""
    paid = PaidQueries(name)
    for folder, manifest in run.earlier("generate", parts, growing):
        same = unchanged(run, manifest.parts["passages"], passages)
        for shard in manifest.shards:
            if not shard.key:
                continue
            queries = run.read_shard(folder, shard, Query)
            paid.shards.setdefault(shard.key, _PaidShard(shard, queries, same))
            for query in queries:
                if query.seed_id in same:
                    price = (shard.tokens / len(queries), shard.seconds / len(queries))
                    paid.queries.setdefault(query.id, (query, *price))
    return paid


@dataclass
class PaidScores:
    """Scores by query id and passage id, each with the tokens and seconds that it took (its share of its stage's)."""

    scores: dict[tuple[str, str], Judged] = field(default_factory=dict)
    price: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def count(self, pairs: Sequence[tuple[str, str]], counts: Counts) -> None:
        """Book those of ``pairs`` that are known."""
        prices = [self.price[pair] for pair in pairs if pair in self.price]
        if prices:
            counts.notes[REUSED] += len(prices)
            counts.tokens += round(sum(tokens for tokens, _ in prices))
            counts.spent += sum(seconds for _, seconds in prices)


def paid_scores(
    run: Run,
    parts: Mapping[str, str],
    growing: Collection[str],
    queries: Mapping[str, Query],
    passages: Mapping[str, Passage],
    stage: str = "relabel",
    record: type[Judged] = Score,
) -> PaidScores:
    """All judgements that earlier stages of this run had made of ``queries``, where query and passage read as they did.

    Places among other candidates than those of now are among them; whoever uses them looks whether the list is whole.
    """
    paid = PaidScores()
    teachers = sorted(
        path.name for path in run.path.glob("relabel*")
    )  # one may have stood in another place of the list
    archived = (path.name.rpartition("-")[0] for path in (run.path / "archive").glob("relabel*"))
    for folder, manifest in run.earlier(stage, parts, growing, {*teachers, *archived}):
        asked = run.made("generate", manifest.parts["queries"], Query)
        if asked is None:
            continue  # without the texts nobody can say what the scores are of
        same = {query.id for query in asked if query.id in queries and queries[query.id].text == query.text}
        same |= {query.id for query in queries.values() if query.asked}  # whose id is a hash of the text
        there = unchanged(run, manifest.parts["passages"], passages)
        price = (manifest.tokens / manifest.rows, manifest.seconds / manifest.rows)
        for shard in manifest.shards:
            for score in run.read_shard(folder, shard, record):
                pair = (score.query_id, score.passage_id)
                if score.query_id in same and score.passage_id in there and pair not in paid.scores:
                    paid.scores[pair], paid.price[pair] = score, price
    return paid
