"""An unfinished training as named tensors, and back."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.training.fit import Training

Groups = Mapping[str, Mapping[str, Tensor]]


def tensors_of(training: Training[Any]) -> dict[str, dict[str, Tensor]]:
    """Those of `model`, of `trained` where it is not the same, and of the `optimizer`."""
    groups = {"model": training.model.state_dict()}
    if training.trained is not training.model:
        groups["trained"] = training.trained.state_dict()
    groups["optimizer"] = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, state in training.optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    return groups


@torch.no_grad()
def restore(training: Training[Any], groups: Groups, epoch: int) -> None:
    """Puts the state that `tensors_of` gave after `epoch` epochs into a training of the same shapes.

    Raises KeyError, ValueError or RuntimeError for any other tensors, and leaves the training as it was.
    """
    before = copy.deepcopy(tensors_of(training))
    try:
        _put(training, groups)
    except (KeyError, ValueError, RuntimeError):
        _put(training, before)
        raise
    training.epoch = epoch


def _put(training: Training[Any], groups: Groups) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in groups.get("optimizer", {}).items():  # a file has no empty group
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = tensor
    training.model.load_state_dict(groups["model"])
    if training.trained is not training.model:
        training.trained.load_state_dict(groups["trained"])
    # A fused Adam pairs moments and weights by their place in memory. A file does not keep the order in which
    # convolutions' weights lie there, so that each moment is laid out as its weight is.
    for number, weight in enumerate(training.trained.parameters()):
        for name in states.get(number, {}).keys() - {"step"}:
            states[number][name] = torch.empty_like(weight).copy_(states[number][name])
    settings = training.optimizer.state_dict()["param_groups"]
    if states and states.keys() != set(range(len(settings[0]["params"]))):
        raise ValueError("it lacks moments of the optimizer")
    training.optimizer.load_state_dict({"state": states, "param_groups": settings})
