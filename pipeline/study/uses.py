"""What a weight is for, and the best weight for each use, with the weights that can't be told apart from it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.study.race import Compared, compare, hull
from pipeline.study.space import Setting


class Use(NamedTuple):
    """figure: what decides. sampler: whose samples must be read as the digit asked for, or None."""

    figure: str
    sampler: str | None = None
    lower_is_better: bool = True


USES = {
    "draw_fitted": Use("validation/fitted/frechet", "fitted"),
    "draw_prior": Use("validation/prior/frechet", "prior"),
    "reconstruct": Use("validation/reconstruction"),
    "explain": Use("validation/nll"),
}
BALANCE = "balance"  # the weight whose worst loss over USES is smallest, each as a share of that use's range
NAMES = (*USES, BALANCE)
OF_SAMPLERS = ("frechet", "frechet_tolerant", "class_accuracy", "diversity")
SHOWN = (
    *(f"validation/{sampler}/{name}" for sampler in ("fitted", "prior") for name in OF_SAMPLERS),
    *(f"validation/{name}" for name in ("reconstruction", "kl", "nll", "active_units")),
)  # the figures of an answer


@dataclass(frozen=True)
class Answer:
    """The best weight for one use.

    trial: the best one. interval: the lowest and the highest weight tried that can't be told apart from it. outside:
    the nearest tried ones below and above, which are worse for certain; None where the interval ends the range. values,
    errors: means of figures at the best weight, and their standard errors where there are several seeds. feasible:
    whether its samples reach tune.least_class_accuracy; False only where no weight's do. tolerant: the same by the
    judge that forgives blur.
    """

    trial: int
    kl_weight: float
    interval: list[float]
    outside: list[float | None]
    values: dict[str, float]
    errors: dict[str, float]
    feasible: bool
    tolerant: "Answer | None" = None

    @property
    def judges_disagree(self) -> bool:
        """Whether what is best by the tolerant judge is worse for certain by the plain one."""
        low, high = self.interval
        return self.tolerant is not None and not low <= self.tolerant.kl_weight <= high


def decides(name: str) -> str | None:
    """The figure that decides a use, or an objective under its own name; None of the balance."""
    return USES[name].figure if name in USES else None if name == BALANCE else name


def answers(seeds: pd.DataFrame, setting: Setting) -> dict[str, Answer]:
    """The answer for each use that was measured, and for each objective that no use has, by its full name.

    seeds: a row for each trial and seed, as Study.seeds gives it.
    """
    found = {}
    for name, use in uses_of(seeds, setting).items():
        answer = _answer(seeds, *_losses(seeds, use, setting), setting)
        tolerant = use._replace(figure=f"{use.figure}_tolerant")
        if tolerant.figure in seeds:
            answer = replace(answer, tolerant=_answer(seeds, *_losses(seeds, tolerant, setting), setting))
        found[name] = answer
    if found.keys() >= USES.keys():
        found[BALANCE] = _answer(seeds, _worst(seeds), True, setting)
    return found


def main_answer(found: Mapping[str, Answer], setting: Setting) -> Answer | None:
    """The answer for the study's only objective; None where it has several, or no trial yet."""
    first, *others = setting.objectives()
    return None if others else next((answer for name, answer in found.items() if decides(name) == first), None)


def undecided(seeds: pd.DataFrame, setting: Setting) -> set[int]:
    """The trials that another seed could decide about: not yet worse for some use, and not alone in that."""
    uses = uses_of(seeds, setting)
    tables = [_losses(seeds, use, setting)[0] for use in uses.values()]
    if uses.keys() >= USES.keys():
        tables.append(_worst(seeds))
    found: set[int] = set()
    for losses in tables:
        left = losses.index[~_compared(losses, setting).worse]
        if len(left) > 1:
            found |= {int(trial) for trial in left}
    return found


def summary(seeds: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """A row for each trial: seeds, its params, the means of its figures, and beside each its standard error, `…_error`.

    The standard error is the spread over the trial's seeds ÷ √seeds; it is missing with one seed. It says how far the
    mean may move with other seeds. Differences between weights are surer than that, since they share their seeds.
    """
    groups = seeds.groupby("trial")
    count = groups.size()
    figures = [name for name in seeds.columns if name.startswith("validation/")]
    errors = groups[figures].std().div(np.sqrt(count), axis=0).add_suffix("_error")
    params = groups[list(setting.space())].first()
    return pd.concat([count.rename("seeds"), params, groups[figures].mean(), errors], axis=1)


def uses_of(figures: pd.DataFrame, setting: Setting) -> dict[str, Use]:
    """The uses that a table has figures for, and the objectives that are not among them, by their full names."""
    known = {use.figure for use in USES.values()}
    others = {
        figure: Use(figure, setting.tune.sampler_of_latents, lower_is_better)
        for figure, lower_is_better in setting.objectives().items()
        if figure not in known
    }
    return {name: use for name, use in (USES | others).items() if use.figure in figures}


def _losses(seeds: pd.DataFrame, use: Use, setting: Setting) -> tuple[pd.DataFrame, bool]:
    """A use's figure, a row per trial and a column per seed, lower is better; and whether any trial is feasible.

    Without the trials whose samples are too often not the digit asked for, unless all are such.
    """
    losses = _lower(seeds, use)
    accuracy, least = f"validation/{use.sampler}/class_accuracy", setting.tune.least_class_accuracy
    if use.sampler is None or least is None or accuracy not in seeds:
        return losses, True
    reached = seeds.groupby("trial")[accuracy].mean().reindex(losses.index) >= least
    return (losses[reached], True) if reached.any() else (losses, False)


def _lower(seeds: pd.DataFrame, use: Use) -> pd.DataFrame:
    """Noise in frechet grows in proportion to it, and so its logarithm is compared."""
    table = seeds.pivot_table(index="trial", columns="seed", values=use.figure)
    if "frechet" in use.figure:
        return pd.DataFrame(np.log(table))
    return table if use.lower_is_better else -table


def _worst(seeds: pd.DataFrame) -> pd.DataFrame:
    """Each trial's and seed's worst loss over USES: 0 at the best trial's mean, 1 at the worst trial's."""
    shares = []
    for use in USES.values():
        table = _lower(seeds, use)
        mean = table.mean(axis=1)
        shares.append((table - mean.min()) / max(mean.max() - mean.min(), 1e-12))
    return pd.DataFrame(np.maximum.reduce(shares), shares[0].index, shares[0].columns)


def _compared(losses: pd.DataFrame, setting: Setting) -> Compared:
    tune = setting.tune
    return compare(losses.to_numpy(), max(tune.trials, len(losses)) - 1, max(tune.seeds, len(losses.columns)))


def _answer(seeds: pd.DataFrame, losses: pd.DataFrame, feasible: bool, setting: Setting) -> Answer:
    compared, rows = _compared(losses, setting), summary(seeds, setting)
    trial = int(losses.index[compared.best])
    interval, outside = hull(rows.loc[losses.index, "kl_weight"].tolist(), compared.worse.tolist())
    best: dict[Any, Any] = rows.loc[trial].to_dict()
    names = [name for name in dict.fromkeys([*SHOWN, *setting.objectives()]) if name in rows]
    errors = {name: best[f"{name}_error"] for name in names if best["seeds"] > 1}
    values = {name: best[name] for name in names}
    return Answer(trial, best["kl_weight"], interval, outside, values, errors, feasible)
