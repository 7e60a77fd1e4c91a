"""What a population is held to: each member is the solo run that it stands for."""

import dataclasses

import pytest
import torch
from torch import Tensor

from pipeline.data.splits import Split
from pipeline.model.cvae import CVAE
from pipeline.training import fit as train
from pipeline.training.fit import Record, TrainParams
from pipeline.training.objective import ObjectiveParams
from pipeline.training.population import Population

KL_WEIGHTS = [0.01, 1.0, 30.0]  # of the members, in float64


def weights(model: CVAE) -> Tensor:
    """And what it has learned without a gradient."""
    return torch.cat([tensor.detach().flatten() for tensor in model.state_dict().values()])


def alone(
    model: CVAE, kl_weight: float, params: TrainParams, aim: ObjectiveParams, splits: tuple[Split, Split]
) -> tuple[CVAE, list[Record]]:
    run = train.start(model, params, torch.device("cpu"))
    return model, list(train.fit(run, *splits, params, dataclasses.replace(aim, kl_weight=kl_weight)))


def assert_solo(
    members: Population,
    records: list[dict[int, Record]],
    originals: list[CVAE],
    aim: ObjectiveParams,
    params: TrainParams,
    splits: tuple[Split, Split],
    rates: list[float] | None = None,
) -> None:
    """Every member still in `members` has the weights and the records of its solo run, from `originals`' weights."""
    for member in members.members:
        own = dataclasses.replace(params, epochs=len(records), compile="never")
        if rates is not None:
            own = dataclasses.replace(own, learning_rate=rates[member])
        model, expected = alone(originals[member], KL_WEIGHTS[member], own, aim, splits)
        torch.testing.assert_close(weights(members.model(member)), weights(model), rtol=0, atol=1e-10)
        for record, solo in zip(records, expected, strict=True):
            ours, theirs = record[member].row(), solo.row()
            timeless = {"time/seconds": 0, "time/images_per_second": 0}
            assert ours | timeless == pytest.approx(theirs | timeless, rel=1e-9)
