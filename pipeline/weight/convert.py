"""The source article's KL weight in our units, and back.

The article averages the reconstruction over the pixels of a batch of B images but sums the KL over the batch, and
multiplies that by its weight w. Multiplied by 784, its loss is `reconstruction + β · kl` in nats per image, with
β = w · 784 · B.
"""

from pipeline.data.splits import PIXELS


def from_article_weight(weight: float, batch_size: int) -> float:
    """β of an article weight w: β = w · 784 · B.

    >>> round(from_article_weight(1e-5, 128), 2)
    1.0
    """
    return weight * PIXELS * batch_size


def to_article_weight(kl_weight: float, batch_size: int) -> float:
    """The article weight w of a β: w = β / (784 · B).

    >>> to_article_weight(100_352, 128)
    1.0
    """
    return kl_weight / (PIXELS * batch_size)
