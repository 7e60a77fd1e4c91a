"""Which weight `cvae promote` writes, and why."""

from pipeline.base.errors import UserError
from pipeline.stages.study.files import Results
from pipeline.study.found import Chosen
from pipeline.study.space import Setting, full_names
from pipeline.study.uses import BALANCE, NAMES, USES, Answer, answers, decides, main_answer


def promotion(setting: Setting, results: Results, trial: int | None, use: str | None) -> tuple[Chosen | None, str]:
    """What to write into params.yaml, and why. None: today's weight does as well, and nothing else is open.

    Raises UserError for a use that does not exist or was not measured, and where no trial may be chosen.
    """
    if use is not None and use not in NAMES:
        raise UserError(f"there is no use {use!r}: --for takes {', '.join(NAMES)}")
    found = answers(results.seeds, setting) if len(results.seeds) else {}
    if use is not None and use not in found:
        raise UserError(f"study {setting.name()} has no figures for {use} yet: run `cvae tune`")
    answer = found[use] if use else main_answer(found, setting) if trial is None else None
    if answer is not None:
        return _of_use(setting, results, use or next(name for name in found if found[name] is answer), answer)
    if results.study is None:
        raise UserError(f"the database of study {setting.name()} is not here: --for USE reads its exported files")
    chosen = results.study.choose(trial)
    if not chosen.feasible and trial is None:
        raise _infeasible(setting, chosen.number)
    return chosen, f"This is trial {chosen.number}."


def _of_use(setting: Setting, results: Results, use: str, answer: Answer) -> tuple[Chosen | None, str]:
    row = results.table.set_index("trial").loc[answer.trial]
    if not answer.feasible:
        raise _infeasible(setting, answer.trial)
    if row["state"] != "COMPLETE":
        raise UserError(f"trial {answer.trial} of study {setting.name()} still trains: run `cvae tune` to its end")
    others = [name for name in setting.space() if name != "kl_weight"]
    (low, high), today = answer.interval, setting.aim.kl_weight
    equal = f"weights from {low:.3g} to {high:.3g} can't be told apart"
    why = f"For {use}, {equal if low < high else 'every other weight that was tried is worse'}"
    if not others and low <= today <= high:
        return None, f"{why}."
    deciding = {decides(use)} if use != BALANCE else {each.figure for each in USES.values()}
    known = results.study.choose(answer.trial) if results.study else None
    tried = {name: known.params[full] for name in others for full in full_names({name: 0}) if known}
    chosen = Chosen(
        number=answer.trial,
        values={name: value for name, value in answer.values.items() if name in deciding},
        params=full_names({"kl_weight": rounded(answer.kl_weight, low, high)} | tried),
        feasible=True,
        run_id=known.run_id if known else None,
        tracking_uri=known.tracking_uri if known else None,
    )
    return chosen, f"{why}; trial {answer.trial} has the lowest mean, at {answer.kl_weight:.3g}."


def rounded(weight: float, low: float, high: float) -> float:
    """The weight with as few digits as keep it from `low` to `high`.

    >>> rounded(0.1873, 0.1, 0.5), rounded(0.0949, 0.0949, 0.3)
    (0.2, 0.095)
    """
    for digits in range(1, 6):
        short = float(f"{weight:.{digits}g}")
        if low <= short <= high:
            return short
    return weight


def _infeasible(setting: Setting, trial: int) -> UserError:
    return UserError(
        f"no complete trial of study {setting.name()} reaches tune.least_class_accuracy: "
        f"`cvae promote --trial {trial}` takes the nearest one all the same"
    )
