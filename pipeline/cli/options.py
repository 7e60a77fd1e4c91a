"""What several commands have in common: options, checks, and how pictures are delivered."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.base.paths import MODEL, SMALL

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pipeline.model.samples import Sampler
    from pipeline.stages.saved import Saved

WORKSPACE = "workspace"
ROW = 10  # pictures of a row
FRAME_MILLISECONDS = 60

Seed = Annotated[int, typer.Option(min=0, max=2**63 - 2, metavar="N", help="the same seed gives the same pictures")]
SamplerName = Annotated[
    Literal["fitted", "prior"] | None, typer.Option(help="where z comes from; if not given, as in params.yaml")
]
Scale = Annotated[
    int | None, typer.Option(min=1, max=32, metavar="N", help="how wide a pixel is drawn in --out  [default: 4]")
]
Model = Annotated[str, typer.Option(metavar="MODEL", help="a safetensors file, or runs:/RUN_ID of MLflow")]


class Labels(NamedTuple):
    """What stands beside the rows and above the columns of images, and what becomes of a row that is too wide.

    too_wide: on a terminal, a row is cut at its end, thinned out evenly, or goes on below (wrap). back: whether an
    animation returns to its start.
    """

    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    too_wide: Literal["cut", "thin", "wrap"] = "wrap"
    back: bool = False


def digits_of(text: str) -> list[int]:
    """`8`, `1,7` and `0-9` as digits, in the given order. Raises UserError for anything else."""
    parts = text.split(",")
    if not all(re.fullmatch("[0-9](-[0-9])?", part) and part[0] <= part[-1] for part in parts):
        raise UserError(f"{text!r} names no digits: give one as 8, some as 1,7, a range as 0-9")
    return list(dict.fromkeys(digit for part in parts for digit in range(int(part[0]), int(part[-1]) + 1)))


def where_to(out: Path | None, usual: str, *suffixes: str) -> Path | None:
    """The file to write: --out, or `usual`; None draws on the terminal. Raises UserError for a bad --out."""
    if out is None:
        return None if sys.stdout.isatty() else Path(usual)
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

    return download_model(name)


def of_revision(name: str, path: Path) -> dict[str, Any]:
    """A JSON or YAML file of a revision; empty where there is none, in git or in DVC's cache. Raises UserError."""
    from dvc.api import read
    from dvc.exceptions import DvcException
    from dvc.scm import RevError
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = read(str(path), rev=None if name == WORKSPACE else name)
        content = json.loads(text) if path.suffix == ".json" else YAML(typ="safe", pure=True).load(text)
    except RevError:
        raise UserError(f"{name} is no commit, branch or experiment: `dvc exp list` names experiments") from None
    except (DvcException, OSError, ValueError, YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def open_model(name: str, sampler: "Sampler | None") -> "tuple[Saved, Sampler]":
    """The model of --model, and the sampler of --sampler or of params.yaml."""
    from pipeline.base.params import load
    from pipeline.model.samples import SampleParams
    from pipeline.stages.saved import load_cvae

    return load_cvae(model_file(name)), sampler or load(SampleParams, "sample").sampler


def in_rows(cells: "np.ndarray", captions: Sequence[str]) -> "tuple[np.ndarray, list[list[str]]]":
    """Pictures (N, ...) in rows of ten, (R, C, ...), filled up with black ones, and the captions of each row."""
    import numpy as np

    columns = min(len(cells), ROW)
    blank = -len(cells) % columns
    filled = np.concatenate([cells, np.zeros((blank, *cells.shape[1:]), cells.dtype)])
    texts = [*captions, *[""] * (len(filled) - len(captions))]
    above = [texts[start : start + columns] for start in range(0, len(texts), columns)]
    return filled.reshape(-1, columns, *cells.shape[1:]), above


def deliver(images: "Tensor", out: Path | None, said: str, scale: int | None, labels: Labels) -> None:
    """Shows images (R, C, 28, 28) in [0, 1] and says what they are.

    `out` is a .png (a sheet of R rows), a .gif (an animation of C frames), or None for the terminal.
    """
    import numpy as np

    from pipeline.show import pictures

    ink: np.ndarray = images.numpy()
    rows, columns = ink.shape[:2]
    if out is None:
        said += show(ink, labels)
    elif out.suffix == ".gif":
        cells, above = in_rows(ink, labels.rows)
        scale = pictures.fitting_scale(cells.shape[0] * cells.shape[1] * columns, 1, scale)
        frames = np.moveaxis(cells, 2, 0)
        order = [*frames, *frames[-2:0:-1]] if labels.back else [*frames]
        pictures.save_gif(out, [pictures.picture(frame, scale, (), above) for frame in order], FRAME_MILLISECONDS)
    else:
        scale = pictures.fitting_scale(rows, columns, scale)
        pictures.save_png(out, pictures.picture(ink, scale, labels.rows, [labels.columns]))
    console.say(said if out is None else f"{out}: {said}")


def show(ink: "np.ndarray", labels: Labels) -> str:
    """Draws images (R, C, 28, 28) on the terminal, as many as fit. Returns in words what did not."""
    import numpy as np

    from pipeline.show import pictures

    (rows, count), left, above, too_wide = ink.shape[:2], labels.rows, labels.columns, labels.too_wide
    fit = pictures.fitting(rows, count, left, above, too_wide == "wrap")
    if fit.rows < rows and too_wide == "cut" and left:  # digits side by side, fewer samples of each
        ink, rows, count, left, above, too_wide = ink.swapaxes(0, 1), count, rows, (), left, "wrap"
        fit = pictures.fitting(rows, count, left, above, wraps=True)
    columns = np.arange(count)
    if too_wide != "wrap":
        last = fit.columns if too_wide == "cut" else count
        columns = np.linspace(0, last - 1, fit.columns).round().astype(int)
        above = [above[place] for place in columns.tolist() if above]
    shown = pictures.screen(ink[: fit.rows, columns], fit, left[: fit.rows], above, pictures.has_colours())
    print(shown, flush=True)
    some = [(fit.rows, rows, "rows"), (len(columns), count, "in a row")]
    missing = " and ".join(f"{part} of {every} {what}" for part, every, what in some if part < every)
    return f"; {missing} are shown, a larger terminal or --out shows all" if missing else ""
