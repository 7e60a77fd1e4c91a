"""What is wrong with a trained model, and what to change: findings, each from named figures and a threshold.

Figures carry the names of metrics.json, flat: `kl`, `active_units`, `prior/frechet`. A check that lacks one of its
figures is left out and said to be; no check guesses. To add one: write a function from a Case to a Finding or None,
name it in CHECKS, and give its threshold a reason.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.data.splits import PIXELS
from pipeline.measure.evaluator import COLLAPSED_DIVERSITY
from pipeline.model.density import SAMPLERS
from pipeline.model.gaussian import LOG_2PI
from pipeline.training.fit import COLLAPSED_KL
from pipeline.training.objective import ObjectiveParams

Severity = Literal["severe", "warning", "note"]
HEALTHY = "healthy"

CHANCE = 0.2  # of class_accuracy: twice what guessing one of ten digits gives
SURE = 0.98  # of the judge on real images: below, a fiftieth of every class_accuracy may be its own error
HOLE = 2.0  # frechet of the prior ÷ that of the fitted sampler: the hole then costs as much as all else together
NARROW = 0.8  # of diversity: between β = 1 (0.89) and β = 3 (0.77) of one network trained to the end
SQUEEZED = 0.9  # of reconstruction in reconstruction + kl: the same network has 0.81 at β = 1 and 0.93 at β = 3
FALLING = 0.15  # of a run's whole fall, what its last half brought: the default has 0.09 after 10 epochs, 0.26 after 4
NATS = 2.0  # per image, a fiftieth of the default's −elbo: a smaller change is not worth another run
LEARNED = 2.0  # nats a code: training images' codes are then held for seven times as likely as unseen ones
OFF = math.sqrt(2)  # σ ÷ the best σ: the square of it weighs the KL, which is then pressed as by half or twice β
FLOOR = 0.5  # of the reconstruction that no model can avoid


@dataclass(frozen=True)
class Evidence:
    """A figure and the threshold that it is beyond."""

    figure: str
    value: float
    beyond: Literal["at least", "at most"]
    threshold: float


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or worth knowing (`note`)."""

    name: str
    severity: Severity
    evidence: tuple[Evidence, ...]
    says: str
    remedy: str


@dataclass(frozen=True)
class Case:
    """What is known of a model.

    figures: by the names of metrics.json, flat; history: the figures of each epoch's Record; the last two
    say of the model what remedies depend on, None where that is not known.
    """

    aim: ObjectiveParams
    figures: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    prior: str | None = None
    conditioning: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """findings: the gravest first; fine: checks that found nothing; unchecked: checks, and the figure each lacks."""

    findings: tuple[Finding, ...]
    fine: tuple[str, ...]
    unchecked: Mapping[str, str]

    @property
    def verdict(self) -> str:
        """The names of what is wrong, or `healthy`; notes are nothing wrong."""
        return ", ".join(found.name for found in self.findings if found.severity != "note") or HEALTHY


class Lacking(Exception):
    """A check's figure is not known."""


def diagnose(case: Case) -> Diagnosis:
    """All checks on a case."""
    findings: list[Finding] = []
    fine: list[str] = []
    unchecked: dict[str, str] = {}
    for name, check in CHECKS.items():
        try:
            found = check(case)
        except Lacking as missing:
            unchecked[name] = str(missing)
            continue
        if found is None:
            fine.append(name)
        else:
            findings.append(found)
    gravity = ("severe", "warning", "note")
    return Diagnosis(tuple(sorted(findings, key=lambda found: gravity.index(found.severity))), tuple(fine), unchecked)


# The checks


