"""What several commands have in common: options, checks, and how pictures are delivered."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.base.errors import UserError
from pipeline.base.paths import MODEL, SMALL

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.model.samples import Sampler
    from pipeline.stages.saved import Saved

ROW = 10  # pictures of a row
FRAME_MILLISECONDS = 60

Seed = Annotated[int, typer.Option(min=0, max=2**63 - 2, metavar="N", help="the same seed gives the same pictures")]
SamplerName = Annotated[
    Literal["fitted", "prior"] | None, typer.Option(help="where z comes from; if not given, as in params.yaml")
]
Model = Annotated[str, typer.Option(metavar="MODEL", help="a safetensors file, or runs:/RUN_ID of MLflow")]


def digits_of(text: str) -> list[int]:
    """`8`, `1,7` and `0-9` as digits, in the given order. Raises UserError for anything else."""
    parts = text.split(",")
    if not all(re.fullmatch("[0-9](-[0-9])?", part) and part[0] <= part[-1] for part in parts):
        raise UserError(f"{text!r} names no digits: give one as 8, some as 1,7, a range as 0-9")
    return list(dict.fromkeys(digit for part in parts for digit in range(int(part[0]), int(part[-1]) + 1)))


def where_to(out: Path | None, usual: str, *suffixes: str) -> Path | None:
    """The file to write: --out, or `usual`; None draws on the terminal. Raises UserError for a bad --out."""
    from pipeline.show.pictures import on_terminal

    if out is None:
        return None if on_terminal() else Path(usual)
    if out.suffix not in suffixes:
        raise UserError(f"--out {out} must end in {' or '.join(suffixes)}")
    return out


def model_file(name: str) -> Path:
    """The file that --model names; an MLflow run's model is fetched first. Before any training: the small model."""
    if name == str(MODEL) and not MODEL.exists() and SMALL.exists():
        print(f"{MODEL} does not exist yet: this is the small model {SMALL} (`dvc repro train` trains yours)")
        return SMALL
    if not name.startswith("runs:/"):
        return Path(name)
    from pipeline.tracking.package import download_model

    return download_model(name, Path())


def open_model(name: str, sampler: "Sampler | None") -> "tuple[Saved, Sampler]":
    """The model of --model, and the sampler of --sampler or of params.yaml."""
    from pipeline.base.params import load
    from pipeline.model.samples import SampleParams
    from pipeline.stages.saved import load_cvae

    return load_cvae(model_file(name)), sampler or load(SampleParams, "sample").sampler


def deliver(images: "Tensor", out: Path | None, said: str, back: bool = False) -> None:
    """Shows images (R, C, 28, 28) in [0, 1] and says what they are.

    `out` is a .png (a sheet of R rows), a .gif (an animation of C frames; with `back` it returns to its start), or
    None for the terminal.
    """
    import torch

    from pipeline.model.samples import sheet
    from pipeline.show import pictures

    if out is None:
        pictures.show(images.numpy())
    elif out.suffix == ".gif":
        wide = min(len(images), ROW)
        frames = torch.cat([images, images.new_zeros(-len(images) % wide, *images.shape[1:])]).unbind(1)
        order = [*frames, *frames[-2:0:-1]] if back else frames
        pictures.save_gif(out, [sheet(frame, wide) for frame in order], FRAME_MILLISECONDS)
    else:
        pictures.save_png(out, sheet(images.flatten(0, 1), images.shape[1]))
    print(said if out is None else f"{out}: {said}")
