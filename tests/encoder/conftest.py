import random

WORDS = ["the", "red", "cat", "sleeps", "in", "a", "big", "house", "zebra", "and", "fish"]


def sentences(count: int, longest: int = 70) -> list[str]:
    generator = random.Random(1)
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(1, longest))) for _ in range(count)]
    return [*texts, "", texts[0]]
