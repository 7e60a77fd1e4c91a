"""The doctor's words: what each finding of measure/doctor.py means, and what can help.

Texts are templates for the values of `_values`. Remedies name keys of params.yaml.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pipeline.base.console import number
from pipeline.measure.doctor import Case, Finding


class Words(NamedTuple):
    says: str
    remedy: str


def words(case: Case, finding: Finding) -> Words:
    """What a finding means for a case, and what to change: all that can help."""
    says, ways = WORDS[finding.name]
    values = _values(case, finding)
    *first, last = [text.format(**values) for text, helps in ways.items() if helps is None or helps(case)]
    remedy = "; ".join([*first, f"or {last}" if first else last])
    return Words(says.format(**values), f"{remedy[0].upper()}{remedy[1:]}.")


def _values(case: Case, finding: Finding) -> dict[str, Any]:
    value, weight, epochs = finding.evidence[0].value, case.aim.kl_weight, len(case.history)
    values = {
        "value": value, "weight": number(weight), "capacity": case.aim.capacity, "epochs": epochs, "twice": 2 * epochs,
        "collapse": number(case.figures.get("spectrum/collapse_weight", math.nan)),
        "active": case.figures.get("active_units"), "expected": case.figures.get("spectrum/active_units"),
    }  # fmt: skip
    if finding.name == "overfitted":
        losses = case.losses()
        values["best"] = losses.index(min(losses)) + 1
    if finding.name == "likelihood_mismatched":  # value: σ ÷ the best σ. Its square multiplies the KL weight.
        sigma = case["sigma"]
        values |= {"sigma": sigma, "best_sigma": sigma / value, "effective": number(weight * value**2)}
    return values


def _can_raise(case: Case) -> bool:
    return case.aim.kl_weight < 1


def _can_lower(case: Case) -> bool:
    return case.aim.kl_weight > 1


def _has_capacity(case: Case) -> bool:
    return case.aim.schedule == "capacity"


def _adds_label(case: Case) -> bool:
    """Whether the label can be given to the decoder beside the latent, which helps most (docs/article.md)."""
    return case.conditioning not in (None, "concat")


CONCATENATE = "concatenate the label with the latent (model.conditioning concat)"
EPOCHS = "epochs instead of {epochs} (train.epochs; for trials of a study, tune.epochs)"

# By finding: what it means, and the ways that can help, each with the cases in which it can (None: all).
WORDS: dict[str, tuple[str, Mapping[str, Callable[[Case], bool] | None]]] = {
    "collapsed": (
        "The latents carry no information, or the decoder ignores them: all samples of a digit are alike.",
        {
            "lower objective.kl_weight below {collapse}: above it, the spectrum of the data says that no latent can "
            "pay for itself, however long you train (`cvae spectrum`)": lambda case: (
                case.aim.kl_weight > case.figures.get("spectrum/collapse_weight", math.inf)
            ),
            "lower objective.kl_weight from {weight} to 1, the evidence lower bound, or below (`cvae weight` converts "
            "a weight of the article)": _can_lower,
            "raise objective.capacity": _has_capacity,
            "let the model use the latents before the KL term has its full weight: set objective.schedule warmup, or "
            "objective.free_bits 0.1": lambda case: not (_can_lower(case) or _has_capacity(case)),
        },
    ),
    "label_ignored": (
        "Samples show the digit that the latent encodes, not the one asked for: the decoder ignores the label.",
        {
            CONCATENATE: _adds_label,
            "raise objective.kl_weight from {weight} towards 1, so that the latents no longer encode the "
            "digit": _can_raise,
            "set model.encoder_sees_label true, so that the latents need not encode the digit": None,
        },
    ),
    "prior_hole": (
        "Latents of real images leave holes in the prior: its frechet is {value:.3g} times as high as that of the "
        "fitted sampler.",
        {
            "use sample.sampler fitted, which needs no training": None,
            CONCATENATE: _adds_label,
            "raise objective.kl_weight from {weight} towards a value from 1 to 3": _can_raise,
            "learn the prior (model.prior mixture)": lambda case: case.prior == "standard",
        },
    ),
    "over_regularised": (
        "The KL term costs so much that the latents say little: samples of a digit are blurred and alike.",
        {
            "raise objective.capacity from {capacity:g}": _has_capacity,
            "lower objective.kl_weight from {weight}": lambda case: case.aim.kl_weight > 0.3,
            "use a larger model (model.preset strong, or a larger model.latent_size)": None,
        },
    ),
    "latents_missed": (
        "{active:g} latents are active. The spectrum of the data says that {expected:g} pay at this weight (`cvae "
        "spectrum`): training has not found the others.",
        {
            "train longer (train.epochs)": None,
            "let the KL weight rise from 0 (objective.schedule warmup)": lambda c: c.aim.schedule == "constant",
            CONCATENATE: _adds_label,
        },
    ),
    "under_trained": (
        "The loss on validation still fell by {value:.3g} nats per image in the last half of {epochs} epochs.",
        {"train for {twice} " + EPOCHS: None},
    ),
    "overfitted": (
        "The loss on validation was best after epoch {best} and has risen by {value:.3g} nats per image since.",
        {
            "augment the training images, or augment them more (train.augment)": None,
            "if nll or elbo matters, train for {best} " + EPOCHS + ". Samples may still have improved: compare their "
            "frechet first": None,
        },
    ),
    "images_remembered": (
        "The fitted density is {value:,.1f} nats higher at latents of training images than at held-out ones. Its "
        "samples stay close to training images, which frechet, diversity and coverage do not show.",
        {
            "use fewer Gaussians (sample.components). The best number has the highest fitted/log_density, which `cvae "
            "doctor` of a model file measures on validation": None
        },
    ),
    "likelihood_mismatched": (
        "σ is {sigma:.3g}, but the decoder's errors have a standard deviation of {best_sigma:.3g}. The KL term "
        "therefore acts like a weight of {effective} at the best σ, not {weight}.",
        {
            "set objective.sigma {best_sigma:.2g}": lambda case: case.aim.likelihood == "gaussian",
            "train longer (train.epochs)": lambda case: case.aim.likelihood == "sigma_learned",
            "set objective.likelihood sigma_optimal, which computes σ": lambda c: c.aim.likelihood != "sigma_optimal",
            "train for fewer epochs (train.epochs): this σ fits the errors on training images, which are now "
            "smaller": lambda case: case.aim.likelihood == "sigma_optimal",
        },
    ),
    "grey_pixels": (
        "{value:.0%} of the reconstruction is the entropy of the grey pixels, which no model can avoid. Under a "
        "Bernoulli likelihood the nll of grey pixels is not that of a density. Samples need no change.",
        {
            "to compare nll with other work, set objective.pixels binary": None,
            "for a density of grey pixels, set objective.likelihood continuous_bernoulli or sigma_optimal": None,
        },
    ),
    "nll_loose": (
        "The nll is too high, perhaps by a nat or more: in the median image it rests on {value:.3g} effective samples "
        "of z. A difference of a nat from another model's nll says nothing.",
        {"raise evaluate.nll_draws": None},
    ),
    "judge_unfit": (
        "A judge misreads too many real images, so the sample metrics, and findings that use them, are uncertain.",
        {"raise judge.epochs": None},
    ),
}
