"""Small texts in two scripts, with words that share letters and signs."""

import random

ENGLISH, UKRAINIAN, FRENCH = (
    text.split()
    for text in (
        "the cat saw a model of the café on the mat , and – the dog said : hello there , cat .",
        "кіт сидить на килимі , а пес бачить кота й сказав : добрий день – « кіт » ґанок .",
        "le chat était là , où la mère de l'élève a été : quelle journée , le café « fermé » !",
    )
)


def documents(words: list[str], *, number: int = 40, seed: int = 0) -> list[str]:
    """Words drawn at random, 25 a document."""
    generator = random.Random(seed)
    return [" ".join(generator.choices(words, k=25)) for _ in range(number)]
