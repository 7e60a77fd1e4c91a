"""An unfinished training as named tensors, and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.training.fit import Training

MODEL, TRAINED, OPTIMIZER = "model.", "trained.", "optimizer."


def tensors_of(training: Training[Any]) -> dict[str, Tensor]:
    """Model, trained weights where they are others than the model's, and the optimizer's state."""
    tensors = {MODEL + name: tensor for name, tensor in training.model.state_dict().items()}
    if training.trained is not training.model:
        tensors |= {TRAINED + name: tensor for name, tensor in training.trained.state_dict().items()}
    for index, state in training.optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    return tensors


@torch.no_grad()
def restore(training: Training[Any], tensors: Mapping[str, Tensor], epoch: int) -> None:
    """Puts the state that `tensors_of` gave after `epoch` epochs into a training of the same shapes.

    Raises KeyError, ValueError or RuntimeError for any other tensors, and leaves the training as it was.
    """
    before = {name: tensor.clone() for name, tensor in tensors_of(training).items()}
    try:
        _put(training, tensors)
    except (KeyError, ValueError, RuntimeError):
        _put(training, before)
        raise
    training.epoch = epoch


def _put(training: Training[Any], tensors: Mapping[str, Tensor]) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _under(tensors, OPTIMIZER).items():
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = tensor
    training.model.load_state_dict(_under(tensors, MODEL))
    if training.trained is not training.model:
        training.trained.load_state_dict(_under(tensors, TRAINED))
    # A fused Adam pairs moments and weights by their place in memory. A file does not keep the order in which
    # convolutions' weights lie there, so that each moment is laid out as its weight is.
    for number, weight in enumerate(training.trained.parameters()):
        for name in states.get(number, {}).keys() - {"step"}:
            states[number][name] = torch.empty_like(weight).copy_(states[number][name])
    groups = training.optimizer.state_dict()["param_groups"]
    if states and states.keys() != set(range(len(groups[0]["params"]))):
        raise ValueError("it lacks moments of the optimizer")
    training.optimizer.load_state_dict({"state": states, "param_groups": groups})


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
