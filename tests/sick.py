"""Cases for the doctor: a healthy one, and for each check cases just beyond and just within its thresholds."""

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


def healthy(*losses: float, **figures: float) -> Case:
    """A case with nothing to find unless the changes make it; `__` stands for the slash in a figure's name."""
    good = {
        "reconstruction": 80.0, "kl": 20.0, "active_units": 12, "judge_accuracy": 0.995, "grey_floor": 30.0,
        "spectrum/active_units": 16,
        "effective_samples": 40.0,
        "prior/class_accuracy": 0.95, "prior/diversity": 0.9, "prior/frechet": 3.0,
        "fitted/class_accuracy": 0.98, "fitted/diversity": 0.9, "fitted/frechet": 2.5, "real/frechet": 0.8,
        "fitted/log_density": -16.5, "fitted/log_density_train": -16.0,
    }  # fmt: skip
    changed = {name.replace("__", "/"): value for name, value in figures.items()}
    epochs = history(*(losses or (200, 120, 102, 101, 100, 100)))
    return Case(objective_params(), good | changed, epochs, "standard", "concat")


def aimed(case: Case, **changes: Any) -> Case:
    return replace(case, aim=objective_params(**changes))


def sigma_case(sigma: float, best: float, name: likelihood.Name = "gaussian") -> Case:
    """A Gaussian likelihood whose errors have the standard deviation `best`."""
    outputs, pixels = torch.zeros(1, PIXELS), 0.5 + best * torch.where(torch.arange(PIXELS) % 2 == 0, 1, -1)
    reconstruction = -float(Gaussian(sigma).log_prob(outputs, pixels))
    return aimed(healthy(reconstruction=reconstruction, sigma=sigma), likelihood=name, sigma=sigma)


def warming_up(kl_weight: float) -> Case:
    """The reconstruction stays, and the kl falls: at a low KL weight the loss hardly does."""
    rows = [{"validation/reconstruction": 100.0, "validation/kl": kl} for kl in (60.0, 40.0, 25.0, 15.0)]
    return aimed(replace(healthy(), history=rows), kl_weight=kl_weight)


# (finding, a case that has it, a similar case that has not)
CASES = [
    ("collapsed", healthy(kl=0.09), healthy(kl=0.11)),
    ("collapsed", healthy(active_units=0), healthy(active_units=1)),
    ("collapsed", healthy(prior__diversity=0.1, fitted__diversity=0.19), healthy(prior__diversity=0.1)),
    ("latents_missed", healthy(active_units=11), healthy(active_units=12)),
    ("latents_missed", healthy(active_units=1, spectrum__active_units=2), healthy(spectrum__active_units=0)),
    ("label_ignored", healthy(prior__class_accuracy=0.19), healthy(prior__class_accuracy=0.21)),
    ("prior_hole", healthy(prior__frechet=5.1), healthy(prior__frechet=4.9)),
    # Samples that are better than real images count as equally good.
    ("prior_hole", healthy(prior__frechet=1.7, fitted__frechet=0.4), healthy(prior__frechet=1.5, fitted__frechet=0.4)),
    (
        "over_regularised",
        healthy(fitted__diversity=0.79, reconstruction=91, kl=9),
        healthy(fitted__diversity=0.79, reconstruction=89, kl=11),
    ),
    (
        "over_regularised",
        aimed(healthy(fitted__diversity=0.79), kl_weight=1.1),
        aimed(healthy(fitted__diversity=0.81), kl_weight=1.1),
    ),
    (  # a reconstruction under another likelihood is no share
        "over_regularised",
        aimed(healthy(fitted__diversity=0.6, reconstruction=91, kl=9), likelihood="discretized_logistic", kl_weight=4),
        aimed(healthy(fitted__diversity=0.6, reconstruction=91, kl=9), likelihood="discretized_logistic"),
    ),
    ("under_trained", healthy(200, 150, 130, 115), healthy(200, 110, 101, 100.5, 100.2, 100)),
    ("under_trained", healthy(106, 103, 102.1, 100), healthy(106, 101.9, 101, 100)),
    ("under_trained", warming_up(1.0), warming_up(0.01)),
    ("overfitted", healthy(200, 120, 100, 101, 102.1), healthy(200, 120, 100, 101, 101.9)),
    (  # under a KL schedule, early epochs minimise another loss
        "overfitted",
        healthy(200, 100, 104, 104, 104, 104),
        aimed(healthy(200, 100, 104, 104, 104, 104), schedule="warmup"),
    ),
    ("images_remembered", healthy(fitted__log_density_train=-14.4), healthy(fitted__log_density_train=-14.6)),
    ("likelihood_mismatched", sigma_case(0.29, 0.2), sigma_case(0.28, 0.2)),
    ("likelihood_mismatched", sigma_case(0.14, 0.2, "sigma_optimal"), sigma_case(0.15, 0.2, "sigma_optimal")),
    ("grey_pixels", healthy(grey_floor=41), healthy(grey_floor=39)),
    ("grey_pixels", healthy(grey_floor=41), aimed(healthy(grey_floor=41), pixels="binary")),
    ("nll_loose", healthy(effective_samples=9.9), healthy(effective_samples=10.1)),
    ("judge_unfit", healthy(judge_accuracy=0.979), healthy(judge_accuracy=0.981)),
    ("judge_unfit", healthy(judge_accuracy_plain=0.979), healthy(judge_accuracy_plain=0.981)),
]
