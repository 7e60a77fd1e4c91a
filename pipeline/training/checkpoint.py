"""Weights and unfinished runs on disk: safetensors with all params beside them, written whole or not at all."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.files import write_tensors
from pipeline.base.params import parse
from pipeline.model.cvae import CVAE, Model, ModelParams, build, resolve
from pipeline.training.fit import M, Training, laid_out
from pipeline.training.objective import ObjectiveParams

KIND = "cvae"
REMEDY = {
    KIND: "train a model first, with `dvc repro train`",
    "completion": "run `dvc repro completion/dvc.yaml` first",
}
DENSITY = "density."
MODEL = "model."
TRAINED = "trained."
OPTIMIZER = "optimizer."


@dataclass(frozen=True)
class Saved:
    """A trained model as it was saved: the density's tensors are sample.Density's; params has every section."""

    model: CVAE
    density: dict[str, Tensor]
    params: dict[str, Any]


def save_model(path: Path | str, model: CVAE, density: Mapping[str, Tensor], params: Mapping[str, Any]) -> None:
    """Weights, fitted density and all params (plain, by section) in one safetensors file."""
    tensors = {MODEL + name: tensor for name, tensor in model.state_dict().items()}
    tensors |= {DENSITY + name: tensor for name, tensor in density.items()}
    write_tensors(path, tensors, {"kind": KIND, "params": json.dumps(params, sort_keys=True)})


def load_model(path: Path | str, device: torch.device | str = "cpu") -> Saved:
    """The model of a file that `save_model` wrote. Raises UserError for any other file."""
    tensors, notes = _read(path, KIND)
    params = json.loads(notes["params"])
    try:
        architecture = resolve(parse(ModelParams, params["model"], "model"))
        aim = parse(ObjectiveParams, params["objective"], "objective")
        model = build(architecture, 0, aim.likelihood, aim.sigma)
        model.load_state_dict(_under(tensors, MODEL))
    except (KeyError, RuntimeError, UserError) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise UserError(
            f"{path} is of another version of this project ({reason}): train it anew with `dvc repro train`"
        ) from None
    return Saved(
        model=model.to(device).eval().requires_grad_(requires_grad=False),
        density={name: tensor.to(device) for name, tensor in _under(tensors, DENSITY).items()},
        params=params,
    )


def save_weights(path: Path | str, kind: str, model: Model, params: Mapping[str, Any]) -> None:
    """The weights of a model of another kind, with what rebuilds it (plain values), in one safetensors file."""
    tensors = {MODEL + name: tensor for name, tensor in model.state_dict().items()}
    write_tensors(path, tensors, {"kind": kind, "params": json.dumps(params, sort_keys=True)})


def load_weights(
    path: Path | str, kind: str, build: Callable[[dict[str, Any]], M], device: torch.device | str = "cpu"
) -> M:
    """The model of a file that `save_weights` wrote, built from its params. Raises UserError for any other file."""
    tensors, notes = _read(path, kind)
    try:
        model = build(json.loads(notes["params"]))
        model.load_state_dict(_under(tensors, MODEL))
    except (KeyError, TypeError, ValueError, RuntimeError):  # the last lists every tensor
        raise UserError(f"{path} is of another version of this project: {REMEDY[kind]}") from None
    return model.to(device).eval().requires_grad_(requires_grad=False)


def kind(path: Path | str) -> str:
    """What a safetensors file of this project holds; empty for any other."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("kind", "")


def save_training(path: Path | str, training: Training[Any], notes: Mapping[str, Any]) -> None:
    """An unfinished run between two epochs, with its caller's notes (plain values)."""
    tensors = {MODEL + name: tensor for name, tensor in training.model.state_dict().items()}
    if training.trained is not training.model:
        tensors |= {TRAINED + name: tensor for name, tensor in training.trained.state_dict().items()}
    for index, state in training.optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    write_tensors(path, tensors, {"kind": "training", "epoch": str(training.epoch), "notes": json.dumps(notes)})


def resume_training(path: Path | str, training: Training[Any]) -> dict[str, Any] | None:
    """Puts the run saved at `path` into `training` and returns its notes; None, and nothing changed, without one."""
    if not Path(path).exists():
        return None
    tensors, metadata = _read(path, "training")
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _under(tensors, OPTIMIZER).items():
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = tensor
    training.model.load_state_dict(_under(tensors, MODEL))
    if training.trained is not training.model:
        training.trained.load_state_dict(_under(tensors, TRAINED))
    groups = training.optimizer.state_dict()["param_groups"]
    # A fused Adam pairs numbers by where they lie, and in a file convolutions' lie otherwise.
    weights = [weight.detach() for weight in training.trained.parameters()]
    for number, state in states.items():
        moments = {name: tensor for name, tensor in state.items() if name != "step"}
        state |= laid_out(moments, dict.fromkeys(moments, weights[number]))
    training.optimizer.load_state_dict({"state": states, "param_groups": groups})
    training.epoch = int(metadata["epoch"])
    notes: dict[str, Any] = json.loads(metadata["notes"])
    return notes


def _read(path: Path | str, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise UserError(f"{path} not found: {REMEDY.get(kind, REMEDY[KIND])}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file ({error})") from None
    if notes.get("kind") != kind:
        raise UserError(f"{path} holds no {kind} of this project (its kind is {notes.get('kind', 'not stated')!r})")
    return tensors, notes


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
