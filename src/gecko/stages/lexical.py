"""Stage ``lexical``: before it is trained on rows, the start model learns how words order the corpus.

::

    passages ─▶ sentences ─▶ BM25's first 32 and the start model's first 32 ─▶ cosine + weight · BM25 ─▶ listwise distillation
                                                                rows of ``select`` ─▶ weight ─┘

The sentences are the corpus's own, so that they cost the teacher nothing. What words are worth differs from corpus to
corpus; the rows that the teacher has judged tell it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gecko.config.run import RunConfig
from gecko.core.files import write_json
from gecko.core.formats import DEFAULT_TASK, native_prompt, render_query
from gecko.core.progress import Ui, quiet_libraries
from gecko.core.records import Example, Passage
from gecko.encoder import Encoder, resolve_model
from gecko.encoder.nearest import top_k
from gecko.evaluation.bm25 import Bm25
from gecko.run.shards import build_file
from gecko.stages.context import Context, once
from gecko.stages.embed import vectors
from gecko.stages.ingest import INGEST
from gecko.stages.select import SELECT
from gecko.stages.stage import Stage, section, value

if TYPE_CHECKING:
    from gecko.training.lexical import Ranked

DEPTH = 32  # of each of the two rankings
WORDS = (5, 40)  # of a sentence that serves as a query
WEIGHTS = (0.0, 0.1, 0.2, 0.4, 0.8)  # of BM25's score, as a share of the query's best, beside the cosine
TEMPERATURE = 0.05  # of both sides
LISTED = 1000  # passages of a judged query to which BM25 gives a score
CHOICE, MODEL = "choice.json", "model"


@dataclass(frozen=True)
class Agreement:
    """How well cosine + weight · BM25 orders the candidates of judged queries, by weight: Spearman's correlation."""

    by_weight: dict[float, float]

    @property
    def weight(self) -> float:
        """Half of the best weight: queries that a teacher wrote share more words with their passage than asked ones do."""
        return max(self.by_weight, key=lambda weight: (self.by_weight[weight], -weight)) / 2 if self.by_weight else 0.0


@once
def make(context: Context) -> Path | None:
    """The folder of the start model that has learned from the corpus's words; none where they add nothing."""

    def fit(path: Path) -> None:
        learn(
            path,
            context.passages,
            np.asarray(vectors(context)),
            context.models.start,
            context.run.read(SELECT.name, Example),
            context.config,
            context.ui,
        )

    return learned(build_file(context.run, LEXICAL.name, LEXICAL.parts(context), "learned", fit))


def learned(folder: Path) -> Path | None:
    """The model in a folder that :func:`learn` wrote; none: it found that words add nothing."""
    return folder / MODEL if (folder / MODEL).exists() else None


def learn(
    folder: Path,
    passages: Sequence[Passage],
    found: np.ndarray,
    start: "Encoder",
    judged: Sequence[Example],
    config: RunConfig,
    ui: Ui,
) -> None:
    """Choose what words are worth, teach it, and write both into a folder.

    Args:
        folder: it is made; ``choice.json`` has the weight and how it was chosen, and ``model`` is there unless it is 0.
        passages: the corpus.
        found: float32 (passages, D), their vectors by the start model.
        start: the start model.
        judged: rows whose candidates the teacher has put in order.
        config: the run's settings.
        ui: where sentences and progress go.
    """
    from gecko.encoder.build import load_backbone
    from gecko.training.lexical import learn_ranking
    from gecko.training.trainer import widths

    settings = config.lexical
    words = Bm25(passages)
    agreement = agree(passages, found, start, judged, words) if settings.weight is None else Agreement({})
    weight = agreement.weight if settings.weight is None else settings.weight
    folder.mkdir(parents=True)
    choice = {"weight": weight, "agreement": {f"{key:g}": round(rho, 4) for key, rho in agreement.by_weight.items()}}
    write_json(folder / CHOICE, choice)
    if not weight:
        no_better = "beside the start model it agrees with the teacher no better than the start model alone"
        why = "lexical.weight = 0" if settings.weight == 0 else no_better
        ui.say(f"BM25's order is not learned: {why}")
        return
    rows = rank_sentences(passages, found, start, words, settings.sentences, weight, config.seed)
    if not rows.texts:
        ui.say(f"no passage has a sentence of {WORDS[0]} to {WORDS[1]} words: BM25's order is not learned")
        return
    ui.say(f"the start model learns BM25's order (weight {weight:g}) from {len(rows.texts):,} sentences of the corpus")
    with quiet_libraries():
        model = load_backbone(resolve_model(config.backbone), config.train.backbone, config.seed)
        learn_ranking(
            model,
            found,
            rows,
            dims=widths(model, config.train),
            temperature=TEMPERATURE,
            learning_rate=settings.learning_rate,
            bf16=config.train.bf16,
            seed=config.seed,
            ui=ui,
        )
        model.save(str(folder / MODEL), create_model_card=False)


