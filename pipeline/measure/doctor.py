"""What is wrong with a trained model: checks that turn figures into findings.

A finding names the figures it follows from and their thresholds. Its sentences and remedies are in cli/findings.py.
A check whose figures are not all known is skipped and reported as unchecked. To add a check: write a function from a
Case to a Finding or None, name it in CHECKS, explain its threshold, and give it words in cli/findings.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.data.splits import PIXELS
from pipeline.measure.evaluator import COLLAPSED_DIVERSITY
from pipeline.model.gaussian import LOG_2PI
from pipeline.model.samples import SAMPLERS
from pipeline.training.fit import COLLAPSED_KL
from pipeline.training.objective import ObjectiveParams

Severity = Literal["severe", "warning", "note"]
HEALTHY = "healthy"

LOW_ACCURACY = 0.2  # class_accuracy: twice that of guessing one digit of ten
SURE_JUDGE = 0.98  # judge_accuracy: below it, class_accuracy may be off by a fiftieth through the judge's own errors
HOLE = 2.0  # frechet of prior ÷ fitted: above it, the hole costs as much as all other errors together
LOW_DIVERSITY = 0.8  # one network, fully trained, has 0.89 at β = 1 and 0.77 at β = 3
HIGH_SHARE = 0.9  # reconstruction ÷ (reconstruction + kl): the same network has 0.81 at β = 1 and 0.93 at β = 3
FALLING = 0.15  # fall of the loss in the last half ÷ the whole fall: the default has 0.09 after 10 epochs, 0.26 after 4
NATS = 2.0  # per image, a fiftieth of the default's −elbo: a smaller change is not worth another run
MEMORISED = 2.0  # nats per latent: training latents are then e² ≈ 7 times as likely as held-out ones
WRONG_SIGMA = math.sqrt(2)  # σ ÷ the best σ: its square multiplies the effective KL weight, here by 2
HIGH_FLOOR = 0.5  # share of the reconstruction that no model can avoid


@dataclass(frozen=True)
class Evidence:
    """A figure and the threshold that it is beyond."""

    figure: str
    value: float
    beyond: Literal["at least", "at most"]
    threshold: float


@dataclass(frozen=True)
class Finding:
    """Something that is wrong (severe, warning) or good to know (note)."""

    name: str
    severity: Severity
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Case:
    """What is known of a model.

    figures: those of one split, by the names of measure/evaluator.py. history: the figures of each epoch's Record.
    prior, conditioning: model.prior and model.conditioning, None where unknown; remedies depend on them.
    """

    aim: ObjectiveParams
    figures: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    prior: str | None = None
    conditioning: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """findings: most severe first. fine: checks that found nothing. unchecked: a figure each of the others lacks."""

    findings: tuple[Finding, ...]
    fine: tuple[str, ...]
    unchecked: Mapping[str, str]

    @property
    def verdict(self) -> str:
        """The names of all findings but notes, or `healthy`."""
        return ", ".join(found.name for found in self.findings if found.severity != "note") or HEALTHY


class Lacking(Exception):
    """A figure that a check needs is not known."""


def diagnose(case: Case) -> Diagnosis:
    """Runs all checks on a case."""
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
    order = ("severe", "warning", "note")
    return Diagnosis(tuple(sorted(findings, key=lambda found: order.index(found.severity))), tuple(fine), unchecked)


# The checks


def collapsed(case: Case) -> Finding | None:
    """The latents are unused, or the decoder ignores them. I(x; z∣y) ≤ kl: so a tiny kl means unused latents."""
    kl, active = _figure(case, "kl"), case.figures.get("active_units", 1)
    diversities = [case.figures[f"{name}/diversity"] for name in SAMPLERS if f"{name}/diversity" in case.figures]
    evidence = []
    if kl <= COLLAPSED_KL:
        evidence.append(Evidence("kl", kl, "at most", COLLAPSED_KL))
    if active == 0:
        evidence.append(Evidence("active_units", active, "at most", 0))
    if diversities and max(diversities) < COLLAPSED_DIVERSITY:
        evidence.append(Evidence("diversity of both samplers", max(diversities), "at most", COLLAPSED_DIVERSITY))
    return Finding("collapsed", "severe", tuple(evidence)) if evidence else None


def label_ignored(case: Case) -> Finding | None:
    """Samples show the digit that was asked for hardly more often than by chance."""
    names = ("prior/class_accuracy", "fitted/class_accuracy")
    prior, fitted = (Evidence(name, _figure(case, name), "at most", LOW_ACCURACY) for name in names)
    if prior.value > LOW_ACCURACY:
        return None
    return Finding("label_ignored", "severe", (prior, fitted) if fitted.value <= LOW_ACCURACY else (prior,))


def prior_hole(case: Case) -> Finding | None:
    """The fitted sampler is much better than the prior (Rosca 2018). Being better than real images does not count."""
    prior, fitted = _figure(case, "prior/frechet"), _figure(case, "fitted/frechet")
    ratio = prior / max(fitted, case.figures.get("real/frechet", 0.0), 1e-9)
    if ratio < HOLE:
        return None
    return Finding("prior_hole", "warning", (Evidence("prior/frechet ÷ fitted/frechet", ratio, "at least", HOLE),))


def over_regularised(case: Case) -> Finding | None:
    """The KL term costs so much that the latents say little: samples are blurred and alike."""
    diversity, weight = _figure(case, "fitted/diversity"), case.aim.kl_weight
    reconstruction, kl = _figure(case, "reconstruction"), _figure(case, "kl")
    if diversity >= LOW_DIVERSITY or collapsed(case):
        return None
    evidence = [Evidence("fitted/diversity", diversity, "at most", LOW_DIVERSITY)]
    # The reconstruction under a density can be negative. Then it is no share of anything.
    share = reconstruction / (reconstruction + kl) if reconstruction > 0 < kl else 0.0
    if case.aim.likelihood == "bernoulli" and share >= HIGH_SHARE:
        evidence.append(Evidence("reconstruction share of −elbo", share, "at least", HIGH_SHARE))
    elif weight <= 1:
        return None
    if weight > 1:
        evidence.append(Evidence("kl_weight", weight, "at least", 1.0))
    return Finding("over_regularised", "warning", tuple(evidence))


def under_trained(case: Case) -> Finding | None:
    """The loss still fell much in the last half of the epochs, so more epochs will help.

    The last few epochs would not show it: the learning rate falls to 0, so every run ends flat.
    """
    found = losses(case)
    whole, last = max(found) - found[-1], found[(len(found) - 1) // 2] - found[-1]
    share = last / whole if whole > 0 else 0.0
    if last < NATS or share < FALLING:
        return None
    evidence = (
        Evidence("fall of the validation loss in the last half", last, "at least", NATS),
        Evidence("its share of the whole fall", share, "at least", FALLING),
    )
    return Finding("under_trained", "warning", evidence)


def overfitted(case: Case) -> Finding | None:
    """The loss on validation rose again after its best epoch."""
    found = losses(case)
    best = found.index(min(found))
    rise = found[-1] - found[best]
    if rise < NATS or (case.aim.schedule != "constant" and best < len(found) // 2):
        return None  # under a KL schedule, early epochs minimise another loss
    evidence = (Evidence("rise of the validation loss since its best epoch", rise, "at least", NATS),)
    return Finding("overfitted", "warning", evidence)


def images_remembered(case: Case) -> Finding | None:
    """The fitted density has memorised the latents of training images."""
    gap = _figure(case, "fitted/log_density_train") - _figure(case, "fitted/log_density")
    if gap < MEMORISED:
        return None
    evidence = (Evidence("fitted/log_density_train − fitted/log_density", gap, "at least", MEMORISED),)
    return Finding("images_remembered", "warning", evidence)


def likelihood_mismatched(case: Case) -> Finding | None:
    """A σ far from the best one for the decoder's errors, or a Bernoulli likelihood on grey pixels."""
    if case.aim.likelihood in ("gaussian", "sigma_learned", "sigma_optimal"):
        sigma = _figure(case, "sigma")
        ratio = sigma / best_sigma(_figure(case, "reconstruction"), sigma)
        if ratio >= WRONG_SIGMA:
            evidence = Evidence("sigma ÷ √mse", ratio, "at least", WRONG_SIGMA)
        elif ratio <= 1 / WRONG_SIGMA:
            evidence = Evidence("sigma ÷ √mse", ratio, "at most", 1 / WRONG_SIGMA)
        else:
            return None
        return Finding("likelihood_mismatched", "warning", (evidence,))
    if case.aim.likelihood != "bernoulli" or case.aim.pixels != "grey":
        return None
    floor, reconstruction = _figure(case, "grey_floor"), _figure(case, "reconstruction")
    share = floor / reconstruction if reconstruction > 0 else 0.0
    if share < HIGH_FLOOR:
        return None
    evidence = Evidence("grey_floor ÷ reconstruction", share, "at least", HIGH_FLOOR)
    return Finding("likelihood_mismatched", "note", (evidence,))