def collapsed(case: Case) -> Finding | None:
    """No code, or a decoder that is deaf to it. I(x; z∣y) ≤ kl: below a tenth of a nat the code can tell nothing."""
    kl, weight = _figure(case, "kl"), case.aim.kl_weight
    diversities = [case.figures[f"{name}/diversity"] for name in SAMPLERS if f"{name}/diversity" in case.figures]
    evidence = []
    if kl <= COLLAPSED_KL:
        evidence.append(Evidence("kl", kl, "at most", COLLAPSED_KL))
    if case.figures.get("active_units", 1) == 0:
        evidence.append(Evidence("active_units", 0, "at most", 0))
    if diversities and max(diversities) < COLLAPSED_DIVERSITY:
        evidence.append(Evidence("diversity of either sampler", max(diversities), "at most", COLLAPSED_DIVERSITY))
    if not evidence:
        return None
    empty = kl <= COLLAPSED_KL or case.figures.get("active_units", 1) == 0
    says = (
        "The latent code carries nothing: every image of a digit gets the same code, and every sample is the same."
        if empty
        else "The decoder is deaf to the code: samples of a digit are all alike, though the codes differ."
    )
    remedy = (
        f"Lower objective.kl_weight from {_weight(weight)} to 1, the evidence lower bound, or below (`cvae weight` "
        "converts a weight of the article's)."
        if weight > 1
        else "Raise objective.capacity."
        if case.aim.schedule == "capacity"
        else "Let the code be found before it is pressed: objective.schedule warmup, or objective.free_bits 0.1."
    )
    return Finding("collapsed", "severe", tuple(evidence), says, remedy)


def label_ignored(case: Case) -> Finding | None:
    """The judge reads samples as what was asked for no oftener than by chance."""
    prior, fitted = _figure(case, "prior/class_accuracy"), _figure(case, "fitted/class_accuracy")
    if prior > CHANCE:
        return None
    evidence = [Evidence("prior/class_accuracy", prior, "at most", CHANCE)]
    says = "Samples from the prior are whatever digit the code says: the label that was asked for is not heard."
    if fitted <= CHANCE:
        evidence.append(Evidence("fitted/class_accuracy", fitted, "at most", CHANCE))
        says = "Samples are not the digit that was asked for, wherever their codes come from: the label is ignored."
    ways = _beside(case)
    if case.aim.kl_weight < 1:
        ways.append(
            f"raise objective.kl_weight from {_weight(case.aim.kl_weight)} towards 1: a dear code leaves it out"
        )
    ways.append("let the encoder see the label, so that the code can leave it out (model.encoder_sees_label true)")
    return Finding("label_ignored", "severe", tuple(evidence), says, _choice(ways))


def prior_hole(case: Case) -> Finding | None:
    """The fitted sampler is much better than the prior (Rosca 2018). Both at the ceiling is no hole."""
    prior, fitted = _figure(case, "prior/frechet"), _figure(case, "fitted/frechet")
    ratio = prior / max(fitted, case.figures.get("real/frechet", 0.0), 1e-9)
    if ratio < HOLE:
        return None
    says = "The codes of real images don't fill the prior, and codes drawn from it fall where nothing was learned"
    first, second = (case.figures.get(f"{name}/class_accuracy") for name in SAMPLERS)
    if first is not None and second is not None:
        says += f": {first:.0%} of what they become is the digit asked for, against {second:.0%} with `fitted`"
    ways = ["draw with sample.sampler fitted, which needs no training", *_beside(case)]
    if case.aim.kl_weight < 1:
        ways.append(f"raise objective.kl_weight from {_weight(case.aim.kl_weight)} towards 1 to 3")
    if case.prior == "standard":
        ways.append("let the prior be learned (model.prior mixture)")
    evidence = (Evidence("prior/frechet ÷ fitted/frechet", ratio, "at least", HOLE),)
    return Finding("prior_hole", "warning", evidence, f"{says}.", _choice(ways))


def over_regularised(case: Case) -> Finding | None:
    """The KL costs so much that the code tells little: blurred digits, each like the next."""
    diversity, weight = _figure(case, "fitted/diversity"), case.aim.kl_weight
    reconstruction, kl = _figure(case, "reconstruction"), _figure(case, "kl")
    if diversity >= NARROW or collapsed(case):
        return None
    evidence = [Evidence("fitted/diversity", diversity, "at most", NARROW)]
    # A density's reconstruction may be negative, and is then no share of anything.
    share = reconstruction / (reconstruction + kl) if reconstruction > 0 < kl else 0.0
    if case.aim.likelihood == "bernoulli" and share >= SQUEEZED:
        evidence.append(Evidence("reconstruction share of −elbo", share, "at least", SQUEEZED))
    elif weight <= 1:
        return None
    if weight > 1:
        evidence.append(Evidence("kl_weight", weight, "at least", 1.0))
    says = f"The code is pressed to {kl:.3g} nats an image: samples are blurred, and a digit's are too much alike."
    remedy = (
        f"Raise objective.capacity from {case.aim.capacity:g}."
        if case.aim.schedule == "capacity"
        else f"Lower objective.kl_weight from {_weight(weight)}{' towards 1' if weight > 1 else ''}."
        if weight > 0.3
        else "Give the model more room (model.preset strong, a larger model.latent_size)."
    )
    return Finding("over_regularised", "warning", tuple(evidence), says, remedy)


