"""`cvae weight`: the source article's KL weight as β, and back."""

from typing import Annotated

import typer

from pipeline.base.errors import UserError


def weight(
    article: Annotated[float | None, typer.Option(metavar="W", help="a weight as the article writes it")] = None,
    beta: Annotated[float | None, typer.Option(metavar="B", help="objective.kl_weight of params.yaml")] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="the batch size that it is used with")] = 128,
) -> None:
    """Convert the source article's KL weight to β, or back.

    \b
    cvae weight --article 1e-5 --batch-size 128
    cvae weight --beta 0.3 --batch-size 128
    """
    if (article is None) == (beta is None):
        raise UserError("give one of --article and --beta; see `cvae weight --help`")
    given = beta if article is None else article
    if given is None or not 0 <= given < float("inf"):
        raise UserError(f"a weight must be a finite number of at least 0, not {given}")

    from pipeline.weight.convert import from_article_weight, to_article_weight

    if article is None:
        beta, article = given, to_article_weight(given, batch_size)
        print(f"w = {article:.6g}   (the source article's weight)")
    else:
        beta = from_article_weight(given, batch_size)
        print(f"β = {_number(beta)}   (objective.kl_weight)")
    print(
        f"The article averages the reconstruction over 784 pixels × {batch_size} images, but sums the KL over the "
        f"batch. So its w = {article:.4g} weighs the KL like β = w · 784 · {batch_size} = {_number(beta)} in nats per "
        "image, where β = 1 is the evidence lower bound."
    )


def _number(beta: float) -> str:
    return f"{beta:,.2f}" if beta >= 0.1 else f"{beta:.4g}"
