"""A cross-encoder behind a retriever: the first passages of its ranking in another order.

Whether a better retriever still helps behind a reranker is seen by reranking the start model's and the student's passages.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gecko.core.arguments import whole
from gecko.core.errors import ConfigError, NonFiniteError
from gecko.core.progress import Silent, Ui, quiet_libraries
from gecko.encoder.spec import refuse_pickles, resolve_model
from gecko.evaluation.beir import RetrievalSet
from gecko.evaluation.metrics import descending

BATCH = 32
_HEADS = ("ForSequenceClassification", "ForCausalLM")  # what gives a pair of texts a score


class Reranker:
    """A sentence-transformers CrossEncoder, a folder or ``hf:NAME``; a pair that two retrievers find is scored once.

    The first ``top`` passages of each query are put in order, and what follows them stays behind them. Raises
    ConfigError: ``top`` is below 2, or the model is no cross-encoder with one score.
    """

    def __init__(self, spec: str, top: int = 20, ui: Ui | None = None) -> None:
        if whole("--top", top) < 2:
            raise ConfigError(f"--top {top}: give at least 2; one passage has no order")
        self.top = top
        self._ui = ui or Silent()
        self._model = _load(spec)
        self._spec = spec
        self._known: dict[tuple[str, str, str], float] = {}

    def __call__(self, data: RetrievalSet, run: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """A ranking of a set (score by query id and passage id, best first) in the new order.

        Returns scores that fall with the place; equal scores of the cross-encoder keep the order. Raises NonFiniteError:
        a score is no number.
        """
        texts, by_id = dict(data.queries), {passage.id: passage for passage in data.passages}
        pairs = [(data.name, query, passage) for query, row in run.items() for passage in list(row)[: self.top]]
        new = [pair for pair in pairs if pair not in self._known]
        with self._ui.bar(f"reranking {data.name}", len(new), "pairs") as advance:
            for start in range(0, len(new), BATCH * 8):
                block = new[start : start + BATCH * 8]
                asked = [(texts[query], by_id[passage].content) for _, query, passage in block]
                scores = np.asarray(self._model.predict(asked, batch_size=BATCH, show_progress_bar=False), np.float64)
                if not np.isfinite(scores).all():
                    _, query, passage = block[int(np.argmin(np.isfinite(scores)))]
                    raise NonFiniteError(
                        f"reranker {self._spec} gives query {query} and passage {passage} of {data.name} a score that is no "
                        "number; its weights are at fault"
                    )
                self._known.update(zip(block, scores.tolist(), strict=True))
                advance(len(block))
        found = {}
        for query, row in run.items():
            first, rest = list(row)[: self.top], list(row)[self.top :]
            first.sort(key=lambda passage: -self._known[data.name, query, passage])
            found[query] = descending([*first, *rest])
        return found


def _load(spec: str) -> Any:
    """A CrossEncoder with one output. Raises ConfigError: it is another kind of model, or cannot be read."""
    from sentence_transformers.cross_encoder import CrossEncoder
    from transformers import AutoConfig

    target = resolve_model(spec)
    if Path(target).is_dir():
        refuse_pickles(Path(target), spec)
    try:
        with quiet_libraries():
            kinds = AutoConfig.from_pretrained(target).architectures or []
            if not any(kind.endswith(_HEADS) for kind in kinds):
                raise ConfigError(
                    f"--rerank {spec}: {', '.join(kinds) or 'the model'} scores no pair of texts; give a cross-encoder, say "
                    "one that recipes/cross_encoder.py trained"
                )
            model = CrossEncoder(target)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--rerank {spec} cannot be loaded ({error}); give a folder of a cross-encoder") from error
    if model.num_labels != 1:
        raise ConfigError(f"--rerank {spec} gives {model.num_labels} numbers a pair; give a model with one score")
    return model
