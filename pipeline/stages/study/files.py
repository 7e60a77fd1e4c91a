"""What a study starts from, and what it leaves in reports/study: its table, its best trial and its figures."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import pandas as pd

from pipeline.base import console, paths
from pipeline.base.device import pick_device
from pipeline.base.errors import UserError
from pipeline.base.files import sha256, write_json, write_table
from pipeline.base.params import load, load_key
from pipeline.data.splits import Split
from pipeline.measure.evaluator import QUICK_TRAIN, Draws, Evaluator
from pipeline.model.cvae import ModelParams, resolve
from pipeline.model.density import Components
from pipeline.model.samples import SAMPLERS
from pipeline.show.pictures import save_png
from pipeline.show.spectrum import spectrum_of_trials
from pipeline.show.study import study_figures
from pipeline.show.style import save_all
from pipeline.stages.saved import check_curve, load_json, load_judges, load_splits, load_table
from pipeline.study.found import state
from pipeline.study.queue import Study, open_study
from pipeline.study.race import ERROR_RATE
from pipeline.study.search import NLL_IMAGES
from pipeline.study.space import Setting, TuneParams
from pipeline.study.storage import NoStudy
from pipeline.study.uses import NAMES, Answer, answers, main_answer
from pipeline.training.fit import TrainParams
from pipeline.training.objective import ObjectiveParams
from pipeline.weight.curve import best_weights


def read_setting(needs_files: bool = True) -> Setting:
    """The study of params.yaml. Raises UserError where a value is wrong or, if needed, a stage has not run yet."""
    for path, stage in ((paths.PREPARED, "prepare"), (paths.JUDGE, "judge")):
        if needs_files and not path.exists():
            raise UserError(f"{path} not found: run `dvc repro {stage}` first")
    data = sha256(paths.PREPARED) if needs_files else ""
    return Setting(
        tune=load(TuneParams, "tune"),
        architecture=resolve(load(ModelParams, "model")),
        aim=load(ObjectiveParams, "objective"),
        train=load(TrainParams, "train"),
        components=load_key(Components, "sample", "components"),
        nll_draws=load_key(Draws, "evaluate", "nll_draws"),
        hashes={"data": data, "judge": sha256(paths.JUDGE)} if needs_files else {},
        curve=read_curve(data) if needs_files else {},
    )


def read_curve(data: str) -> dict[str, float]:
    """Where the curve is best, by sampler; empty without a curve.

    data: the hash of the study's data. Raises UserError where the curve was trained on other data.
    """
    if not paths.CURVE_TABLE.exists():
        return {}
    check_curve(paths.CURVE, data, paths.PREPARED)
    columns = (f"validation/{sampler}/frechet" for sampler in SAMPLERS)
    return best_weights(load_table(paths.CURVE_TABLE, "run `dvc repro curve`", "kl_weight", *columns))


def read_bench(setting: Setting, device_name: str = "") -> tuple[Split, Evaluator]:
    """The training split, and what measures on the validation split, on that device, or on that of train.device."""
    device = pick_device(device_name or setting.train.device)
    train, validation = load_splits(paths.PREPARED, "train", "validation", device=device)
    judges = load_judges(paths.JUDGE, device)
    return train, Evaluator(judges, validation, train[:QUICK_TRAIN], setting.aim.pixels, setting.train.seed)


@dataclass(frozen=True)
class Results:
    """What is known of a study. study: None where its database is not here, and the exported files are read."""

    study: Study | None
    seeds: pd.DataFrame
    table: pd.DataFrame
    where: str
    promoted: int | None = None


def read_results(setting: Setting) -> Results:
    """The study of `setting`, from its database, or from what `export` wrote: a fresh clone has only that.

    Raises UserError where there is neither.
    """
    try:
        study = open_study(setting, Path(), create=False)
    except NoStudy:
        try:
            if json.loads(paths.BEST.read_text(encoding="utf-8"))["study"] != setting.name():
                raise KeyError(setting.name())
            table, seeds = pd.read_csv(paths.TRIALS), pd.read_csv(paths.SEEDS)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        else:
            return Results(None, seeds, table, f"from {paths.TRIALS}, its database is not here")
        raise
    where = f"{study.done()} of {setting.tune.trials} trials"
    return Results(study, study.seeds(), study.table(), where, study.inner.user_attrs.get("promoted"))


def export(study: Study, real: Mapping[str, float]) -> dict[str, Answer]:
    """Writes the files and returns the answer for each use; real: the sample metrics of real images."""
    best, table, tune, seeds = study.choose(), study.table(), study.setting.tune, study.seeds()
    found = answers(seeds, study.setting)
    if not best.feasible:
        console.warn(
            f"no complete trial reached a class_accuracy of {tune.least_class_accuracy} "
            "(tune.least_class_accuracy): best.json names the trial that came nearest"
        )
    write_table(paths.TRIALS, table)
    write_table(paths.SEEDS, seeds)
    front = {trial.number: trial.params["kl_weight"] for trial in study.front()}
    main = main_answer(found, study.setting)
    uses = {name: found[name] for name in NAMES if name in found}
    protocol = {
        "split": "validation",
        "objectives": list(tune.objectives),
        "sampler_of_latents": tune.sampler_of_latents,
        "epochs": tune.epochs,
        "seeds": list(study.setting.rounds()),
        "nll_images": NLL_IMAGES,
        "nll_draws": study.setting.nll_draws,
        "error_rate": ERROR_RATE,
        "trials": dict(Counter(state(trial).lower() for trial in study.trials())),
    }
    summary = {
        "kl_weight": best.kl_weight,
        "interval": main.interval if main else [min(front.values()), max(front.values())],
        "trial": best.number,
        "values": best.values,
        "run_id": best.run_id,
        "params": best.params,
        "feasible": best.feasible,
        "uses": {name: asdict(answer) for name, answer in uses.items()},
        "front": list(front),
        "study": study.name,
        "data": study.setting.hashes["data"],
        "run": {"run_id": "", "run_key": study.inner.user_attrs.get("run_key", "")},  # the study's own in MLflow
        "protocol": protocol,
        "real": dict(real),
    }
    write_json(paths.BEST, summary)
    objectives = study.setting.objectives()
    spans = {name: (answer.interval[0], answer.kl_weight, answer.interval[1]) for name, answer in uses.items()}
    figures = study_figures(table, objectives, real, spans, list(front), study.importances(), study.strip)
    spectrum = load_json(paths.SPECTRUM, "run `dvc repro spectrum`") if paths.SPECTRUM.exists() else {}
    save_all(chain(figures, spectrum_of_trials(spectrum, table)), paths.STUDY_FIGURES)
    shutil.rmtree(paths.STUDY_SHEETS, ignore_errors=True)  # with pictures of former studies
    paths.STUDY_SHEETS.mkdir(exist_ok=True)  # DVC wants it, and other machines may have all pictures
    for trial in study.trials():
        if (sheet := study.strip(trial.number)) is not None:
            save_png(paths.STUDY_SHEETS / f"{trial.number}_{trial.params['kl_weight']:.4g}.png", sheet)
    return found
