"""What a run would cost, stage by stage, in words: ``--dry-run``."""

import time

from gecko.core.counts import Counts
from gecko.evaluation.sets import load_set
from gecko.report.spending import money, money_words
from gecko.stages import ingest, user_queries
from gecko.stages.context import Context
from gecko.stages.costs import answered_tokens
from gecko.stages.lexical import count_sentences
from gecko.stages.plan import new_plan
from gecko.stages.speed import measure

SAMPLE = 64  # passages whose embedding is timed


def estimate(context: Context) -> str:
    """What the run would cost, stage by stage, in words; embeds the corpus and measures teacher and start model.

    Raises GeckoError: the corpus, a source of queries, a test set or the teacher cannot be used.
    """
    from gecko.training.schedule import enough_steps

    config = context.config
    people = user_queries.read(context, Counts())
    ingest.make(context)
    plan = new_plan(context, people)
    cost, queries = plan.expected, plan.asked + sum(map(len, plan.blocks))
    read_speed, write_speed = plan.read_speed, plan.write_speed
    if not read_speed:
        read_speed, write_speed, _ = measure(context)
    writing = cost.generate_read / read_speed + cost.written / write_speed
    judged, further = cost.read - cost.generate_read, len(config.relabel.teachers)
    start, passages = context.models.start, context.passages
    start.passages(passages[:1])  # loaded and warm
    began = time.perf_counter()
    start.passages(passages[:SAMPLE])
    text = (time.perf_counter() - began) / min(len(passages), SAMPLE)  # seconds of embedding one
    tested = sum(len(load_set(spec).passages) for spec in config.evaluate.sets)
    forms, epochs = len(config.train.formats), enough_steps(config.train, queries).epochs
    # A step forwards and backwards takes about three times an encoding; a row has a query and two passages.
    # Of BM25's order each sentence is encoded twice, once of them with a step backwards.
    sentences = count_sentences(passages, config.lexical.sentences)
    training = text * (3 * 2.5 * queries * epochs * forms + 4 * sentences)
    testing = text * tested * (1 + forms) / 60
    before = context.run.manifest("generate")
    paid = before.rows + before.drops.total() if before else 0
    answered = answered_tokens(context, queries)
    price, written = config.price, cost.written + answered
    asked = f" in about {cost.requests:,} requests, {answered:,} written" if cost.requests else ""
    amount = money_words(money(price, cost.read, written))
    prices = f"at {price.input:g} read and {price.output:g} written a million tokens"
    paid_for = [f"money:    about {amount}, {prices}"] if amount else []
    known = [f"{paid:,} queries are there; what is paid for is in these numbers and not paid again"] if paid else []
    return "\n".join(
        [
            f"{len(passages):,} passages, {queries:,} queries"
            + (f" ({plan.asked:,} that people asked)" if plan.asked else "")
            + f", {config.mine.n} candidates each",
            f"generate: {cost.generate_read:,} tokens read, {cost.written:,} written, about {writing / 60:.1f} minutes",
            f"mine:     about {text * queries / 60:.1f} minutes; the passages are embedded",
            f"relabel:  {judged:,} tokens read{asked}, about {judged / read_speed / 60:.1f} minutes"
            + (f"; as many tokens by each of {further} further teachers" if further else ""),
            f"train:    roughly {training / 60:.1f} minutes (epochs: {epochs}, formats: {forms})",
            *([f"evaluate: roughly {testing:.1f} minutes for {tested:,} passages"] if tested else []),
            *paid_for,
            *known,
            f"(measured: {read_speed:.0f} tokens/s read, {write_speed:.0f} written, {1 / text:.0f} passages/s embedded)",
        ]
    )
