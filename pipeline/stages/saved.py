"""All that the project keeps as safetensors: splits, the judges, the CVAE, the completer, and unfinished trainings.

A file states its kind and its params in the metadata, and holds no code.

Each function imports what it needs itself, so that a stage depends only on the rooms of the functions that it uses.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pipeline.base.errors import UserError
from pipeline.base.files import replacing, write_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.completion.model import Completer
    from pipeline.data.splits import Split
    from pipeline.measure.judge import Judges
    from pipeline.model.cvae import CVAE
    from pipeline.model.density import Density
    from pipeline.training.fit import Training

REMEDY = {  # of each kind of file
    "splits": "run `dvc repro prepare` first",
    "judge": "run `dvc repro judge`",
    "cvae": "train a model first, with `dvc repro train`",
    "completion": "run `dvc repro completion/dvc.yaml` first",
    "training": "delete it, and the training starts again",
}
MODEL, DENSITY = "model.", "density."  # how the names of tensors begin

M = TypeVar("M", bound="nn.Module")


class Saved(NamedTuple):
    """A trained CVAE, the density fitted to its latents, and all params it was trained with, by section."""

    model: "CVAE"
    density: "Density"
    params: dict[str, Any]


def save_splits(path: Path, splits: "Mapping[str, Split]") -> None:
    """All splits in one file: `train.images`, `train.labels`, …, all uint8."""
    from safetensors.torch import save_file

    tensors = {f"{name}.images": split.images.contiguous() for name, split in splits.items()}
    tensors |= {f"{name}.labels": split.labels.byte() for name, split in splits.items()}
    with replacing(path) as part:
        save_file(tensors, part)


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
    tensors: dict[str, Tensor] = {}
    for name, judge in judges._asdict().items():
        tensors |= _prefixed(f"{name}.", judge.state_dict())
    _write(path, "judge", tensors, params)


def load_judges(path: Path, device: "torch.device | str" = "cpu") -> "Judges":
    """Both judges, ready to read. Raises UserError."""
    from pipeline.measure.judge import Judges, build

    judges = []
    with _opened(path, "judge") as (file, _):
        for name in Judges._fields:
            judges.append(judge := build(seed=0))
            judge.load_state_dict(_tensors(file, f"{name}."))
    return Judges(*(_ready(judge, device) for judge in judges))


def save_cvae(path: Path, model: "CVAE", density: "Density", params: Mapping[str, Any]) -> None:
    """Weights, fitted density and all params (plain values, by section)."""
    tensors = _prefixed(MODEL, model.state_dict()) | _prefixed(DENSITY, density.tensors())
    _write(path, "cvae", tensors, params)


def load_cvae(path: Path, device: "torch.device | str" = "cpu") -> Saved:
    """The CVAE with its density and params. Raises UserError."""
    from pipeline.base.params import parse
    from pipeline.model.cvae import ModelParams, build, resolve
    from pipeline.model.density import Density
    from pipeline.training.objective import ObjectiveParams

    with _opened(path, "cvae") as (file, params):
        architecture = resolve(parse(ModelParams, params["model"], "model"))
        aim = parse(ObjectiveParams, params["objective"], "objective")
        model = build(architecture, 0, aim.likelihood, aim.sigma)
        model.load_state_dict(_tensors(file, MODEL))
        density = Density(**{name: tensor.float().to(device) for name, tensor in _tensors(file, DENSITY).items()})
    return Saved(_ready(model, device), density, params)


def save_completer(path: Path, model: "Completer") -> None:
    """Weights and sizes of a completer, or of the deterministic network beside it."""
    sizes = {"latent_size": model.latent_size, "hidden": model.hidden}
    _write(path, "completion", _prefixed(MODEL, model.state_dict()), sizes)


def load_completer(path: Path, device: "torch.device | str" = "cpu") -> "Completer":
    """The completer, or the network. Raises UserError."""
    from pipeline.completion.model import Completer

    with _opened(path, "completion") as (file, sizes):
        model = Completer(**sizes)
        model.load_state_dict(_tensors(file, MODEL))
    return _ready(model, device)


def kind(path: Path) -> str:
    """What a safetensors file of this project holds; empty for any other."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("kind", "")


def save_training(path: Path, training: "Training[Any]", notes: Mapping[str, Any]) -> None:
    """A training between two epochs, with its caller's notes (plain values)."""
    from pipeline.training.checkpoint import tensors_of

    _write(path, "training", tensors_of(training), {"epoch": training.epoch, "notes": notes})


def resume_training(path: Path, training: "Training[Any]") -> dict[str, Any] | None:
    """Puts the saved state into `training` and returns its notes; without a file, returns None and changes nothing."""
    from pipeline.training.checkpoint import restore

    if not path.exists():
        return None
    with _opened(path, "training") as (file, saved):
        restore(training, _tensors(file), saved["epoch"])
        return saved["notes"]


def _write(path: Path, kind: str, tensors: "Mapping[str, Tensor]", params: Mapping[str, Any]) -> None:
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
            yield file, json.loads(notes.get("params", "{}"))
    except FileNotFoundError:
        raise UserError(f"{path} not found: {REMEDY[kind]}") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, UserError) as error:
        reason = str(error).splitlines()[0].rstrip(":")  # load_state_dict goes on to list every tensor
        raise UserError(f"{path} holds no {kind} of this version of the project ({reason}): {REMEDY[kind]}") from None


def _tensors(file: Any, prefix: str = "") -> "dict[str, Tensor]":
    """The tensors whose names begin with `prefix`, without it."""
    names = file.keys()  # the file itself is no mapping
    return {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}


def _ready(model: M, device: "torch.device | str") -> M:
    return model.to(device).eval().requires_grad_(requires_grad=False)


def _prefixed(prefix: str, tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    return {prefix + name: tensor for name, tensor in tensors.items()}
