"""The doctor's words: for each finding of measure/doctor.py, a sentence that explains it and a remedy.

Each function takes the case and the finding. Remedies name keys of params.yaml.
"""

from collections.abc import Callable
from typing import NamedTuple

from pipeline.measure.doctor import Case, Finding, best_sigma, losses
from pipeline.model.samples import SAMPLERS


class Words(NamedTuple):
    says: str
    remedy: str


def words(case: Case, finding: Finding) -> Words:
    """What a finding means for a case, and what to change."""
    return WORDS[finding.name](case, finding)


def collapsed(case: Case, finding: Finding) -> Words:
    weight = case.aim.kl_weight
    unused = any(one.figure in ("kl", "active_units") for one in finding.evidence)
    says = (
        "The latents carry no information: every image of a digit gets the same latent, and all samples are alike."
        if unused
        else "The decoder ignores the latents: all samples of a digit are alike, although their latents differ."
    )
    if weight > 1:
        remedy = (
            f"Lower objective.kl_weight from {number(weight)} to 1, the evidence lower bound, or below "
            "(`cvae weight` converts a weight of the article)."
        )
    elif case.aim.schedule == "capacity":
        remedy = "Raise objective.capacity."
    else:
        remedy = "Let the model use the latents before the KL term has its full weight: set objective.schedule warmup, "
        remedy += "or objective.free_bits 0.1."
    return Words(says, remedy)


def label_ignored(case: Case, finding: Finding) -> Words:
    says = "Samples from the prior show the digit that the latent encodes: the decoder ignores the label."
    if len(finding.evidence) > 1:
        says = "Samples of both samplers do not show the digit asked for: the decoder ignores the label."
    ways = [*_concatenate(case), *_raise_weight(case, "1, so that the latents no longer encode the digit")]
    ways.append("set model.encoder_sees_label true, so that the latents need not encode the digit")
    return Words(says, choice(ways))


def prior_hole(case: Case, finding: Finding) -> Words:
    says = f"Latents of real images leave holes in the prior: its frechet is {finding.evidence[0].value:.3g} times as "
    says += "high as that of the fitted sampler"
    prior, fitted = (case.figures.get(f"{name}/class_accuracy") for name in SAMPLERS)
    if prior is not None and fitted is not None:
        says += f", and {prior:.0%} of its samples show the digit asked for, against {fitted:.0%}"
    ways = ["use sample.sampler fitted, which needs no training", *_concatenate(case)]
    ways += _raise_weight(case, "a value from 1 to 3")
    if case.prior == "standard":
        ways.append("learn the prior (model.prior mixture)")
    return Words(f"{says}.", choice(ways))


def over_regularised(case: Case, _: Finding) -> Words:
    weight = case.aim.kl_weight
    says = f"The latents hold only {case.figures['kl']:.3g} nats per image: samples of a digit are blurred and alike."
    if case.aim.schedule == "capacity":
        remedy = f"Raise objective.capacity from {case.aim.capacity:g}."
    elif weight > 0.3:
        remedy = f"Lower objective.kl_weight from {number(weight)}{' towards 1' if weight > 1 else ''}."
    else:
        remedy = "Use a larger model (model.preset strong, or a larger model.latent_size)."
    return Words(says, remedy)


def under_trained(case: Case, finding: Finding) -> Words:
    epochs = len(case.history)
    return Words(
        f"The loss on validation still fell by {finding.evidence[0].value:.3g} nats per image in the last half of "
        f"{epochs} epochs.",
        f"Train for {2 * epochs} epochs instead of {epochs} (train.epochs; for trials of a study, tune.epochs).",
    )


def overfitted(case: Case, finding: Finding) -> Words:
    found = losses(case)
    best = found.index(min(found)) + 1
    return Words(
        f"The loss on validation was best after epoch {best} and has risen by {finding.evidence[0].value:.3g} nats per "
        "image since.",
        "Augment the training images, or augment them more (train.augment). Or, if nll or elbo matters, train for "
        f"{best} epochs instead of {len(found)} (train.epochs; for trials of a study, tune.epochs). Samples may still "
        "have improved: compare their frechet first.",
    )


def images_remembered(_: Case, finding: Finding) -> Words:
    return Words(
        f"The fitted density is {finding.evidence[0].value:,.1f} nats higher at latents of training images than at "
        "held-out ones. Its samples stay close to training images, which frechet, diversity and coverage do not show.",
        "Use fewer Gaussians (sample.components). The best number has the highest fitted/log_density, which "
        "`cvae doctor` of a model file measures on validation.",
    )


def likelihood_mismatched(case: Case, finding: Finding) -> Words:
    reconstruction = case.figures["reconstruction"]
    if finding.severity == "note":
        return Words(
            f"{case.figures['grey_floor']:.1f} of the reconstruction's {reconstruction:.1f} nats are the entropy of "
            "the grey pixels, which no model can avoid. Under a Bernoulli likelihood the nll of grey pixels is not "
            "that of a density.",
            "Samples need no change. To compare nll with other work, set objective.pixels binary; for a density of "
            "grey pixels, objective.likelihood continuous_bernoulli or sigma_optimal.",
        )
    sigma = case.figures["sigma"]
    best = best_sigma(reconstruction, sigma)
    weight = case.aim.kl_weight
    says = (
        f"σ is {sigma:.3g}, but the decoder's errors have a standard deviation of {best:.3g}. The KL term therefore "
        f"acts like a weight of {number(weight * (sigma / best) ** 2)} at the best σ, not {number(weight)}."
    )
    remedies = {
        "gaussian": f"Set objective.sigma {best:.2g}, or objective.likelihood sigma_optimal, which computes it.",
        "sigma_optimal": "This σ fits the errors on training images, which are now smaller: train for fewer epochs "
        "(train.epochs).",
        "sigma_learned": "Train longer, or set objective.likelihood sigma_optimal, which computes σ.",
    }
    return Words(says, remedies[case.aim.likelihood])


def judge_unfit(_: Case, __: Finding) -> Words:
    return Words(
        "The judge misreads too many real images, so the sample metrics, and findings that use them, are uncertain.",
        "Raise judge.epochs.",
    )


_ALL = (
    collapsed, label_ignored, prior_hole, over_regularised, under_trained, overfitted, images_remembered,
    likelihood_mismatched, judge_unfit,
)  # fmt: skip
WORDS: dict[str, Callable[[Case, Finding], Words]] = {explain.__name__: explain for explain in _ALL}


def number(kl_weight: float) -> str:
    """A KL weight without an exponent, unless it is tiny."""
    return f"{kl_weight:,.0f}" if kl_weight >= 1000 else f"{kl_weight:.4g}"


def choice(ways: list[str]) -> str:
    """`a; b; or c` as a sentence."""
    joined = "; ".join([*ways[:-1], f"or {ways[-1]}" if ways[1:] else ways[-1]])
    return f"{joined[0].upper()}{joined[1:]}."


def _concatenate(case: Case) -> list[str]:
    """What helps the article's model most (docs/article.md), unless the model does it already."""
    known = case.conditioning not in (None, "concat")
    return ["concatenate the label with the latent (model.conditioning concat)"] if known else []


def _raise_weight(case: Case, to: str) -> list[str]:
    weight = case.aim.kl_weight
    return [f"raise objective.kl_weight from {number(weight)} towards {to}"] if weight < 1 else []
