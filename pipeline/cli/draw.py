"""The commands that draw from a trained model: their arguments, their checks, and what they say.

Nothing heavy is imported before an argument has proved right.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.model.density import Density, Sampler
    from pipeline.stages.saved import Saved

MODEL = "models/cvae.safetensors"
COMPLETER = "models/completer.safetensors"
JUDGE = Path("models/judge.safetensors")
MOST_SAMPLES = 100_000
MOST_COMPLETIONS = 1000
MOST_STEPS = 1000
ROW = 10
STRIP = 10  # pictures of a strip where nobody says how many
FRAMES = 30  # … and of an animation
MILLISECONDS = 60  # a frame
BLOCK = "block"
SPREAD = 3.0  # how far a traversal goes from the prior's mean, in its standard deviations

EXAMPLES = {
    "sample": "cvae sample 8 --count 10 --seed 0 --out eights.png\ncvae sample 0-9 --count 12 --sampler prior\n"
    "cvae sample 1,7 --out sevens.npz\ncvae sample 0-9 --model runs:/RUN_ID",
    "interpolate": "cvae interpolate 3 8\ncvae interpolate 3 8 --count 4 --out way.png\n"
    "cvae interpolate 4 9 --seed 2 --out way.gif",
    "traverse": "cvae traverse 5\ncvae traverse 5 --dimension 2 --out fives.gif",
    "complete": "cvae complete INPUT.png --mask top --count 8 --out completions.png\n"
    "cvae complete INPUT.png --mask all-but-bottom-left --digit 3\ncvae complete INPUT.png --mask MASK.png\n"
    "cvae complete INPUT.png --mask top --model runs:/RUN_ID",
    "morph": "cvae morph\ncvae morph --count 6 --out styles.png\ncvae morph --seed 3 --out digits.gif",
}


def add_commands(commands: Any) -> None:
    """Adds every drawing command to an argparse's subparsers."""
    add = _command(commands, "sample", "draw digits from a trained model", sample)
    add.add_argument("digits", metavar="DIGITS", help="8, 1,7 or 0-9")
    _common(add, "samples of each digit (10)", 10)
    add.add_argument("--shown", choices=("mean", "draw"), help="expected pixels or a draw of them (params.yaml says)")
    add.add_argument("--out", type=Path, metavar="FILE", help=".png: one sheet; .npz: images (N, 28, 28) float32 in "
                     "[0, 1] and labels (N,) (drawn on a terminal; samples.png elsewhere)")  # fmt: skip

    add = _command(commands, "interpolate", "the way from one digit to another", interpolate)
    add.add_argument("first", metavar="FROM", help="a digit")
    add.add_argument("last", metavar="TO", help="a digit")
    _common(add, "ways, each between codes of its own (1)", 1)
    _moving(add, "interpolation.png")

    add = _command(commands, "traverse", "what the dimensions of the latent code do to a digit", traverse)
    add.add_argument("digit", metavar="DIGIT", help="a digit, drawn at the prior's mean")
    add.add_argument("--dimension", type=int, metavar="D", help="one latent dimension, from 0 (all, a row each)")
    _model(add)
    _moving(add, "traversal.png")

    add = _command(commands, "morph", "one style in all ten digits", morph)
    _common(add, "styles, a row each (1)", 1)
    _moving(add, "morph.png")

    add = _command(commands, "complete", "what the hidden part of a picture could be, the likeliest first", complete)
    add.add_argument("input", type=Path, metavar="INPUT", help="a picture of 28 × 28 pixels, light ink on black or "
                     "dark ink on white; thresholded at half grey")  # fmt: skip
    add.add_argument("--mask", required=True, metavar="MASK", help="what is hidden: top, bottom, left, right, "
                     "top-left …, all-but-top-left …, block (somewhere, as the seed has it), or a picture that is "
                     "white where pixels are hidden")  # fmt: skip
    add.add_argument("--digit", metavar="D", help="insist that it is this digit")
    add.add_argument("--count", type=int, default=8, metavar="N", help="completions (8)")
    add.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed draws the same completions (0)")
    _model(add, COMPLETER)
    add.add_argument("--judge", type=Path, default=JUDGE, metavar="FILE", help=f"who reads them ({JUDGE})")
    add.add_argument("--out", type=Path, metavar="FILE", help=".png: what is seen, then the completions "
                     "(drawn on a terminal; completions.png elsewhere)")  # fmt: skip


