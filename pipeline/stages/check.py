"""Checks every value of params.yaml, in a second, before any other stage runs.

DVC deletes a stage's outputs before it runs the stage, so a stage that has nothing to lose must refuse a wrong value.
"""

from typing import Any

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.errors import UserError
from pipeline.base.files import write_text
from pipeline.base.params import FILE, did_you_mean, parse, read
from pipeline.base.paths import CHECKED
from pipeline.completion import measure, model
from pipeline.data.download import DataParams
from pipeline.measure.evaluator import EvaluateParams
from pipeline.measure.judge import JudgeParams
from pipeline.model.cvae import ModelParams
from pipeline.model.samples import SampleParams
from pipeline.study.space import TuneParams
from pipeline.tracking.runs import TrackingParams
from pipeline.training.fit import TrainParams
from pipeline.training.objective import ObjectiveParams
from pipeline.weight.curve import WeightParams

SECTIONS: dict[str, type[Any]] = {  # in the order of the file
    "data": DataParams,
    "judge": JudgeParams,
    "model": ModelParams,
    "objective": ObjectiveParams,
    "train": TrainParams,
    "sample": SampleParams,
    "evaluate": EvaluateParams,
    "weight": WeightParams,
    "tune": TuneParams,
    "completion": model.CompletionParams,
    "evaluate_completion": measure.EvaluateCompletionParams,
    "tracking": TrackingParams,
}


def load_all(content: dict[str, Any]) -> None:
    """Raises UserError at the first part of params.yaml that is not allowed, or can't be used on this machine."""
    for section in content.keys() - SECTIONS:
        raise UserError(f"{FILE}: unknown section {section!r}{did_you_mean(section, SECTIONS)}")
    values = {section: parse(owner, content.get(section), f"{FILE}: {section}") for section, owner in SECTIONS.items()}
    pick_device(values["train"].device)


def main() -> None:
    try:
        load_all(read())
    except UserError as error:  # `git checkout` may take the file, written twice in a second, for unchanged
        raise UserError(f"{error}. `git show HEAD:{FILE} > {FILE}` takes back every change of that file") from None
    write_text(CHECKED, "every value is allowed\n")  # always the same, so that it makes no other stage outdated


if __name__ == "__main__":
    console.run(main)
