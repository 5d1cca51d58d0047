import random
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from gecko.encoder import Encoder, load_encoder

WORDS = ["the", "red", "cat", "sleeps", "in", "a", "big", "house", "zebra", "and", "fish"]


def sentences(count: int, longest: int = 70) -> list[str]:
    generator = random.Random(1)
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(1, longest))) for _ in range(count)]
    return [*texts, "", texts[0]]


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Encoder:
    return load_encoder(str(tiny_model), bf16=False)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> SentenceTransformer:
    return SentenceTransformer(str(tiny_model), device="cpu")


@pytest.fixture(scope="module")
def rows(model: SentenceTransformer) -> list[list[int]]:
    generator = random.Random(1)
    lengths = [1, 2, 5, 5, 48, 5, 17, 48, 2]
    return [[generator.randrange(5, len(model.tokenizer)) for _ in range(length)] for length in lengths]
