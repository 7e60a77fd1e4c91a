"""The source article's experiment in our units: what its KL weights do to its model, and what else helps.

The article's loss is ours at β = w · 784 · B (weight/convert.py), up to a constant factor, which Adam ignores. So our
objective at that β trains its model. All figures are measured on validation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from pipeline.base.errors import UserError
from pipeline.data.splits import Split
from pipeline.measure.evaluator import Evaluator
from pipeline.model.cvae import CVAE, PRESETS, Architecture, Conditioning, build
from pipeline.model.density import posterior_samples
from pipeline.training import population
from pipeline.training.fit import Record, TrainParams
from pipeline.training.objective import ELBO
from pipeline.weight.convert import from_article_weight

BATCH_SIZE = 128
LEARNING_RATE = 2e-3  # for our loss; Adam ignores the factor between the two losses
TUNED = 1e-5  # the weight at which the article arrives, starting from 1
WEIGHTS = (1.0, 1e-3, 1e-4, TUNED, 1e-6)  # of the article's own model: from collapse to below the evidence lower bound
CONTRAST = (1.0, TUNED)  # of the other shapes
CONDITIONINGS: tuple[Conditioning, ...] = ("sum", "mean", "product", "concat")
AIM = ELBO  # each member has a KL weight of its own


@dataclass(frozen=True)
class Member:
    """One training: a shape of the article's model, and a weight as the article writes it."""

    weight: float
    conditioning: Conditioning = "sum"
    encoder_sees_label: bool = False

    @property
    def kl_weight(self) -> float:
        return from_article_weight(self.weight, BATCH_SIZE)

    @property
    def architecture(self) -> Architecture:
        return replace(PRESETS["article"], conditioning=self.conditioning, encoder_sees_label=self.encoder_sees_label)

    @property
    def is_articles(self) -> bool:
        return self.architecture == PRESETS["article"]


def stacks() -> list[list[Member]]:
    """The members by shape, the article's own first. Members of one shape train at once."""
    shapes = [(conditioning, sees) for sees in (False, True) for conditioning in CONDITIONINGS]
    others = [[Member(weight, *shape) for weight in CONTRAST] for shape in shapes]
    return [[Member(weight) for weight in WEIGHTS], *(stack for stack in others if not stack[0].is_articles)]


def start(stack: Sequence[Member], params: TrainParams, device: torch.device) -> population.Population:
    """The untrained members of one shape, all with the same first weights."""
    models = [build(member.architecture, params.seed, AIM.likelihood) for member in stack]
    return population.start(models, [member.kl_weight for member in stack], params, device)


def fit(
    stack: Sequence[Member], members: population.Population, train: Split, validation: Split, params: TrainParams
) -> Iterator[dict[int, Record]]:
    """population.fit. Raises UserError where a member diverges, as its figures could not be compared."""
    for records in population.fit(members, train, validation, params, AIM):
        for row in (row for row, record in records.items() if record.diverged):
            raise UserError(
                f"the article's weight {stack[row].weight:g} diverged in epoch {members.epoch} at train.learning_rate "
                f"{params.learning_rate:g}: try {params.learning_rate / 10:g}"
            )
        yield records


def measure(model: CVAE, evaluator: Evaluator, components: int) -> dict[str, float]:
    """The figures of a trained member on the evaluator's split: `elbo`, `digit_in_latent`, `prior/frechet`, …"""
    density, figures = evaluator.density(model, components), evaluator.fit_figures(model)
    figures["digit_in_latent"] = digit_in_latent(model, evaluator.train, evaluator.split, evaluator.seed)
    return figures | evaluator.samples(model, density)


def digit_in_latent(model: CVAE, train: Split, held_out: Split, seed: int) -> float:
    """Share of held-out images whose digit a linear discriminant, fitted to `train`, reads from a latent.

    Latents are samples of q(z∣x,y), not its means. The means of a collapsed model may differ enough to tell digits
    apart, but by so little that no decoder notices.
    """
    known, unseen = (
        posterior_samples(model, split, AIM.pixels, noise).double().cpu().numpy()
        for split, noise in ((train, seed), (held_out, seed + 1))
    )
    discriminant = LinearDiscriminantAnalysis().fit(known, train.labels.cpu().numpy())
    return float(discriminant.score(unseen, held_out.labels.cpu().numpy()))
