"""What the teacher was paid for under another amount of work (``config.FREE``), to be used again.

- **Queries**: seeds are drawn in an order in which more of them begin with fewer of them, and each text is drawn from its
  own generator, so a shard of seeds, or the beginning of one, is looked up by its seeds.
- **Scores** are looked up by query, text and passage; teacher, prompts and passages are those of the stage's fingerprint.

A run that has grown therefore has the rows of a run that had asked for as much at once, wherever the teacher answers the
same for a prompt whatever stands beside it. Backends on real hardware do so but for the rounding of a batched sum; there a
grown run keeps its first queries and scores to the bit, and those that it adds may differ in the last digits.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from gecko.fret.seeds import Seed
from gecko.records import Query, Score
from gecko.store import Counts, Run, Shard, digest

REUSED = "taken over"


def seeds_key(seeds: Sequence[Seed]) -> str:
    """What a shard of queries was asked for."""
    return digest(*(f"{seed.passage_id}={seed.split}" + (f" {seed.round}" if seed.round else "") for seed in seeds))


@dataclass
class PaidQueries:
    """Shards of queries by the seeds that they answer."""

    shards: dict[str, tuple[Shard, list[Query]]] = field(default_factory=dict)

    def take(self, seeds: Sequence[Seed], counts: Counts) -> tuple[list[Query], Sequence[Seed]]:
        """The queries of the longest known beginning of ``seeds``, and the seeds that are left."""
        for length in range(len(seeds), 0, -1):
            if found := self.shards.get(seeds_key(seeds[:length])):
                shard, queries = found
                counts.take_drops(shard.drops, shard.examples)
                counts.notes.update({REUSED: len(queries)})
                counts.tokens += shard.tokens
                counts.spent += shard.seconds
                return queries, seeds[length:]
        return [], seeds


def paid_queries(run: Run, parts: Mapping[str, str], growing: Collection[str]) -> PaidQueries:
    """All queries that earlier plans of this run had written."""
    paid = PaidQueries()
    for folder, manifest in run.earlier("generate", parts, growing):
        for shard in manifest.shards:
            if shard.key and shard.key not in paid.shards:
                paid.shards[shard.key] = (shard, run.read_shard(folder, shard, Query))
    return paid


@dataclass
class PaidScores:
    """Scores by query id and passage id, each with the tokens and seconds that it took (its share of its stage's)."""

    scores: dict[tuple[str, str], Score] = field(default_factory=dict)
    price: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def count(self, pairs: Sequence[tuple[str, str]], counts: Counts) -> None:
        """Book those of ``pairs`` that are known."""
        prices = [self.price[pair] for pair in pairs if pair in self.price]
        if prices:
            counts.notes[REUSED] += len(prices)
            counts.tokens += round(sum(tokens for tokens, _ in prices))
            counts.spent += sum(seconds for _, seconds in prices)


def paid_scores(
    run: Run, parts: Mapping[str, str], growing: Collection[str], queries: Mapping[str, Query], stage: str = "relabel"
) -> PaidScores:
    """All scores that earlier stages of this run had made of ``queries``, where the query's text is still the same."""
    paid = PaidScores()
    for folder, manifest in run.earlier(stage, parts, growing):
        asked = run.made("generate", manifest.parts["queries"], Query)
        if asked is None:
            continue  # without the texts nobody can say what the scores are of
        same = {query.id for query in asked if query.id in queries and queries[query.id].text == query.text}
        price = (manifest.tokens / manifest.rows, manifest.seconds / manifest.rows)
        for shard in manifest.shards:
            for score in run.read_shard(folder, shard, Score):
                pair = (score.query_id, score.passage_id)
                if score.query_id in same and pair not in paid.scores:
                    paid.scores[pair], paid.price[pair] = score, price
    return paid


RATE = "rate"


def relabel_stages(run: Run) -> list[str]:
    """The stages that hold scores: one a teacher, that of ``llm`` first."""
    return ["relabel", *(f"relabel-{number}" for number, _ in enumerate(run.config.relabel.teachers, start=2))]


def all_scores(run: Run) -> list[Score]:
    """The scores of every teacher of a run."""
    return [score for stage in relabel_stages(run) for score in run.read(stage, Score)]


def all_ratings(run: Run) -> dict[str, float]:
    """By query id how ``rate.llm`` rates it, in log-odds; empty where nobody is asked to."""
    return {score.query_id: score.rc for score in run.read(RATE, Score)} if run.config.rate.llm else {}
