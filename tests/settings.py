"""Params for tests, plain and quick; a test names what it is about."""

from typing import Any

from pipeline.model.cvae import ModelParams
from pipeline.training.fit import TrainParams
from pipeline.training.objective import ObjectiveParams

OBJECTIVE: dict[str, Any] = {
    "kl_weight": 1.0, "likelihood": "bernoulli", "sigma": 0.1, "pixels": "grey", "schedule": "constant",
    "schedule_share": 0.5, "cycles": 4, "capacity": 25.0, "free_bits": None,
    "draws": 1, "draws_after": 0.0,
}  # fmt: skip
TRAIN: dict[str, Any] = {
    "epochs": 3, "batch_size": 20, "learning_rate": 1e-3, "warmup": 0.1, "ema": None, "clip": None, "augment": 0.0,
    "augment_until": 0.8, "seed": 7, "device": "cpu", "precision": "float32", "compile": "never",
}  # fmt: skip
MODEL: dict[str, Any] = {
    "preset": "strong", "architecture": None, "latent_size": None, "encoder_hidden": None, "decoder_hidden": None,
    "channels": None, "blocks": None, "conditioning": None, "encoder_sees_label": None, "init": None,
    "prior": "standard", "prior_components": 10,
}  # fmt: skip


def objective_params(**changes: Any) -> ObjectiveParams:
    return ObjectiveParams(**OBJECTIVE | changes)


def train_params(**changes: Any) -> TrainParams:
    return TrainParams(**TRAIN | changes)


def model_params(**changes: Any) -> ModelParams:
    return ModelParams(**MODEL | changes)
