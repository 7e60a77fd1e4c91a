"""Small splits to train on, a small model, and solo runs: what each member of a population is compared with."""

import dataclasses

import pytest
import torch
from settings import objective_params, train_params
from torch import Tensor, nn

from pipeline.data.splits import Split
from pipeline.model.cvae import CVAE, Architecture
from pipeline.training import fit as train
from pipeline.training.fit import Record, TrainParams
from pipeline.training.objective import ObjectiveParams
from pipeline.training.population import Population

CPU = torch.device("cpu")
SMALL = Architecture(4, (32,), (32,), "concat", encoder_sees_label=True)
PARAMS = train_params()
AIM = objective_params()
KL_WEIGHTS = [0.01, 1.0, 30.0]  # of the members


def blobs(count: int, seed: int) -> Split:
    """Images of one bright square whose place depends on the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    images = torch.randint(0, 60, (count, 1, 28, 28), generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 2 + 9 * (label // 4), 1 + 7 * (label % 4)
        image[:, row : row + 5, column : column + 5] = 250
    return Split(images.to(torch.uint8), labels)


TRAIN, VALIDATION = blobs(210, 0), blobs(50, 1)


def weights(model: nn.Module) -> Tensor:
    """All weights and buffers in one row."""
    return torch.cat([tensor.detach().flatten() for tensor in model.state_dict().values()])


def alone(
    model: CVAE, kl_weight: float, params: TrainParams, aim: ObjectiveParams, splits: tuple[Split, Split]
) -> tuple[CVAE, list[Record]]:
    run = train.start(model, params, CPU)
    records = list(train.fit(run, *splits, params, dataclasses.replace(aim, kl_weight=kl_weight)))
    return run.model, records


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