def agree(
    passages: Sequence[Passage], found: np.ndarray, start: "Encoder", judged: Sequence[Example], words: Bm25
) -> Agreement:
    """How well each weight orders the candidates of judged rows as the teacher did, in the mean over the rows.

    A row needs three candidates of the corpus or more, in an order of the teacher's that is not all ties. ``found``
    (passages, D) are the passages' vectors, and ``words`` is their index.
    """
    from scipy.stats import spearmanr

    place = {passage.id: at for at, passage in enumerate(passages)}
    rows: list[tuple[Example, list[int], list[float]]] = []
    for row in judged:
        known = {place[key]: fused for key, fused in zip(row.candidates, row.fused, strict=True) if key in place}
        if len(known) > 2 and len({*known.values()}) > 1:
            rows.append((row, list(known), list(known.values())))
    if not rows:
        return Agreement({})
    asked = start.queries([row.query for row, _, _ in rows], [row.task for row, _, _ in rows])
    by_words = _shares(words, place, [row.query for row, _, _ in rows], LISTED)
    correlations: dict[float, list[float]] = {weight: [] for weight in WEIGHTS}
    for vector, listed, (_, candidates, fused) in zip(asked, by_words, rows, strict=True):
        cosines, lexical = found[candidates] @ vector, np.array([listed.get(at, 0.0) for at in candidates])
        for weight, values in correlations.items():
            values.append(float(spearmanr(cosines + weight * lexical, fused).statistic))
    return Agreement({weight: float(np.nanmean(values)) for weight, values in correlations.items()})


def rank_sentences(
    passages: Sequence[Passage],
    found: np.ndarray,
    start: "Encoder",
    words: Bm25,
    count: int,
    weight: float,
    seed: int,
) -> "Ranked":
    """Sentences of the corpus, each with the passages that words or vectors find for it, without its own.

    Two rankings that agree, or a small corpus, leave places; other passages, drawn at random, fill them as far as there are
    any. ``found`` (passages, D) are the passages' vectors, and ``words`` is their index.
    """
    from gecko.training.lexical import Ranked

    rng = np.random.default_rng(seed)
    ends = np.cumsum([len(_sentences(passage)) for passage in passages])
    drawn = rng.permutation(ends[-1] if len(ends) else 0)[:count]
    own = np.searchsorted(ends, drawn, side="right")
    chosen = [(_sentences(passages[at])[place - ends[at]], at) for place, at in zip(drawn, own.tolist(), strict=True)]
    size = min(2 * DEPTH, len(passages) - 1)
    candidates = np.empty((len(chosen), size), np.int64)
    targets = np.empty(candidates.shape, np.float32)
    texts = [text for text, _ in chosen]
    if not chosen:
        return Ranked(texts, candidates, targets)
    asked = start.queries(texts, DEFAULT_TASK)
    nearest, _ = top_k(asked, found, DEPTH + 1)
    by_words = _shares(words, {passage.id: at for at, passage in enumerate(passages)}, texts, DEPTH + 1)
    for row, (_, own) in enumerate(chosen):
        listed = {at: share for at, share in by_words[row].items() if at != own}
        near = [at for at in nearest[row].tolist() if at != own]
        others = [at for at in rng.permutation(len(passages))[: 2 * size + 1].tolist() if at != own]
        candidates[row] = list(dict.fromkeys([*list(listed)[:DEPTH], *near[:DEPTH], *others]))[:size]
        lexical = np.array([listed.get(at, 0.0) for at in candidates[row].tolist()])
        targets[row] = (found[candidates[row]] @ asked[row] + weight * lexical) / TEMPERATURE
    before = native_prompt(start.model.prompts, "query") if start.form == "native" else ""
    return Ranked([before + render_query(text, DEFAULT_TASK, start.form) for text in texts], candidates, targets)


def count_sentences(passages: Sequence[Passage], most: int) -> int:
    """How many of at most so many sentences the passages have."""
    return sum(1 for _ in islice(chain.from_iterable(map(_sentences, passages)), most))


def _sentences(passage: Passage) -> list[str]:
    """Those of its text that are neither too short nor too long to serve as a query."""
    parts = re.split(r"(?<=[.!?])\s+", passage.text.replace("\n", " "))
    return [text for text in parts if WORDS[0] <= len(text.split()) <= WORDS[1]]


def _shares(words: Bm25, place: dict[str, int], texts: Sequence[str], k: int) -> list[dict[int, float]]:
    """Of each text BM25's first k passages, by place, best first: scores as shares of the best."""
    run = words.ranked([(str(row), text) for row, text in enumerate(texts)], k)
    shares = []
    for found in run.values():
        best = next(iter(found.values()), 0.0)
        shares.append({place[key]: score / best for key, score in found.items()})
    return shares


LEXICAL = Stage(
    name="lexical",
    version=1,
    make=make,
    reads={"passages": INGEST, "rows": SELECT},
    settings={
        "settings": section("lexical"),
        "widths": section("train", only={"matryoshka", "dims"}),
        "seed": value("seed"),
    },
    depends=lambda context: {"start model": context.models.start_identity},
    command="train",
    applies=lambda config: config.lexical.sentences > 0,
)