def under_trained(case: Case) -> Finding | None:
    """The last half of the epochs still brought much: so will more of them.

    Not the last few: the learning rate falls to 0, and with it every run comes to rest, however early.
    """
    losses = _losses(case)
    whole, last = max(losses) - losses[-1], losses[(len(losses) - 1) // 2] - losses[-1]
    share = last / whole if whole > 0 else 0.0
    if last < NATS or share < FALLING:
        return None
    evidence = (
        Evidence("validation loss, fall in the last half", last, "at least", NATS),
        Evidence("its share of the whole fall", share, "at least", FALLING),
    )
    epochs = len(losses)
    says = f"The loss on validation was still falling, by {last:.3g} nats an image in the last half of {epochs} epochs."
    return Finding(
        "under_trained",
        "warning",
        evidence,
        says,
        f"Train for {2 * epochs} epochs in place of {epochs} (train.epochs; a study's trial: tune.epochs).",
    )


def overfitted(case: Case) -> Finding | None:
    """What was learned of training images no longer holds for others."""
    losses = _losses(case)
    best = min(range(len(losses)), key=losses.__getitem__)
    rise = losses[-1] - losses[best]
    if rise < NATS or (case.aim.schedule != "constant" and best < len(losses) // 2):
        return None  # under a schedule the early epochs had another aim
    evidence = (Evidence("validation loss, rise since its best", rise, "at least", NATS),)
    says = f"The loss on validation was best after epoch {best + 1}, and rose by {rise:.3g} nats an image since."
    remedy = (
        "Move the images that it learns from, or move them more (train.augment). Or, if nll or elbo counts, train for "
        f"{best + 1} epochs in place of {len(losses)} (train.epochs; a study's trial: tune.epochs). Samples may have "
        "gained all the same: compare their frechet before you shorten it."
    )
    return Finding("overfitted", "warning", evidence, says, remedy)


def images_remembered(case: Case) -> Finding | None:
    """The fitted density knows training images' codes, not where codes lie."""
    unseen, known = _figure(case, "fitted/log_density"), _figure(case, "fitted/log_density_train")
    if known - unseen < LEARNED:
        return None
    evidence = (Evidence("fitted/log_density_train − fitted/log_density", known - unseen, "at least", LEARNED),)
    says = (
        f"The fitted density is {known - unseen:,.1f} nats higher at codes of training images than at those of others: "
        "its samples keep close to training images, which frechet, diversity and coverage don't hold against it."
    )
    remedy = (
        "Fewer Gaussians (sample.components): the best density is the one with the highest fitted/log_density, which "
        "`cvae doctor` of a model file shows on validation."
    )
    return Finding("images_remembered", "warning", evidence, says, remedy)


def likelihood_mismatched(case: Case) -> Finding | None:
    """A σ far from the one that explains the errors best, or a Bernoulli's cross entropy on grey pixels."""
    if case.aim.likelihood in ("gaussian", "sigma_learned", "sigma_optimal"):
        return _sigma_is_off(case)
    if case.aim.likelihood != "bernoulli" or case.aim.pixels != "grey":
        return None
    floor, reconstruction = _figure(case, "grey_floor"), _figure(case, "reconstruction")
    share = floor / reconstruction if reconstruction > 0 else 0.0
    if share < FLOOR:
        return None
    evidence = (Evidence("grey_floor ÷ reconstruction", share, "at least", FLOOR),)
    says = (
        f"Of the reconstruction of {reconstruction:.1f} nats, {floor:.1f} are the entropy of the grey pixels, which no "
        "model gets below: under a Bernoulli a grey pixel is a cross entropy, and nll is of no density."
    )
    remedy = (
        "Nothing for the samples. To compare nll with others', objective.pixels binary; for a density of grey pixels, "
        "objective.likelihood continuous_bernoulli or sigma_optimal."
    )
    return Finding("likelihood_mismatched", "note", evidence, says, remedy)


def judge_unfit(case: Case) -> Finding | None:
    """A judge that misreads real images says little of samples."""
    accuracy = _figure(case, "judge_accuracy")
    if accuracy >= SURE:
        return None
    evidence = (Evidence("judge_accuracy", accuracy, "at most", SURE),)
    says = "The judge misreads too many real images: what it says of samples, and all that follows from it, is unsure."
    return Finding("judge_unfit", "warning", evidence, says, "Raise judge.epochs.")


CHECKS: dict[str, Callable[[Case], Finding | None]] = {
    "collapsed": collapsed,
    "label_ignored": label_ignored,
    "prior_hole": prior_hole,
    "over_regularised": over_regularised,
    "under_trained": under_trained,
    "overfitted": overfitted,
    "images_remembered": images_remembered,
    "likelihood_mismatched": likelihood_mismatched,
    "judge_unfit": judge_unfit,
}


def _figure(case: Case, name: str) -> float:
    value = case.figures.get(name)
    if value is None or not math.isfinite(value):
        raise Lacking(name)
    return value


def _beside(case: Case) -> list[str]:
    """What helps the article's model most (docs/article.md), where it isn't so already."""
    known = case.conditioning not in (None, "concat")
    return ["put the label beside the code, not into it (model.conditioning concat)"] if known else []


def _weight(kl_weight: float) -> str:
    """A KL weight without an exponent where a person would not write one."""
    return f"{kl_weight:,.0f}" if kl_weight >= 1000 else f"{kl_weight:.4g}"


def _choice(ways: Sequence[str]) -> str:
    """`a; b; or c` as a sentence."""
    words = "; ".join([*ways[:-1], f"or {ways[-1]}" if ways[1:] else ways[-1]])
    return f"{words[0].upper()}{words[1:]}."


def _losses(case: Case) -> list[float]:
    """The loss on validation after each epoch, at the KL weight that the run aimed at, in nats per image."""
    beta = case.aim.kl_weight
    rows = [(row.get("validation/reconstruction"), row.get("validation/kl")) for row in case.history]
    losses = [first + beta * kl for first, kl in rows if first is not None and kl is not None]
    if len(losses) < 2:
        raise Lacking("history")
    return losses


def _sigma_is_off(case: Case) -> Finding | None:
    sigma, reconstruction = _figure(case, "sigma"), _figure(case, "reconstruction")
    best = best_sigma(reconstruction, sigma)
    ratio = sigma / best
    if 1 / OFF < ratio < OFF:
        return None
    above = ratio >= OFF
    evidence = (Evidence("sigma ÷ √mse", ratio, "at least" if above else "at most", OFF if above else 1 / OFF),)
    says = (
        f"σ is {sigma:.3g}, but the decoder's errors are of {best:.3g}: the KL is pressed as a weight of "
        f"{_weight(case.aim.kl_weight * ratio**2)} would at the best σ, not {_weight(case.aim.kl_weight)}."
    )
    remedy = (
        f"objective.sigma {best:.2g}, or objective.likelihood sigma_optimal, which finds it."
        if case.aim.likelihood == "gaussian"
        else "It is that of errors on training images, which are smaller by now: train for fewer epochs (train.epochs)."
        if case.aim.likelihood == "sigma_optimal"
        else "Train longer, or take objective.likelihood sigma_optimal, which has nothing to find."
    )
    return Finding("likelihood_mismatched", "warning", evidence, says, remedy)


def best_sigma(reconstruction: float, sigma: float) -> float:
    """The σ that explains the errors best, √mse, from −log p under another σ, nats per image (likelihood.gaussian).

    >>> mse, sigma = 0.04, 0.1
    >>> reconstruction = 784 * (mse / (2 * sigma**2) + math.log(sigma) + 0.5 * math.log(2 * math.pi))
    >>> round(best_sigma(reconstruction, sigma), 6)
    0.2
    """
    mean_square = 2 * sigma**2 * (reconstruction / PIXELS - math.log(sigma) - 0.5 * LOG_2PI)
    return math.sqrt(max(mean_square, 1e-12))
