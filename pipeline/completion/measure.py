"""How good completions are: likelihood, squared error and diversity, by 1, 2 or 3 visible quadrants.

docs/completion.md says what each figure means.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from pipeline.base.params import params
from pipeline.completion.model import Completer, log_likelihood, sample
from pipeline.completion.views import Binarised, published_view, shares, veiled
from pipeline.data.splits import CLASSES, PIXELS, SIDE, Split
from pipeline.measure.judge import Reader
from pipeline.measure.metrics import mean_distance

NUMBERS = (1, 2, 3)  # of visible quadrants
SEVERAL = 10  # completions of an image, of which the best counts, or which are compared with each other
COMPARED = 1000  # images whose completions are compared with each other


@params
class EvaluateCompletionParams:
    """The section `evaluate_completion` of params.yaml."""

    images: Annotated[int | None, Field(ge=CLASSES)]
    """test images, each digit in its share; blank: all 10,000"""
    draws: Annotated[int, Field(ge=1)]
    """k of the importance-weighted bound"""
    seed: Annotated[int, Field(ge=0, le=2**31)]
    """of drawn pixels, of the bound and of completions"""


class Estimate(NamedTuple):
    """A mean over images in nats per image, and its standard error.

    effective_samples: the median over images, out of the k weights of the bound.
    """

    mean: float
    error: float
    effective_samples: float


def evaluate(
    completer: Completer,
    network: Completer,
    judge: Reader,
    split: Split,
    params: EvaluateCompletionParams,
    told: Callable[[str, Estimate], None],
) -> dict[str, float]:
    """All figures: `drawn/1/cvae`, `squared_error/1/network`, `diversity/1/distance`.

    Of each likelihood also `standard_error/drawn/1/cvae`, and of each bound `effective_samples/drawn/1/cvae`.

    `told` is called with each likelihood's name as soon as it is measured.
    """
    some = shares(split, params.images)
    figures: dict[str, float] = {}
    models = {"cvae": (completer, False), "cvae_label": (completer, True), "network": (network, False)}
    kinds: tuple[Binarised, ...] = ("thresholded", "drawn")
    for pixels in kinds:
        for number in NUMBERS:
            for kind, (model, label) in models.items():
                name = f"{pixels}/{number}/{kind}"
                estimate = negative_log_likelihood(model, some, pixels, number, label, params.draws, params.seed)
                figures |= {name: estimate.mean, f"standard_error/{name}": estimate.error}
                if model.latent_size:
                    figures[f"effective_samples/{name}"] = estimate.effective_samples
                told(name, estimate)
    for number in NUMBERS:
        errors = squared_errors(completer, network, some, number, params.seed)
        figures |= {f"squared_error/{number}/{name}": value for name, value in errors.items()}
        differences = diversity(completer, judge, some, number, params.seed)
        figures |= {f"diversity/{number}/{name}": value for name, value in differences.items()}
    return figures


def negative_log_likelihood(
    model: Completer, split: Split, pixels: Binarised, number: int, label: bool, draws: int, seed: int
) -> Estimate:
    """−log p(hidden∣visible) by the bound with k = `draws`; the deterministic network's is exact."""
    source = torch.Generator(split.images.device).manual_seed(seed)
    images, given = published_view(split, pixels, number, label, seed)
    measured = log_likelihood(model, images, given, draws if model.latent_size else 1, source)
    bound, effective = measured.log_likelihood.double(), float(measured.effective_samples.median())
    return Estimate(-float(bound.mean()), float(bound.std()) / len(bound) ** 0.5, effective)


def squared_errors(completer: Completer, network: Completer, split: Split, number: int, seed: int) -> dict[str, float]:
    """Squared error over an image's hidden pixels, thresholded: of the network's prediction, of one completion, and of
    the one of ten completions that is nearest to the truth."""
    source = torch.Generator(split.images.device).manual_seed(seed)
    images, given = published_view(split, "thresholded", number, label=False, seed=seed)
    total = torch.zeros(3, dtype=torch.float64, device=images.device)
    for x, row in zip(images.flatten(1).split(500), given.split(500), strict=True):
        several = (sample(completer, row, SEVERAL, source) - x).square().sum(-1)
        alone = (sample(network, row, 1, source) - x).square().sum(-1)
        total += torch.stack([alone.sum(), several[0].sum(), several.amin(0).sum()])
    names = ("network", "cvae", f"best_of_{SEVERAL}")
    return dict(zip(names, (total / len(split)).tolist(), strict=True))


def diversity(completer: Completer, judge: Reader, split: Split, number: int, seed: int) -> dict[str, float]:
    """How much ten completions of an image differ, in the mean over up to 1,000 images.

    distance: mean pairwise distance over the hidden pixels ÷ that of the real images over the same pixels. It is 1 for
    completions that ignore the visible part. digits: how many different digits the judge reads among the ten.
    """
    source = torch.Generator(split.images.device).manual_seed(seed)
    images, given = published_view(shares(split, COMPARED), "thresholded", number, label=False, seed=seed)
    hidden = given[0, :PIXELS] == 0
    several = torch.cat([sample(completer, row, SEVERAL, source) for row in given.split(500)], dim=1)
    distance = torch.stack([mean_distance(rows[:, hidden]) for rows in several.unbind(1)]).mean()
    read = judge(several.reshape(-1, 1, SIDE, SIDE)).labels.view(SEVERAL, -1)
    digits = (read[None] == torch.arange(CLASSES, device=read.device)[:, None, None]).any(1).sum(0)
    return {
        "distance": float(distance / mean_distance(images.flatten(1)[:, hidden])),
        "digits": float(digits.float().mean()),
    }


def examples(completer: Completer, network: Completer, split: Split, number: int, several: int, seed: int) -> Tensor:
    """Rows to look at, one for the first image of each digit: (10 · (several + 3), 1, 28, 28) in [0, 1].

    A row has the visible part, the network's prediction, `several` completions, and the whole image.
    """
    few = split[split.first_rows(1)]
    images, given = published_view(few, "thresholded", number, label=False, seed=seed)
    source = torch.Generator(images.device).manual_seed(seed)
    whole = images.flatten(1)
    columns = [veiled(whole, given[:, :PIXELS] != 0), *sample(network, given, 1, source)]
    columns += [*sample(completer, given, several, source), whole]
    return torch.stack(columns, 1).view(-1, 1, SIDE, SIDE)
