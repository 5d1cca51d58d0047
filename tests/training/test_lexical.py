from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import softmax

from gecko.core.errors import TrainingError
from gecko.encoder import load_encoder
from gecko.training.lexical import Ranked, divergence, learn_ranking


def test_the_divergence_is_the_slow_one() -> None:
    rng = np.random.default_rng(0)
    queries, passages = rng.normal(size=(3, 6)), rng.normal(size=(3, 4, 6))
    shares = rng.dirichlet(np.ones(4), size=3)
    expected = []
    for dim in (6, 2):
        for query, row, wanted in zip(queries, passages, shares, strict=True):
            q = query[:dim] / np.linalg.norm(query[:dim])
            cosines = np.array([passage[:dim] @ q / np.linalg.norm(passage[:dim]) for passage in row]) / 0.1
            mine = np.exp(cosines) / np.exp(cosines).sum()
            expected.append(sum(share * np.log(share / got) for share, got in zip(wanted, mine, strict=True)))
    found = divergence(torch.tensor(queries), torch.tensor(passages), torch.tensor(shares), (6, 2), 0.1)
    assert found.item() == pytest.approx(np.mean(expected))


def learned(tiny_model: Path, seed: int = 0, rows: int = 96) -> tuple[SentenceTransformer, float, float]:
    """A model that learned orders drawn at random, and its divergence before and after, over all rows."""
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(["red", "cat", "dog", "fish", "river", "tree"], 4)) for _ in range(rows)]
    vectors = load_encoder(str(tiny_model), bf16=False).queries(texts)
    candidates = np.stack([rng.permutation(rows)[:8] for _ in range(rows)])
    targets = (np.eye(8)[rng.integers(0, 8, rows)] * 3).astype(np.float32)
    model = SentenceTransformer(str(tiny_model), device="cpu")

    def measured() -> float:
        asked = torch.from_numpy(model.encode(texts))
        shares = softmax(torch.from_numpy(targets), dim=1)
        return divergence(asked, torch.from_numpy(vectors[candidates]), shares, (32,), 0.05).item()

    before = measured()
    given = Ranked(texts, candidates, targets)
    learn_ranking(model, vectors, given, dims=(32, 16), temperature=0.05, learning_rate=1e-3, bf16=None, seed=seed)
    return model, before, measured()


def test_a_ranking_is_learned_and_the_random_state_is_left(tiny_model: Path) -> None:
    state = torch.random.get_rng_state()
    _, before, after = learned(tiny_model)
    assert after < 0.9 * before
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_same_seed_gives_the_same_weights(tiny_model: Path) -> None:
    one, two, other = (learned(tiny_model, seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_vectors_of_another_width_are_refused(tiny_model: Path) -> None:
    rows = Ranked(["a cat"], np.array([[0, 1]]), np.zeros((1, 2), np.float32))
    model = SentenceTransformer(str(tiny_model), device="cpu")
    with pytest.raises(TrainingError, match="vectors have 16 numbers and the model has 32; embed anew"):
        learn_ranking(
            model,
            np.zeros((2, 16), np.float32),
            rows,
            dims=(32,),
            temperature=0.05,
            learning_rate=1e-3,
            bf16=None,
            seed=0,
        )
