"""Small splits, a small model, the treatments of training, and solo runs to compare a population with."""

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from settings import objective_params, train_params
from torch import Tensor, nn

from pipeline.data.splits import Split
from pipeline.model.cvae import CVAE, Architecture, build
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


class Treatment(NamedTuple):
    """One way to train. data: fewer images for convolutions, which are slow in float64."""

    architecture: Architecture
    aim: ObjectiveParams
    params: TrainParams
    data: Split

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> CVAE:
        return build(self.architecture, seed, self.aim.likelihood, self.aim.sigma).to(dtype)


def treatment(architecture: Architecture = SMALL, aim: dict[str, Any] | None = None, **params: Any) -> Treatment:
    data = TRAIN[: 60 if architecture.channels else 110]
    return Treatment(architecture, objective_params(**aim or {}), train_params(**params), data)


MIXTURE = replace(SMALL, prior="mixture", prior_components=2)
RESNET = replace(MIXTURE, architecture="resnet", channels=(3, 4), blocks=1, conditioning="sum")
TREATMENTS = {
    "mean, no hidden layer": treatment(Architecture(2, (), (12, 16), "mean", encoder_sees_label=True)),
    "product, blind, binary": treatment(
        Architecture(5, (16,), (), "product", encoder_sees_label=False), {"pixels": "binary", "schedule": "warmup"}
    ),
    "sigma optimal, averaged": treatment(SMALL, {"likelihood": "sigma_optimal"}, ema=0.9),
    "logistic, class prior": treatment(replace(SMALL, prior="class"), {"likelihood": "discretized_logistic"}),
    "capacity and free bits": treatment(SMALL, {"schedule": "capacity", "capacity": 5.0, "free_bits": 0.5}),
    "several draws, mixture": treatment(MIXTURE, {"draws": 3, "draws_after": 0.5}),
    "clipped, moved": treatment(clip=3.0, augment=1.0, augment_until=0.7),
    "conv, several draws": treatment(replace(SMALL, architecture="conv", channels=(3, 4)), {"draws": 2}),
    "resnet, everything": treatment(
        RESNET, {"likelihood": "sigma_optimal", "schedule": "cyclical", "free_bits": 0.1}, ema=0.9, clip=5.0
    ),
}
treatments = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=pytest.mark.slow if case.architecture.channels else ())
        for name, case in TREATMENTS.items()
    ],
)
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def weights(model: nn.Module) -> Tensor:
    """All weights and buffers in one row."""
    return torch.cat([tensor.detach().flatten() for tensor in model.state_dict().values()])


def assert_solo(
    case: Treatment, members: Population, records: list[dict[int, Record]], rates: list[float] | None = None
) -> None:
    """Every member still in `members` has the weights and the records of its solo run."""
    for member in members.members:
        rate = rates[member] if rates else case.params.learning_rate
        own = replace(case.params, epochs=len(records), compile="never", learning_rate=rate)
        run = train.start(case.model(member), own, CPU)
        aim = replace(case.aim, kl_weight=KL_WEIGHTS[member])
        expected = list(train.fit(run, case.data, VALIDATION, own, aim))
        torch.testing.assert_close(weights(members.model(member)), weights(run.model), rtol=0, atol=1e-10)
        for record, solo in zip(records, expected, strict=True):
            ours, theirs = record[member].row(), solo.row()
            timeless = {"time/seconds": 0, "time/images_per_second": 0}
            assert ours | timeless == pytest.approx(theirs | timeless, rel=1e-9)
