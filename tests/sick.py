"""Cases for the doctor: a healthy one, and for each check those that it finds."""

from dataclasses import replace
from typing import Any

import torch
from settings import objective_params

from pipeline.data.splits import PIXELS
from pipeline.measure.doctor import Case
from pipeline.model import likelihood
from pipeline.model.likelihood import Gaussian


def history(*losses: float) -> list[dict[str, float]]:
    """Epochs with these losses on validation at a KL weight of 1."""
    return [{"validation/reconstruction": loss - 10, "validation/kl": 10.0} for loss in losses]


def healthy(**figures: float) -> Case:
    """A case with nothing to find unless `figures` change it; `__` stands for the slash in a name."""
    good = {
        "reconstruction": 80.0, "kl": 20.0, "active_units": 12, "judge_accuracy": 0.995, "grey_floor": 30.0,
        "prior/class_accuracy": 0.95, "prior/diversity": 0.9, "prior/frechet": 3.0,
        "fitted/class_accuracy": 0.98, "fitted/diversity": 0.9, "fitted/frechet": 2.5, "real/frechet": 0.8,
        "fitted/log_density": -16.5, "fitted/log_density_train": -16.0,
    }  # fmt: skip
    changed = {name.replace("__", "/"): value for name, value in figures.items()}
    return Case(objective_params(), good | changed, history(200, 120, 102, 101, 100, 100), "standard", "concat")


def aimed(case: Case, **changes: Any) -> Case:
    return replace(case, aim=objective_params(**changes))


def sigma_case(sigma: float, best: float, name: likelihood.Name = "gaussian") -> Case:
    """A Gaussian likelihood whose errors have the standard deviation `best`."""
    outputs, pixels = torch.zeros(1, PIXELS), 0.5 + best * torch.where(torch.arange(PIXELS) % 2 == 0, 1, -1)
    reconstruction = -float(Gaussian(sigma).log_prob(outputs, pixels))
    return aimed(healthy(reconstruction=reconstruction, sigma=sigma), likelihood=name, sigma=sigma)


SICK = {
    "collapsed": [
        healthy(kl=0.01, active_units=0),
        healthy(active_units=0),
        healthy(prior__diversity=0.1, fitted__diversity=0.15),
    ],
    "label_ignored": [
        healthy(prior__class_accuracy=0.1),
        healthy(prior__class_accuracy=0.1, fitted__class_accuracy=0.1),
    ],
    "prior_hole": [healthy(prior__frechet=6.0)],
    "over_regularised": [
        healthy(fitted__diversity=0.6, reconstruction=130, kl=3),
        aimed(healthy(fitted__diversity=0.6), kl_weight=4),
        aimed(healthy(fitted__diversity=0.6, sigma=0.1), kl_weight=4, likelihood="discretized_logistic"),
    ],
    "under_trained": [
        replace(healthy(), history=history(200, 150, 130, 115)),
        replace(healthy(), history=history(200, 150)),
    ],
    "overfitted": [replace(healthy(), history=history(200, 120, 100, 101, 103))],
    "images_remembered": [healthy(fitted__log_density=-21.0, fitted__log_density_train=-12.0)],
    "likelihood_mismatched": [
        sigma_case(0.4, 0.2),
        sigma_case(0.1, 0.2),
        sigma_case(0.4, 0.2, "sigma_learned"),
        sigma_case(0.1, 0.2, "sigma_optimal"),
    ],
    "judge_unfit": [healthy(judge_accuracy=0.9)],
}
CASES = [(name, case) for name, cases in SICK.items() for case in cases]
