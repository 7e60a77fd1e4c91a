"""A study's answer in words and in tables, made from its figures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.study.space import Setting
from pipeline.study.uses import BALANCE, USES, Answer, summary, uses_of

FOR = {
    "draw_fitted": "For drawing with the fitted density",
    "draw_prior": "For drawing with the prior",
    "reconstruct": "For reconstructing images",
    "explain": "For explaining images (nll)",
    BALANCE: "For all of these in balance",
}
HALF = 0.5  # of the best weight's diversity
MISREAD = 0.1  # share of samples that are not the digit asked for, from which on it is said


def sentences(found: Mapping[str, Answer], seeds: pd.DataFrame, setting: Setting) -> list[str]:
    """One or two sentences for each use."""
    rows = summary(seeds, setting).sort_values("kl_weight")
    return [_said(name, answer, rows) for name, answer in found.items() if name in FOR]


def within(answer: Answer) -> str:
    """`0.1 to 0.5`, the weights that can't be told apart from the best."""
    low, high = (weight(end) for end in answer.interval)
    return low if low == high else f"{low} to {high}"


def weight(value: float) -> str:
    return f"{value:.3g}"


def measured(answer: Answer, figure: str) -> str:
    """`4.1 ± 0.1`, a figure at the best weight with its standard error."""
    return plus_minus(answer.values[figure], answer.errors.get(figure))


def plus_minus(value: float, error: float | None) -> str:
    """Two digits after the point, which is what several seeds can tell at most; from 100 on one."""
    digits = 1 if abs(value) >= 100 else 2
    return f"{value:.{digits}f}" + ("" if error is None or error != error else f" ±{error:.{digits}f}")


def _said(name: str, answer: Answer, rows: pd.DataFrame) -> str:
    low, high = answer.interval
    best, (below, above) = weight(answer.kl_weight), answer.outside
    figure = USES[name].figure if name in USES else ""
    found = (
        f"{figure.rpartition('/')[2]} {measured(answer, figure)}"
        if figure
        else f"where {_share(rows, answer.kl_weight)}"
    )
    if low < high:
        text = f"{FOR[name]}, anything from {weight(low)} to {weight(high)} does (lowest mean: {best}, {found})"
    else:
        text = f"{FOR[name]}, take {best} ({found})"
    outside = [clause for clause in (_below(name, answer, rows, below), _above(name, answer, rows, above)) if clause]
    text += "".join(f"; {clause}" for clause in outside) + "."
    if below is None and above is None:
        text += " No weight tried is worse for certain: the study needs more seeds to say more."
    if not answer.feasible:
        text += " No weight's samples are read as the digit asked for as often as tune.least_class_accuracy demands."
    if answer.judges_disagree and answer.tolerant:
        text += (
            f" By the judge that forgives blur it would be {weight(answer.tolerant.kl_weight)} "
            f"({within(answer.tolerant)}): the two judges disagree."
        )
    return text


def _above(name: str, answer: Answer, rows: pd.DataFrame, above: float | None) -> str:
    """What is lost at weights above the interval."""
    if above is None:
        return ""
    column = f"validation/{USES[name].sampler}/diversity" if name in USES else ""
    if column in rows:
        kept = rows[column] > HALF * answer.values[column]
        lost = rows["kl_weight"][rows["kl_weight"] > rows["kl_weight"][kept].max()]
        if len(lost) and lost.min() > answer.interval[1]:
            return f"from β = {weight(lost.min())} on you lose half of the variety"
    return f"at β = {weight(above)} {_worse(name, answer, rows, above)}"


def _below(name: str, answer: Answer, rows: pd.DataFrame, below: float | None) -> str:
    """What is lost at weights below the interval."""
    if below is None:
        return ""
    column = f"validation/{USES[name].sampler}/class_accuracy" if name in USES else ""
    if column in rows:
        misread = 1 - rows[column][rows["kl_weight"] == below].iloc[0]
        if misread > MISREAD:
            return f"at β = {weight(below)} {misread:.0%} of samples are not the digit asked for"
    return f"at β = {weight(below)} {_worse(name, answer, rows, below)}"


def _worse(name: str, answer: Answer, rows: pd.DataFrame, at: float) -> str:
    if name not in USES:
        return _share(rows, at)
    figure = USES[name].figure
    value = rows[figure][rows["kl_weight"] == at].iloc[0]
    if "frechet" in figure:
        return f"frechet is {value / answer.values[figure]:.1f} times as high"
    return f"you lose {value - answer.values[figure]:.1f} nats an image"


def _share(rows: pd.DataFrame, at: float) -> str:
    """The use that a weight serves worst, and how much of the way from the best weight to the worst one it loses."""
    losses = {}
    for name, use in USES.items():
        values = np.log(rows[use.figure]) if "frechet" in use.figure else rows[use.figure]
        lost = (values - values.min()) / max(values.max() - values.min(), 1e-12)
        losses[name] = float(lost[rows["kl_weight"] == at].iloc[0])
    worst = max(losses, key=lambda name: losses[name])
    return f"{worst} loses {losses[worst]:.0%} of its range"


def table(found: Mapping[str, Answer], frame: pd.DataFrame, setting: Setting) -> tuple[list[str], list[list[str]]]:
    """Headings and a row for each trial, by weight: means ± standard errors of what decides each use.

    ★ marks the best weight of a use, ≈ those that can't be told apart from it. frame: as Study.table gives it.
    """
    deciding = {name: use.figure for name, use in uses_of(frame, setting).items()}
    others = [name for name in setting.space() if name != "kl_weight"]
    rows = []
    for trial in frame.sort_values("kl_weight").to_dict("records"):
        row = [weight(trial["kl_weight"]), str(trial["trial"]), str(trial["seeds"])]
        row += [f"{trial[name]:.3g}" if isinstance(trial[name], float) else str(trial[name]) for name in others]
        if trial["state"] != "COMPLETE":
            rows.append([*row, trial["state"].lower(), *[""] * (len(deciding) - 1)])
            continue
        for name, figure in deciding.items():
            mark = _mark(found[name], trial) if name in found else ""
            row.append(plus_minus(trial[figure], trial[f"{figure}_error"]) + mark)
        rows.append(row)
    return ["β", "trial", "seeds", *others, *(name.removeprefix("validation/") for name in deciding)], rows


def _mark(answer: Answer, trial: Mapping[Any, Any]) -> str:
    if trial["trial"] == answer.trial:
        return " ★"
    low, high = answer.interval
    return " ≈" if low <= trial["kl_weight"] <= high else "  "


def of_uses(found: Mapping[str, Answer]) -> tuple[list[str], list[list[str]]]:
    """Headings and a row for each use: its best weight, those that do as well, and what decides."""
    rows = []
    for name, answer in found.items():
        if name in FOR:
            figure = USES[name].figure if name in USES else ""
            said = f"{figure.removeprefix('validation/')} {measured(answer, figure)}" if figure else "worst loss"
            beyond = " and ".join(weight(end) for end in answer.outside if end is not None) or "none"
            rows.append([name, weight(answer.kl_weight), within(answer), beyond, said])
    return ["use", "best β", "can't be told apart", "nearest that are worse", "at the best"], rows
