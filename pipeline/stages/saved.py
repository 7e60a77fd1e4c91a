"""All that the project keeps as safetensors: splits, judges, CVAE, curve, completer, and unfinished trainings.

A file states its kind and its params in the metadata, and holds no code.

Each function imports what it needs itself, so that a stage depends only on the rooms of the functions that it uses.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.base.files import replacing, write_tensors

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor, nn

    from pipeline.completion.model import Completer
    from pipeline.data.splits import Split
    from pipeline.measure.judge import Judges
    from pipeline.model.cvae import CVAE
    from pipeline.model.density import Densities, Density
    from pipeline.model.multirate import MultiRate
    from pipeline.training.fit import Training

REMEDY = {  # of each kind of file
    "splits": "run `dvc repro prepare` first",
    "judge": "run `dvc repro judge`",
    "cvae": "train a model first, with `dvc repro train`",
    "curve": "run `dvc repro curve` first",
    "completion": "run `dvc repro completion/dvc.yaml` first",
    "training": "the training starts anew",
}

# What reading a file that is something else can raise; the last is of JSON with thousands of brackets.
GARBAGE = (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, UserError, RecursionError)

M = TypeVar("M", bound="nn.Module")
Groups = Mapping[str, "Mapping[str, Tensor]"]  # what a file holds: the tensor `model.mu` is `mu` of the group `model`


class Saved(NamedTuple):
    """A trained CVAE, the density fitted to its latents, and all params it was trained with, by section."""

    model: "CVAE"
    density: "Density"
    params: dict[str, Any]


def save_splits(path: Path, splits: "Mapping[str, Split]") -> None:
    """All splits in one file: `train.images`, `train.labels`, …, all uint8."""
    from safetensors.torch import save

    tensors = {f"{name}.images": split.images.contiguous() for name, split in splits.items()}
    tensors |= {f"{name}.labels": split.labels.byte() for name, split in splits.items()}
    with replacing(path) as part:
        part.write_bytes(save(tensors))  # its save_file would let nobody else read the file


def load_splits(path: Path, *names: str, device: "torch.device | str" = "cpu") -> "tuple[Split, ...]":
    """The named splits of a file, on the device; other splits are not read. Raises UserError."""
    from pipeline.data.splits import Split

    with _opened(path, "splits") as (file, _):
        return tuple(
            Split(file.get_tensor(f"{name}.images"), file.get_tensor(f"{name}.labels").long()).to(device)
            for name in names
        )


def save_judges(path: Path, judges: "Judges", params: Mapping[str, Any]) -> None:
    """The weights of both judges, and the params they were trained with (plain values)."""
    _write(path, "judge", {name: judge.state_dict() for name, judge in judges._asdict().items()}, params)


def load_judges(path: Path, device: "torch.device | str" = "cpu") -> "Judges":
    """Both judges, ready to read. Raises UserError."""
    from pipeline.measure.judge import Judges, build

    with _opened(path, "judge") as (file, _):
        groups = _groups(file)
        return Judges(*(_loaded(build(seed=0), groups[name], device) for name in Judges._fields))


def save_cvae(path: Path, model: "CVAE", density: "Density", params: Mapping[str, Any]) -> None:
    """Weights, fitted density and all params (plain values, by section)."""
    _write(path, "cvae", {"model": model.state_dict(), "density": density._asdict()}, params)


def load_cvae(path: Path, device: "torch.device | str" = "cpu") -> Saved:
    """The CVAE with its density and params. Raises UserError."""
    from pipeline.base.params import parse
    from pipeline.model.cvae import ModelParams, build, resolve
    from pipeline.model.density import Density
    from pipeline.training.objective import ObjectiveParams

    with _opened(path, "cvae") as (file, params):
        groups, architecture = _groups(file), resolve(parse(ModelParams, params["model"], "model"))
        aim = parse(ObjectiveParams, params["objective"], "objective")
        model = _loaded(build(architecture, 0, aim.likelihood, aim.sigma), groups["model"], device)
        density = Density(**{name: tensor.float().to(device) for name, tensor in groups["density"].items()})
        return Saved(model, density, params)


def params_of(path: Path, kind: str = "cvae") -> dict[str, Any]:
    """All params that a model was trained with, by section; a curve's also `data`, its hash. Raises UserError."""
    with _opened(path, kind) as (_, params):
        return params


def check_curve(path: Path, data: str | None, other: Path) -> None:
    """Raises UserError where a curve was trained on other data (a hash) than another file."""
    if params_of(path, "curve").get("data") != data:
        raise UserError(f"{path} is the curve of other data than {other}: run `dvc repro tune`")


def save_curve(path: Path, model: "MultiRate", params: Mapping[str, Any], densities: "Densities | None" = None) -> None:
    """The multi-rate CVAE's weights, densities along the weight, three sections of params, and the hash of the data."""
    _write(path, "curve", {"model": model.state_dict(), "density": densities.tensors() if densities else {}}, params)


def load_curve(path: Path) -> "tuple[MultiRate, Densities]":
    """The multi-rate CVAE, whose `at(kl_weight)` is an ordinary CVAE, and the densities fitted to its latents.

    Both on the CPU. Raises UserError.
    """
    from pipeline.base.params import parse
    from pipeline.model.cvae import ModelParams
    from pipeline.model.density import Densities, Density
    from pipeline.training.objective import ObjectiveParams
    from pipeline.weight.curve import WeightParams, build

    with _opened(path, "curve") as (file, params):
        aim = parse(ObjectiveParams, params["objective"], "objective")
        weight = parse(WeightParams, params["weight"], "weight")
        model, groups = build(parse(ModelParams, params["model"], "model"), aim, weight, seed=0), _groups(file)
        tensors = groups["density"]
        return _loaded(model, groups["model"], "cpu"), Densities(tensors.pop("kl_weights"), Density(**tensors))


