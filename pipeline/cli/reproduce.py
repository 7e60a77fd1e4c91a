"""`cvae reproduce`: the source article's experiment, with its figures in reports/article/ and what they say.

It trains 19 models for 3 epochs. docs/article.md says how long that takes.
"""

from typing import Annotated, Literal

import typer

from pipeline.base.errors import UserError
from pipeline.base.paths import JUDGE, PREPARED


def reproduce(
    what: Annotated[Literal["article"], typer.Argument(help="article: the collapse and its remedy")],  # noqa: ARG001
    epochs: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="of each training")] = 3,
) -> None:
    """Train the source article's model at its KL weights.

    Also with every conditioning, with and without the label in its encoder. The figures, on validation, go to
    reports/article.

    \b
    cvae reproduce article
    cvae reproduce article --epochs 20
    """
    for path, command in ((PREPARED, "prepare"), (JUDGE, "judge")):
        if not path.exists():
            raise UserError(f"{path} not found: run `dvc repro {command}` first")
    from pipeline.cli.article import run

    run(epochs)
