"""All that the project keeps as safetensors: splits, the judge, the CVAE, the completer, and unfinished trainings.

A model's file states its kind and its params in the metadata. No file holds code.

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
    from pipeline.measure.judge import Judge
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
    from safetensors import SafetensorError, safe_open

    from pipeline.data.splits import Split

    try:
        with safe_open(path, framework="pt") as file:
            return tuple(
                Split(file.get_tensor(f"{name}.images"), file.get_tensor(f"{name}.labels").long()).to(device)
                for name in names
            )
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} can't be read ({error}): {REMEDY['splits']}") from None


def save_judge(path: Path, judge: "Judge", params: Mapping[str, Any]) -> None:
    """The judge's weights, and the params it was trained with (plain values)."""
    _write(path, "judge", judge.state_dict(), params)


def load_judge(path: Path, device: "torch.device | str" = "cpu") -> "Judge":
    """The judge, ready to read. Raises UserError."""
    from pipeline.measure.judge import build

    tensors, _ = _read(path, "judge")
    judge = build(seed=0)
    with _of_this_version(path, "judge"):
        judge.load_state_dict(tensors)
    return _ready(judge, device)


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

    tensors, notes = _read(path, "cvae")
    with _of_this_version(path, "cvae"):
        params = json.loads(notes["params"])
        architecture = resolve(parse(ModelParams, params["model"], "model"))
        aim = parse(ObjectiveParams, params["objective"], "objective")
        model = build(architecture, 0, aim.likelihood, aim.sigma)
        model.load_state_dict(_under(MODEL, tensors))
        density = Density(**{name: tensor.float().to(device) for name, tensor in _under(DENSITY, tensors).items()})
    return Saved(_ready(model, device), density, params)


def save_completer(path: Path, model: "Completer") -> None:
    """Weights and sizes of a completer, or of the deterministic network beside it."""
    sizes = {"latent_size": model.latent_size, "hidden": model.hidden}
    _write(path, "completion", _prefixed(MODEL, model.state_dict()), sizes)


def load_completer(path: Path, device: "torch.device | str" = "cpu") -> "Completer":
    """The completer, or the network. Raises UserError."""
    from pipeline.completion.model import Completer

    tensors, notes = _read(path, "completion")
    with _of_this_version(path, "completion"):
        model = Completer(**json.loads(notes["params"]))
        model.load_state_dict(_under(MODEL, tensors))
    return _ready(model, device)


def kind(path: Path) -> str:
    """What a safetensors file of this project holds; empty for any other."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("kind", "")


def save_training(path: Path, training: "Training[Any]", notes: Mapping[str, Any]) -> None:
    """A training between two epochs, with its caller's notes (plain values)."""
    from pipeline.training.checkpoint import tensors_of

    about = {"kind": "training", "epoch": str(training.epoch), "notes": json.dumps(notes)}
    write_tensors(path, tensors_of(training), about)


def resume_training(path: Path, training: "Training[Any]") -> dict[str, Any] | None:
    """Puts the saved state into `training` and returns its notes; without a file, returns None and changes nothing."""
    from pipeline.training.checkpoint import restore

    if not path.exists():
        return None
    tensors, metadata = _read(path, "training")
    restore(training, tensors, int(metadata["epoch"]))
    notes: dict[str, Any] = json.loads(metadata["notes"])
    return notes


def _write(path: Path, kind: str, tensors: "Mapping[str, Tensor]", params: Mapping[str, Any]) -> None:
    write_tensors(path, tensors, {"kind": kind, "params": json.dumps(params)})


def _read(path: Path, kind: str) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Tensors and metadata of a file of this kind. Raises UserError for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise UserError(f"{path} not found: {REMEDY[kind]}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file ({error}): {REMEDY[kind]}") from None
    if notes.get("kind") != kind:
        raise UserError(f"{path} holds no {kind} of this project: {REMEDY[kind]}")
    return tensors, notes


@contextmanager
def _of_this_version(path: Path, kind: str) -> Iterator[None]:
    """Errors in rebuilding what a file holds become one line with the remedy."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, UserError) as error:
        reason = str(error).splitlines()[0].rstrip(":")  # load_state_dict goes on to list every tensor
        raise UserError(f"{path} is of another version of this project ({reason}): {REMEDY[kind]}") from None


def _ready(model: M, device: "torch.device | str") -> M:
    return model.to(device).eval().requires_grad_(requires_grad=False)


def _prefixed(prefix: str, tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