def save_completer(path: Path, model: "Completer") -> None:
    """Weights and sizes of a completer, or of the deterministic network beside it."""
    sizes = {"latent_size": model.latent_size, "hidden": model.hidden}
    _write(path, "completion", {"model": model.state_dict()}, sizes)


def load_completer(path: Path, device: "torch.device | str" = "cpu") -> "Completer":
    """The completer, or the network. Raises UserError."""
    from pipeline.completion.model import Completer

    with _opened(path, "completion") as (file, sizes):
        return _loaded(Completer(**sizes), _groups(file)["model"], device)


def kind(path: Path) -> str:
    """What a safetensors file of this project holds; empty for any other."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("kind", "")
    except (SafetensorError, OSError):
        return ""


def save_training(path: Path, training: "Training[Any]", notes: Mapping[str, Any]) -> None:
    """A training between two epochs, with its caller's notes (plain values)."""
    from pipeline.training.checkpoint import tensors_of

    _write(path, "training", tensors_of(training), {"epoch": training.epoch, "notes": notes})


def resume_training(path: Path, training: "Training[Any]") -> dict[str, Any] | None:
    """Puts the saved state into `training` and returns its notes; without a file, returns None and changes nothing.

    A file that holds no such state is put aside, with a warning, and the training starts anew.
    """
    from pipeline.training.checkpoint import restore

    if not path.exists():
        return None
    try:
        with _opened(path, "training") as (file, saved):
            notes, epoch = saved["notes"], saved["epoch"]
            if len(notes.get("history", range(epoch))) != epoch:
                raise ValueError("its history is of another length")
            restore(training, _groups(file), epoch)
            return notes
    except UserError as error:
        aside = path.with_suffix(".broken")
        os.replace(path, aside)
        console.warn(f"{str(error).rpartition(': ')[0]}: it is now {aside.name}, and the training starts anew")
        return None


def load_pointer(path: Path, kind: str = "cvae") -> dict[str, Any]:
    """What the stage that trains this kind of model wrote of its MLflow run. Raises UserError."""
    pointer = load_json(path, REMEDY[kind], "run_id", "tracking_uri")
    texts = [pointer.get(name, "") for name in ("run_id", "run_key", "tracking_uri")]
    if not all(isinstance(one, str) for one in texts) or not isinstance(pointer.get("hashes", {}), dict):
        raise UserError(f"{path} names no MLflow run: {REMEDY[kind]}")
    return pointer


def load_table(path: Path, remedy: str, *columns: str, gaps: bool = False) -> "pd.DataFrame":
    """These columns of a CSV table of ours, or all, with a number in every row. Raises UserError.

    gaps: rows without one are left out.
    """
    import pandas as pd

    with _readable(path, remedy):
        table = pd.read_csv(path)
        table = table[list(columns)] if columns else table
        table = table.dropna() if gaps else table
        if table.empty or table.isna().any(axis=None) or not all(map(pd.api.types.is_numeric_dtype, table.dtypes)):
            raise ValueError("it has no rows of numbers")
        return table


def load_json(path: Path, remedy: str, *keys: str) -> dict[str, Any]:
    """A JSON file of ours that has at least these keys. Raises UserError."""
    with _readable(path, remedy):
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not content.keys() >= set(keys):
            raise ValueError(f"it lacks {', '.join(keys)}")
        return content


@contextmanager
def _readable(path: Path, remedy: str) -> Iterator[None]:
    """Turns every error of reading a report into one line with the remedy."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} not found: {remedy}") from None
    except (OSError, ValueError, KeyError, RecursionError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{path} can't be read ({_first_line(error)}): {remedy}") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(":")


def _write(path: Path, kind: str, groups: Groups, params: Mapping[str, Any]) -> None:
    tensors = {f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
    write_tensors(path, tensors, {"kind": kind, "params": json.dumps(params)})


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A file of this kind and its params. Any error in reading and rebuilding becomes one line with the remedy."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            if (found := notes.get("kind", "splits")) != kind:
                raise ValueError(f"it holds {found}")
            params = json.loads(notes.get("params", "{}"))
            if not isinstance(params, dict):
                raise ValueError("its metadata holds no params")
            yield file, params
    except FileNotFoundError:
        raise UserError(f"{path} not found: {REMEDY[kind]}") from None
    except (SafetensorError, *GARBAGE) as error:
        reason = _first_line(error)  # load_state_dict goes on to list every tensor
        raise UserError(f"{path} holds no {kind} of this version of the project ({reason}): {REMEDY[kind]}") from None


def _groups(file: Any) -> "dict[str, dict[str, Tensor]]":
    """All tensors, as `_write` was given them."""
    groups: dict[str, dict[str, Tensor]] = {}
    for whole in file.keys():  # noqa: SIM118 (the file itself is no mapping)
        group, _, name = whole.partition(".")
        groups.setdefault(group, {})[name] = file.get_tensor(whole)
    return groups


def _loaded(model: M, weights: "Mapping[str, Tensor]", device: "torch.device | str") -> M:
    """The model with these weights, ready to use. Raises RuntimeError or ValueError where they don't fit or count."""
    model.load_state_dict(weights)
    if not all(weight.isfinite().all() for weight in model.state_dict().values()):
        raise ValueError("a weight is not a finite number")
    return model.to(device).eval().requires_grad_(requires_grad=False)
