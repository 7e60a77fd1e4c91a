"""The commands that draw samples from a trained model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.base.errors import UserError
from pipeline.base.paths import MODEL
from pipeline.cli import options

STRIP = 10  # pictures of a strip, if --steps is not given
FRAMES = 30  # the same of an animation
SPREAD = 3.0  # how far a traversal goes from the prior's mean, in its standard deviations
SHOWN = "expected pixels, or a draw of them; if not given, as in params.yaml"
SHEET = ".png: a sheet; .npz: images (N, 28, 28) float32 in [0, 1] and labels (N,)"
DIMENSION = "one latent dimension, from 0 (if not given: all, one per row)"

Steps = Annotated[
    int | None, typer.Option(min=2, max=100, metavar="N", help=f"pictures on the way ({STRIP}, or {FRAMES} in a .gif)")
]
Moving = Annotated[Path | None, typer.Option(metavar="FILE", help=".png: a strip; .gif: an animation")]


def sample(
    digits: Annotated[str, typer.Argument(help="8, 1,7 or 0-9")],
    count: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="samples of each digit")] = 10,
    seed: options.Seed = 0,
    sampler: options.SamplerName = None,
    model: options.Model = str(MODEL),
    shown: Annotated[Literal["mean", "draw"] | None, typer.Option(help=SHOWN)] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help=SHEET)] = None,
    scale: options.Scale = None,
) -> None:
    """Draw samples of digits from a trained model.

    \b
    cvae sample 8 --count 10 --seed 0 --out eights.png
    cvae sample 0-9 --count 12 --sampler prior
    cvae sample 1,7 --out sevens.npz
    cvae sample 0-9 --model runs:/RUN_ID
    """
    wanted = options.digits_of(digits)
    out = options.where_to(out, "samples.png", ".png", ".npz")

    import numpy as np
    import torch

    from pipeline.base.files import replacing
    from pipeline.base.params import load
    from pipeline.model import samples
    from pipeline.show.pictures import fitting

    shown = shown or load(samples.SampleParams, "sample").shown
    saved, sampler = options.open_model(model, sampler)
    labels = torch.tensor(wanted).repeat_interleave(count)
    images = samples.sample(saved.model, saved.density, labels, sampler, seed, shown)
    said = f"{len(images):,} samples of {digits}, {sampler} sampler, seed {seed}"
    if out is not None and out.suffix == ".npz":
        with replacing(out) as part, open(part, "wb") as file:
            np.savez_compressed(file, images=images.squeeze(1).numpy(), labels=labels.numpy())
        print(f"{out}: {said}")
        return
    # One row per digit. A single digit fills rows of ten, or of as many as fit the terminal.
    names = [str(digit) for digit in wanted] if len(wanted) > 1 else []
    fit = options.ROW if out is not None else fitting(1, options.ROW, (), (), wraps=False).columns
    columns = count if names else min(count, fit)
    blank = torch.zeros(-len(images) % columns, *images.shape[1:])
    rows = torch.cat([images, blank]).view(-1, columns, *images.shape[2:])
    options.deliver(rows, out, said, scale, options.Labels(names, too_wide="cut"))


def interpolate(
    first: Annotated[int, typer.Argument(min=0, max=9, metavar="FROM", help="a digit")],
    last: Annotated[int, typer.Argument(min=0, max=9, metavar="TO", help="a digit")],
    count: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="ways, each between latents of its own")] = 1,
    seed: options.Seed = 0,
    sampler: options.SamplerName = None,
    model: options.Model = str(MODEL),
    steps: Steps = None,
    out: Moving = None,
    scale: options.Scale = None,
) -> None:
    """Draw the way from one digit to another.

    \b
    cvae interpolate 3 8
    cvae interpolate 3 8 --count 4 --out way.png
    cvae interpolate 4 9 --seed 2 --out way.gif
    """
    out, steps = _moving(out, steps, "interpolation.png")

    import torch

    from pipeline.model import samples

    saved, sampler = options.open_model(model, sampler)
    # Two seeds: the way from 3 to 3 is between two threes.
    start, end = (
        samples.latents(saved.model, saved.density, torch.full((count,), digit), sampler, one)
        for digit, one in ((first, seed), (last, seed + 1))
    )
    images = samples.interpolate(saved.model, start, end, (first, last), steps)
    labels = options.Labels((), [str(first), *[""] * (steps - 2), str(last)], "thin", back=True)
    options.deliver(images, out, f"from {first} to {last}, {sampler} sampler, seed {seed}", scale, labels)


def traverse(
    digit: Annotated[int, typer.Argument(min=0, max=9, metavar="DIGIT", help="drawn from the prior's mean")],
    dimension: Annotated[int | None, typer.Option(metavar="D", help=DIMENSION)] = None,
    model: options.Model = str(MODEL),
    steps: Steps = None,
    out: Moving = None,
    scale: options.Scale = None,
) -> None:
    """Draw what each latent dimension does to a digit.

    \b
    cvae traverse 5
    cvae traverse 5 --dimension 2 --out fives.gif
    """
    out, steps = _moving(out, steps, "traversal.png")

    import torch

    from pipeline.model import samples
    from pipeline.stages.saved import load_cvae

    loaded = load_cvae(options.model_file(model)).model
    size = loaded.latent_size
    if dimension is not None and not 0 <= dimension < size:
        raise UserError(f"--dimension must be from 0 to {size - 1} for this model, not {dimension}")
    values = torch.linspace(-SPREAD, SPREAD, steps)
    dimensions = range(size) if dimension is None else [dimension]
    images = torch.stack([samples.traverse(loaded, digit, one, values).squeeze(1) for one in dimensions])
    along = f"each of {size} dimensions, one per row" if dimension is None else f"dimension {dimension}"
    names, reached = [f"z{one}" for one in dimensions], [f"{value:+.1f}" for value in values.tolist()]
    labels = options.Labels(names, reached, "thin", back=True)
    options.deliver(images, out, f"{digit} along {along}, from −{SPREAD:g} to {SPREAD:g}", scale, labels)


def morph(
    count: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="styles, one per row")] = 1,
    seed: options.Seed = 0,
    sampler: options.SamplerName = None,
    model: options.Model = str(MODEL),
    steps: Steps = None,
    out: Moving = None,
    scale: options.Scale = None,
) -> None:
    """Draw one style (one z) in all ten digits.

    \b
    cvae morph
    cvae morph --count 6 --out styles.png
    cvae morph --seed 3 --out digits.gif
    """
    out, steps = _moving(out, steps, "morph.png")

    from pipeline.model import samples

    saved, sampler = options.open_model(model, sampler)
    z = samples.styles(saved.model, saved.density, count, sampler, seed)
    each = max(steps // 10, 1)  # from each digit to the next
    images = samples.morph(saved.model, z, each)
    names = [str(place // each) if place % each == 0 else "" for place in range(10 * each)]
    said = f"one style per row in all ten digits, {sampler} sampler, seed {seed}"
    options.deliver(images, out, said, scale, options.Labels((), names))


def _moving(out: Path | None, steps: int | None, usual: str) -> tuple[Path | None, int]:
    """The file to write, and --steps, or as many as suit the file."""
    fitting = FRAMES if out is not None and out.suffix == ".gif" else STRIP
    return options.where_to(out, usual, ".png", ".gif"), steps or fitting