def _command(
    commands: Any, name: str, words: str, act: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    examples = "examples:\n  " + EXAMPLES[name].replace("\n", "\n  ")
    add: argparse.ArgumentParser = commands.add_parser(
        name,
        help=words,
        description=f"{words[0].upper()}{words[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add.set_defaults(act=act)
    return add


def _common(add: argparse.ArgumentParser, of_count: str, count: int) -> None:
    add.add_argument("--count", type=int, default=count, metavar="N", help=of_count)
    add.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed draws the same pictures (0)")
    add.add_argument("--sampler", choices=("fitted", "prior"), help="where z comes from (params.yaml says)")
    _model(add)


def _model(add: argparse.ArgumentParser, usual: str = MODEL) -> None:
    add.add_argument(
        "--model", default=usual, metavar="MODEL", help=f"a safetensors file, or runs:/RUN_ID of MLflow ({usual})"
    )


def _moving(add: argparse.ArgumentParser, usual: str) -> None:
    add.add_argument("--steps", type=int, metavar="N", help=f"pictures on the way ({STRIP}; {FRAMES} in a .gif)")
    add.add_argument("--out", type=Path, metavar="FILE", help=".png: a strip; .gif: an animation "
                     f"(drawn on a terminal; {usual} elsewhere)")  # fmt: skip
    add.set_defaults(usual=usual)


# The commands


def sample(arguments: argparse.Namespace) -> None:
    """Some of each digit."""
    digits = digits_of(arguments.digits)
    check_draw(arguments, len(digits))
    out = where_to(arguments.out, "samples.png", (".png", ".npz"))

    import torch

    from pipeline.base.params import load
    from pipeline.model.density import SampleParams, draw
    from pipeline.show import pictures

    shown = arguments.shown or load(SampleParams, "sample").shown
    saved, density, sampler = open_model(arguments)
    labels = torch.tensor(digits).repeat_interleave(arguments.count)
    images = draw(saved.model, density, labels, sampler, arguments.seed, shown)
    # A row a digit where there are several; one digit alone fills rows of ten.
    columns = arguments.count if len(digits) > 1 else min(arguments.count, ROW)
    said = f"{len(images):,} samples of {arguments.digits}, {sampler} sampler, seed {arguments.seed}"
    if out is not None and out.suffix == ".npz":
        pictures.save_npz(out, {"images": images.squeeze(1).numpy(), "labels": labels.numpy()})
        print(f"{out}: {said}")
    else:
        blank = torch.zeros(-len(images) % columns, *images.shape[1:])
        rows = torch.cat([images, blank]).view(-1, columns, *images.shape[2:])
        deliver(rows, out, said)


def interpolate(arguments: argparse.Namespace) -> None:
    """From one digit to another."""
    digits = digit_of(arguments.first), digit_of(arguments.last)
    out, steps = where_to(arguments.out, arguments.usual, (".png", ".gif")), steps_of(arguments)
    check_draw(arguments, steps)

    import torch

    from pipeline.model import density as numbers

    saved, density, sampler = open_model(arguments)
    # Two seeds: from 3 to 3 is a way between two threes.
    first, last = (
        numbers.codes(saved.model, density, torch.full((arguments.count,), digit), sampler, seed)
        for digit, seed in zip(digits, (arguments.seed, arguments.seed + 1), strict=True)
    )
    images = numbers.interpolate(saved.model, first, last, digits, steps)
    deliver(images, out, f"from {digits[0]} to {digits[1]}, {sampler} sampler, seed {arguments.seed}", back=True)


def traverse(arguments: argparse.Namespace) -> None:
    """One digit along latent dimensions."""
    digit = digit_of(arguments.digit)
    out, steps = where_to(arguments.out, arguments.usual, (".png", ".gif")), steps_of(arguments)

    import torch

    from pipeline.model import density as numbers
    from pipeline.stages.saved import load_cvae

    model = load_cvae(model_file(arguments.model)).model
    size, one = model.latent_size, arguments.dimension
    if one is not None and not 0 <= one < size:
        raise UserError(f"--dimension must be from 0 to {size - 1} for this model, not {one}")
    values = torch.linspace(-SPREAD, SPREAD, steps)
    dimensions = range(size) if one is None else [one]
    images = torch.stack([numbers.traverse(model, digit, dimension, values).squeeze(1) for dimension in dimensions])
    along = f"dimension {one}" if one is not None else f"each of {size} dimensions, a row each"
    deliver(images, out, f"{digit} along {along}, from −{SPREAD:g} to {SPREAD:g}", back=True)


def morph(arguments: argparse.Namespace) -> None:
    """One code under all labels."""
    out = where_to(arguments.out, arguments.usual, (".png", ".gif"))
    animated = out is not None and out.suffix == ".gif"
    steps = max(steps_of(arguments) // 10, 1) if animated else 1
    check_draw(arguments, 10 * steps)
    if arguments.steps is not None and not animated:
        raise UserError("--steps is for a .gif: the strip holds the ten digits")

    from pipeline.model import density as numbers

    saved, density, sampler = open_model(arguments)
    z = numbers.styles(saved.model, density, arguments.count, sampler, arguments.seed)
    images = numbers.morph(saved.model, z, steps)
    deliver(images, out, f"one style a row in all ten digits, {sampler} sampler, seed {arguments.seed}")


def complete(arguments: argparse.Namespace) -> None:
    """The rest of a picture."""
    check_draw(arguments, MOST_SAMPLES // MOST_COMPLETIONS)
    digit = None if arguments.digit is None else digit_of(arguments.digit)
    out = where_to(arguments.out, "completions.png", (".png",))

    import torch

    from pipeline.completion import model as completion
    from pipeline.measure import judge
    from pipeline.show import pictures
    from pipeline.stages.saved import load_completer, load_judge

    image = read_input(arguments.input)
    visible = read_mask(arguments.mask, arguments.seed)
    model, reader = load_completer(model_file(arguments.model)), load_judge(arguments.judge)
    if not model.latent_size:
        raise UserError(f"{arguments.model} is the deterministic network, which has one answer: name {COMPLETER}")
    found = completion.complete(model, image, visible, digit, arguments.count, arguments.seed)
    read_as = judge.read(reader, found.images.unsqueeze(1)).labels.tolist()
    cells = torch.cat([completion.seen_part(image, visible)[None], found.images])[None]
    captions = [f"{label}  {score:.1f}" for label, score in zip(read_as, found.log_likelihood.tolist(), strict=True)]
    if out is None:
        pictures.show(cells.numpy())
    else:
        pictures.save_png(out, pictures.captioned(cells[0].numpy(), ["seen", *captions]))
    insisted = "" if digit is None else f", a {digit} insisted on"
    print(f"{'' if out is None else f'{out}: '}{arguments.count:,} completions, the likeliest first{insisted}")
    for rank, (label, score) in enumerate(zip(read_as, found.log_likelihood.tolist(), strict=True), 1):
        print(f"{rank:>4}  read as {label}  log p(hidden∣seen) {score:.1f} nats")


def read_input(path: Path) -> "Tensor":
    """The picture (28, 28) to complete, 1 where there is ink; says what was done to it."""
    import torch

    from pipeline.data.splits import SIDE
    from pipeline.show.pictures import read_grey

    grey, notes = read_grey(path, SIDE)
    edge = [*grey[0], *grey[-1], *grey[:, 0], *grey[:, -1]]
    if sum(edge) / len(edge) > 0.5:
        grey, notes = 1 - grey, [*notes, "dark ink on a light ground, inverted"]
    if notes:
        print(f"{path}: {'; '.join(notes)}")
    return torch.from_numpy(grey >= 0.5).float()


def read_mask(name: str, seed: int) -> "Tensor":
    """What is visible (28, 28) bool under a mask's name or file; `seed` chooses where a block lies.

    Raises UserError where that is all or nothing.
    """
    import torch

    from pipeline.completion import model as completion
    from pipeline.data.splits import SIDE
    from pipeline.show.pictures import read_grey

    masks = completion.named_masks()
    if name in masks:
        return masks[name]
    if name == BLOCK:
        return completion.random_block(seed)
    if not Path(name).exists():
        raise UserError(f"--mask {name} is no file and none of {', '.join([*masks, BLOCK])}")
    grey, _ = read_grey(Path(name), SIDE)
    visible = torch.from_numpy(grey < 0.5)
    if visible.all() or not visible.any():
        what = "hides nothing: paint what is to be hidden white" if visible.all() else "hides everything"
        raise UserError(f"--mask {name} {what}")
    return visible


# What they share


def digits_of(text: str) -> list[int]:
    """`8`, `1,7` and `0-9` as digits, in the order asked."""
    digits: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last) if dash else (first, first)
        if not all(len(end) == 1 and end in "0123456789" for end in ends) or ends[0] > ends[1]:
            raise UserError(f"{text!r} names no digits: give one as 8, some as 1,7, a range as 0-9")
        digits.extend(range(int(ends[0]), int(ends[1]) + 1))
    return list(dict.fromkeys(digits))


def digit_of(text: str) -> int:
    """One digit."""
    if len(text) != 1 or text not in "0123456789":
        raise UserError(f"{text!r} is no digit: give one from 0 to 9")
    return int(text)


def check_draw(arguments: argparse.Namespace, pictures_each: int) -> None:
    """Raises UserError for a count or a seed that can't be."""
    most = MOST_SAMPLES // pictures_each
    if not 1 <= arguments.count <= most:
        raise UserError(f"--count must be from 1 to {most:,}, not {arguments.count:,}")
    if not 0 <= arguments.seed < 2**63 - 1:
        raise UserError(f"--seed must be a whole number from 0 to 2^63 − 2, not {arguments.seed}")


def steps_of(arguments: argparse.Namespace) -> int:
    """How many pictures there are on the way: as asked, or as many as suit the file."""
    animated = arguments.out is not None and arguments.out.suffix == ".gif"
    steps: int = arguments.steps if arguments.steps is not None else FRAMES if animated else STRIP
    if not 2 <= steps <= MOST_STEPS:
        raise UserError(f"--steps must be from 2 to {MOST_STEPS:,}, not {steps:,}")
    return steps


def where_to(out: Path | None, usual: str, suffixes: tuple[str, ...]) -> Path | None:
    """The file to write; None for a terminal. Raises UserError for a suffix or a folder that can't be."""
    from pipeline.show.pictures import on_terminal

    if out is None:
        return None if on_terminal() else Path(usual)
    if out.suffix not in suffixes:
        raise UserError(f"--out {out} must end in {' or '.join(suffixes)}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file")
    return out


def model_file(name: str) -> Path:
    """The weights that `--model` names, fetched first where they are an MLflow run's."""
    if not name.startswith("runs:/"):
        return Path(name)
    from pipeline.tracking.package import download_model

    return download_model(name, Path())


def open_model(arguments: argparse.Namespace) -> "tuple[Saved, Density, Sampler]":
    """The model of `--model`, its density, and the sampler: of `--sampler`, or else of params.yaml."""
    from pipeline.base.params import load
    from pipeline.model.density import SampleParams
    from pipeline.stages.saved import load_cvae

    sampler = arguments.sampler or load(SampleParams, "sample").sampler
    saved = load_cvae(model_file(arguments.model))
    return saved, saved.density, sampler


def deliver(images: "Tensor", out: Path | None, said: str, back: bool = False) -> None:
    """Images (R, C, 28, 28) in [0, 1] as a sheet with R rows, as an animation of C frames (`back`: there and back
    again), or on the terminal."""
    import torch

    from pipeline.model.density import sheet
    from pipeline.show import pictures

    if out is None:
        pictures.show(images.numpy())
        print(said)
        return
    rows, columns = images.shape[:2]
    if out.suffix == ".gif":
        blank = images.new_zeros(-rows % min(rows, ROW), *images.shape[1:])
        whole = torch.cat([images, blank])
        order = [*range(columns), *(range(columns - 2, 0, -1) if back else ())]
        frames = [sheet(whole[:, at], min(rows, ROW)) for at in order]
        pictures.save_gif(out, frames, MILLISECONDS)
    else:
        pictures.save_png(out, sheet(images.flatten(0, 1), columns))
    print(f"{out}: {said}")
