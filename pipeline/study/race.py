"""Which weights can be told apart: paired comparisons of all weights over several seeds.

A seed gives all weights the same first weights, data order and noise, so that its own effect cancels in differences.
Figures are (W, S): a row for each weight, a column for each seed, lower is better, NaN where nothing was trained.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

ERROR_RATE = 0.05  # of dropping the truly best weight at any time
FEWEST = 3  # degrees of freedom, below which a standard deviation is only a guess


class Compared(NamedTuple):
    """worse: (W,), those that another weight beats beyond chance. means: (W,), without the seeds' own effects.

    best: the row with the lowest mean of those that are not worse and have the most seeds. sigma: the standard
    deviation of one figure around its weight's and its seed's effects; NaN where it is not known.
    """

    worse: np.ndarray
    means: np.ndarray
    best: int
    sigma: float


def compare(figures: np.ndarray, comparisons: int, looks: int) -> Compared:
    """Tests each weight against every other.

    The figure of weight w with seed s is mean_w + effect_s + noise, with noise of one standard deviation σ, estimated
    by least squares from all figures. Weight w is worse where another weight's mean over their n common seeds is
    lower by more than t · σ · √(2 ÷ n), t being the quantile of Student's distribution at 1 − ERROR_RATE ÷
    (comparisons · looks). By Bonferroni's inequality the best weight is never called worse, at any of the looks, with
    probability 1 − ERROR_RATE or more. So those left are a subset selection (Gupta 1965; Hsu 1984: multiple comparisons
    with the best), and dropping the others while it runs is a race (Maron & Moore 1994) with the blocked t test of
    Birattari 2002.

    comparisons: how many rivals a weight will have in the whole study. looks: how often it is tested, at most.
    """
    known = ~np.isnan(figures)
    means, sigma, freedom = _additive(figures, known)
    worse = np.zeros(len(figures), bool)
    if freedom >= FEWEST:
        level = ERROR_RATE / (max(1, comparisons) * max(1, looks))
        quantile = float(stdtrit(freedom, 1 - level))
        count = known.astype(float) @ known.T  # (W, W): of common seeds
        total = np.where(known, figures, 0.0) @ known.T
        above = (total - total.T) / np.maximum(count, 1)  # how much higher a row is than each other over common seeds
        worse = ((above > quantile * sigma * np.sqrt(2 / np.maximum(count, 1))) & (count > 0)).any(1)
    counts = np.where(worse, 0, known.sum(1))
    best = int(np.where(counts == counts.max(), means, np.inf).argmin())
    return Compared(worse, means, best, sigma if freedom >= 1 else math.nan)


def hull(weights: Sequence[float], worse: Sequence[bool]) -> tuple[list[float], list[float | None]]:
    """The lowest and the highest weight that is not worse, and the nearest ones outside; None where there is none.

    >>> hull([0.1, 0.2, 1.0, 3.0], [True, False, False, True])
    ([0.2, 1.0], [0.1, 3.0])
    """
    kept = [weight for weight, is_worse in zip(weights, worse, strict=True) if not is_worse]
    low, high = min(kept), max(kept)
    below, above = ([weight for weight in weights if weight < low], [weight for weight in weights if weight > high])
    return [low, high], [max(below, default=None), min(above, default=None)]


def _additive(figures: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, float, int]:
    """Least-squares means (W,), σ, and σ's degrees of freedom, of mean_w + effect_s + noise, whatever is missing.

    The means are eliminated, so that only S × S equations are left: a study has few seeds and may have many weights.
    """
    count = np.maximum(known.sum(1), 1)
    own = np.where(known, figures, 0.0).sum(1) / count  # (W,)
    matrix = np.diag(known.sum(0)) - (known / count[:, None]).T @ known
    effects, _, rank, _ = np.linalg.lstsq(matrix, np.where(known, figures - own[:, None], 0.0).sum(0), rcond=1e-9)
    means = own - known @ effects / count
    left = (figures - means[:, None] - effects)[known]
    freedom = int(known.sum() - known.any(1).sum() - rank)
    return means + effects[known.any(0)].mean(), math.sqrt(float(left @ left) / max(1, freedom)), freedom