def judge_unfit(case: Case) -> Finding | None:
    """The judge misreads too many real images to be trusted with samples."""
    accuracy = _figure(case, "judge_accuracy")
    if accuracy >= SURE_JUDGE:
        return None
    return Finding("judge_unfit", "warning", (Evidence("judge_accuracy", accuracy, "at most", SURE_JUDGE),))


_ALL = (
    collapsed, label_ignored, prior_hole, over_regularised, under_trained, overfitted, images_remembered,
    likelihood_mismatched, judge_unfit,
)  # fmt: skip
CHECKS: dict[str, Callable[[Case], Finding | None]] = {check.__name__: check for check in _ALL}


def losses(case: Case) -> list[float]:
    """The validation loss after each epoch, at the KL weight aimed at, in nats per image.

    Raises Lacking where fewer than two epochs are known.
    """
    names = ("validation/reconstruction", "validation/kl")
    rows = [[row[name] for name in names] for row in case.history if all(name in row for name in names)]
    if len(rows) < 2:
        raise Lacking("history")
    return [reconstruction + case.aim.kl_weight * kl for reconstruction, kl in rows]


def best_sigma(reconstruction: float, sigma: float) -> float:
    """The σ that explains the errors best, √mse, from the reconstruction (nats per image) under another σ.

    >>> mse, sigma = 0.04, 0.1
    >>> reconstruction = 784 * (mse / (2 * sigma**2) + math.log(sigma) + 0.5 * math.log(2 * math.pi))
    >>> round(best_sigma(reconstruction, sigma), 6)
    0.2
    """
    mean_square = 2 * sigma**2 * (reconstruction / PIXELS - math.log(sigma) - 0.5 * LOG_2PI)
    return math.sqrt(max(mean_square, 1e-12))


def _figure(case: Case, name: str) -> float:
    value = case.figures.get(name)
    if value is None or not math.isfinite(value):
        raise Lacking(name)
    return value
