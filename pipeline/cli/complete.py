"""`cvae complete`: completions of a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.base.errors import UserError
from pipeline.base.paths import COMPLETER, JUDGE
from pipeline.cli.options import Labels, Model, Scale, Seed, in_rows, model_file, show, where_to

if TYPE_CHECKING:
    from torch import Tensor

PICTURE = "a picture of one digit; it is scaled to 28 × 28 pixels"
MASK = (
    "what is hidden: top, bottom, left, right, top-left …, all-but-top-left …, block (a place that the seed chooses), "
    "or a picture that is white where pixels are hidden"
)
OUT = ".png: the visible part, then the completions"
FAINTEST = 0.05  # how much of the way from black to white ink must differ from the ground


def complete(
    picture: Annotated[Path, typer.Argument(metavar="INPUT", help=PICTURE)],
    mask: Annotated[str, typer.Option(help=MASK)],
    digit: Annotated[int | None, typer.Option(min=0, max=9, metavar="D", help="complete it as this digit")] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="completions")] = 8,
    seed: Seed = 0,
    model: Model = str(COMPLETER),
    out: Annotated[Path | None, typer.Option(metavar="FILE", help=OUT)] = None,
    scale: Scale = None,
) -> None:
    """Complete the hidden part of a picture.

    The most likely completions come first.

    \b
    cvae complete INPUT.png --mask top --count 8 --out completions.png
    cvae complete INPUT.png --mask all-but-bottom-left --digit 3
    cvae complete INPUT.png --mask MASK.png
    cvae complete INPUT.png --mask top --model runs:/RUN_ID
    """
    out = where_to(out, "completions.png", ".png")

    import torch

    from pipeline.completion import model as completion
    from pipeline.completion.views import veiled
    from pipeline.show import pictures
    from pipeline.stages.saved import load_completer, load_judges

    image, visible = read_input(picture), read_mask(mask, seed)
    completer, reader = load_completer(model_file(model)), load_judges(JUDGE).tolerant
    if not completer.latent_size:
        raise UserError(f"{model} is the deterministic network, which has one answer: name {COMPLETER}")
    found = completion.complete(completer, image, visible, digit, count, seed)
    read_as = reader.read(found.images.unsqueeze(1)).labels.tolist()
    found_as = list(zip(read_as, found.log_likelihood.tolist(), strict=True))
    cells = torch.cat([veiled(image, visible)[None], found.images]).numpy()
    if out is None:
        show(cells[None], Labels((), ["seen", *map(str, range(1, count + 1))]))
    else:
        ink, above = in_rows(cells, ["seen", *(f"{label}  {score:.1f}" for label, score in found_as)])
        pictures.save_png(out, pictures.picture(ink, pictures.fitting_scale(len(ink), len(ink[0]), scale), (), above))
    as_digit = "" if digit is None else f", as a {digit}"
    print(f"{'' if out is None else f'{out}: '}{count:,} completions, the most likely first{as_digit}")
    for rank, (label, score) in enumerate(found_as, 1):
        print(f"{rank:>4}  read as {label}  log p(hidden∣seen) {score:.1f} nats")


def read_input(path: Path) -> "Tensor":
    """The picture (28, 28) to complete, 1 where there is ink. What had to be done to it is said.

    The ground is the usual grey of the border, and ink is what differs from it by more than half of what differs most.
    Raises UserError where nothing differs.
    """
    import torch

    from pipeline.show.reading import read_grey

    grey, done = read_grey(path)
    image = torch.from_numpy(grey)
    ink = image - torch.cat([image[0], image[-1], image[:, 0], image[:, -1]]).median()
    if -ink.min() > ink.max():
        ink = -ink
        done.append("dark ink on a light ground, inverted")
    if ink.max() < FAINTEST:
        raise UserError(f"{path} shows nothing: all its pixels are alike")
    if done:
        print(f"{path}: {'; '.join(done)}")
    return (ink / ink.max() >= 0.5).float()


def read_mask(name: str, seed: int) -> "Tensor":
    """What is visible (28, 28) bool under a mask's name or file; `seed` chooses where a block is.

    Raises UserError where everything or nothing is visible.
    """
    import torch

    from pipeline.completion.masks import named_masks, random_block
    from pipeline.show.reading import read_grey

    masks = named_masks() | {"block": random_block(seed)}
    if name in masks:
        return masks[name]
    if not Path(name).exists():
        raise UserError(f"--mask {name} is no file and none of {', '.join(masks)}")
    visible = torch.from_numpy(read_grey(Path(name)).grey < 0.5)
    if visible.all() or not visible.any():
        raise UserError(f"--mask {name} hides {'nothing' if visible.all() else 'everything'}: white is what is hidden")
    return visible
