"""What is wrong with a trained model: checks that turn figures into findings.

Each check is a row of CHECKS: figures, and the thresholds that they must be beyond. Its sentences and remedies are in
cli/findings.py. A check that finds nothing and lacks a figure is reported as unchecked.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pipeline.data.splits import PIXELS
from pipeline.measure.bound import FEW
from pipeline.measure.evaluator import COLLAPSED_DIVERSITY
from pipeline.model.gaussian import LOG_2PI
from pipeline.model.samples import SAMPLERS
from pipeline.training.fit import COLLAPSED_KL
from pipeline.training.objective import ObjectiveParams

Severity = Literal["severe", "warning", "note"]
Beyond = Literal["above", "below"]
HEALTHY = "healthy"


class Lacking(Exception):
    """A figure that a check needs is not known."""


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

    def __getitem__(self, name: str) -> float:
        """A figure. Raises Lacking where it is unknown or not finite."""
        value = self.figures.get(name)
        if value is None or not math.isfinite(value):
            raise Lacking(name)
        return value

    def losses(self) -> list[float]:
        """The validation loss after each epoch, at the KL weight aimed at, in nats per image.

        During a warm-up the epoch's own loss would say little, because the kl is cheap. Raises Lacking where fewer than
        two epochs are known.
        """
        names = ("validation/reconstruction", "validation/kl")
        rows = [[row[name] for name in names] for row in self.history if all(name in row for name in names)]
        if len(rows) < 2:
            raise Lacking("history")
        return [reconstruction + self.aim.kl_weight * kl for reconstruction, kl in rows]


@dataclass(frozen=True)
class Evidence:
    """A figure and the threshold that it is beyond."""

    figure: str
    value: float
    beyond: Beyond
    threshold: float


@dataclass(frozen=True)
class Finding:
    """Something that is wrong (severe, warning) or good to know (note)."""

    name: str
    severity: Severity
    evidence: tuple[Evidence, ...]


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


# Figures that follow from others. None: the case has no such figure.


def _loss_fall(case: Case) -> float:
    losses = case.losses()
    return losses[(len(losses) - 1) // 2] - losses[-1]


def _loss_rise(case: Case) -> float | None:
    losses = case.losses()
    best = losses.index(min(losses))
    if case.aim.schedule != "constant" and best < len(losses) // 2:
        return None  # under a KL schedule, early epochs minimise another loss
    return losses[-1] - losses[best]


def _reconstruction_share(case: Case) -> float | None:
    if case.aim.likelihood != "bernoulli":
        return None  # the reconstruction under a density can be negative: it is no share of anything
    return case["reconstruction"] / max(case["reconstruction"] + case["kl"], 1e-9)


def _grey_share(case: Case) -> float | None:
    if case.aim.likelihood != "bernoulli" or case.aim.pixels != "grey":
        return None
    return case["grey_floor"] / max(case["reconstruction"], 1e-9)


def sigma_ratio(case: Case) -> float | None:
    """σ of a Gaussian likelihood ÷ √mse, the σ that explains the errors best.

    The reconstruction under σ is 784 · (mse / 2σ² + log σ + ½ log 2π) nats per image.
    """
    if case.aim.likelihood not in ("gaussian", "sigma_learned", "sigma_optimal"):
        return None
    sigma = case["sigma"]
    relative = 2 * (case["reconstruction"] / PIXELS - math.log(sigma) - 0.5 * LOG_2PI)  # mse ÷ σ²
    return 1 / math.sqrt(max(relative, 1e-12))


# The checks


class Sign(NamedTuple):
    """A figure and the threshold that it must be beyond. value: computes the figure; without it, the name finds it."""

    figure: str
    beyond: Beyond
    threshold: float
    value: Callable[[Case], float | None] | None = None


class Check(NamedTuple):
    """A finding needs all signs of `all_of`, and one of `any_of` if there are any.

    unless: another finding, which explains this one already. It stands earlier in CHECKS.
    """

    severity: Severity
    all_of: tuple[Sign, ...] = ()
    any_of: tuple[Sign, ...] = ()
    unless: str = ""


CHECKS = {
    # The latents are unused (I(x; z∣y) ≤ kl, so a tiny kl is enough to know), or the decoder ignores them.
    "collapsed": Check("severe", any_of=(
        Sign("kl", "below", COLLAPSED_KL),
        Sign("active_units", "below", 1),
        Sign("diversity of both samplers", "below", COLLAPSED_DIVERSITY,
             lambda case: max(case[f"{name}/diversity"] for name in SAMPLERS)),
    )),
    # Samples show the digit that was asked for hardly more often than by chance, which is 0.1.
    "label_ignored": Check("severe", (Sign("prior/class_accuracy", "below", 0.2),)),
    # Latents of images do not fill the prior (Rosca 2018). At 2 this costs as much as all other errors together.
    # Samples that are better than real images count as equally good.
    "prior_hole": Check("warning", (
        Sign("prior/frechet ÷ fitted/frechet", "above", 2.0, lambda case: case["prior/frechet"]
             / max(case["fitted/frechet"], case.figures.get("real/frechet", 0.0), 1e-9)),
    )),
    # The KL term costs so much that the latents say little. One network, fully trained, has a diversity of 0.89 at
    # β = 1 and 0.77 at β = 3, and a share of 0.81 and 0.93.
    "over_regularised": Check("warning", (Sign("fitted/diversity", "below", 0.8),), (
        Sign("reconstruction share of −elbo", "above", 0.9, _reconstruction_share),
        Sign("kl_weight", "above", 1.0, lambda case: case.aim.kl_weight),
    ), unless="collapsed"),
    # The data has directions that pay at this weight, but training has not found them (weight/spectrum.py). Networks
    # trained to the end have at least 0.87 of the latents that it expects (docs/lab/spectrum.md).
    "latents_missed": Check("warning", (
        Sign("active_units ÷ spectrum/active_units", "below", 0.75,
             lambda case: case["active_units"] / max(case["spectrum/active_units"], 1)),
        Sign("spectrum/active_units", "above", 0),
    ), unless="collapsed"),
    # More epochs will help. The last few epochs would not show it: the learning rate falls to 0, so every run ends
    # flat. 2 nats are a fiftieth of the default's −elbo. The default's share is 0.09 after 10 epochs, 0.26 after 4.
    "under_trained": Check("warning", (
        Sign("fall of the validation loss in the last half", "above", 2.0, _loss_fall),
        Sign("its share of the whole fall", "above", 0.15,
             lambda case: _loss_fall(case) / max(max(case.losses()) - case.losses()[-1], 1e-9)),
    )),
    "overfitted": Check("warning", (
        Sign("rise of the validation loss since its best epoch", "above", 2.0, _loss_rise),
    )),
    # The fitted density has memorised training latents: at 2 nats they are e² ≈ 7 times as likely as held-out ones.
    "images_remembered": Check("warning", (
        Sign("fitted/log_density_train − fitted/log_density", "above", 2.0,
             lambda case: case["fitted/log_density_train"] - case["fitted/log_density"]),
    )),
    # The square of σ ÷ the best σ multiplies the effective KL weight, at these thresholds by 2 or by ½.
    "likelihood_mismatched": Check("warning", any_of=(
        Sign("sigma ÷ √mse", "above", math.sqrt(2), sigma_ratio),
        Sign("sigma ÷ √mse", "below", math.sqrt(0.5), sigma_ratio),
    )),
    # Under a Bernoulli likelihood, half of the reconstruction is the pixels' entropy, which no model can avoid.
    "grey_pixels": Check("note", (Sign("grey_floor ÷ reconstruction", "above", 0.5, _grey_share),)),
    # A few latents decide the bound, which is then loose, and not equally loose for two models.
    "nll_loose": Check("note", (Sign("effective_samples", "below", FEW),)),
    # The tolerant judge's errors can then move class_accuracy by a fiftieth, the plain one's blur its features.
    "judge_unfit": Check("warning", (
        Sign("judge_accuracy", "below", 0.98,
             lambda case: min(case["judge_accuracy"], case.figures.get("judge_accuracy_plain", 1.0))),
    )),
}  # fmt: skip


def diagnose(case: Case) -> Diagnosis:
    """Runs all checks on a case."""
    found: dict[str, Finding] = {}
    fine: list[str] = []
    unchecked: dict[str, str] = {}
    for name, check in CHECKS.items():
        needed, lacking = _beyond(check.all_of, case)
        further, also_lacking = _beyond(check.any_of, case)
        speaks = len(needed) == len(check.all_of) and (further or not check.any_of)
        if speaks and check.unless not in found:
            found[name] = Finding(name, check.severity, needed + further)
        elif lacking := lacking or also_lacking:
            unchecked[name] = lacking
        else:
            fine.append(name)
    by_severity = sorted(found.values(), key=lambda finding: ("severe", "warning", "note").index(finding.severity))
    return Diagnosis(tuple(by_severity), tuple(fine), unchecked)


def _beyond(signs: Sequence[Sign], case: Case) -> tuple[tuple[Evidence, ...], str | None]:
    """The signs that are beyond their thresholds, and the first figure that is lacking."""
    found, lacking = [], None
    for figure, beyond, threshold, compute in signs:
        try:
            value = case[figure] if compute is None else compute(case)
        except Lacking as missing:
            lacking = lacking or str(missing)
            continue
        if value is not None and (value > threshold if beyond == "above" else value < threshold):
            found.append(Evidence(figure, value, beyond, threshold))
    return tuple(found), lacking
