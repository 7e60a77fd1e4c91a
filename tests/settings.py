"""Params for tests: those of params.yaml, changed to be plain and quick. A test names the values that it is about."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imports import ROOT

from pipeline.base.params import parse, read
from pipeline.model.cvae import ModelParams
from pipeline.training.fit import TrainParams
from pipeline.training.objective import ObjectiveParams

if TYPE_CHECKING:
    from pipeline.study.space import TuneParams

OURS = read(ROOT / "params.yaml")
OBJECTIVE: dict[str, Any] = OURS["objective"] | {"kl_weight": 1.0}
TRAIN: dict[str, Any] = OURS["train"] | {
    "epochs": 3, "batch_size": 20, "learning_rate": 1e-3, "warmup": 0.1, "ema": None, "seed": 7, "device": "cpu",
    "precision": "float32", "compile": "never",
}  # fmt: skip
MODEL: dict[str, Any] = OURS["model"]


def objective_params(**changes: Any) -> ObjectiveParams:
    return replace(parse(ObjectiveParams, OBJECTIVE, "objective"), **changes)


def train_params(**changes: Any) -> TrainParams:
    return replace(parse(TrainParams, TRAIN, "train"), **changes)


def model_params(**changes: Any) -> ModelParams:
    return replace(parse(ModelParams, MODEL, "model"), **changes)


def tune_params(**changes: Any) -> "TuneParams":
    from pipeline.study.space import TuneParams  # with Optuna, which few tests need

    return replace(parse(TuneParams, OURS["tune"], "tune"), **changes)
