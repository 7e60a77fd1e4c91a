"""What makes a study: its points, its name, and the sections that make none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from settings import OURS
from studies import SETTING, having, opened

from pipeline.base.errors import UserError
from pipeline.base.params import parse
from pipeline.study.space import Setting, TuneParams


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        # The article's 1e-5 at its batch size of 128 is the bound, whatever the batch size is: one trial for both.
        (SETTING, {"params.yaml": 0.3, "the article, the bound": pytest.approx(1.0, rel=0.004)}),
        (having(kl_weight=(0.2, 0.9)), {"params.yaml": 0.3}),
        (replace(SETTING, aim=replace(SETTING.aim, kl_weight=1.001)), {"params.yaml": 1.001}),
    ],
)
def test_what_people_ask_about_comes_first_and_once_as_far_as_it_is_in_the_range(
    setting: Setting, first: dict[str, Any], tmp_path: Path
) -> None:
    trials = [candidate.trial for candidate in opened(tmp_path, setting).ask(3)]
    asked = {trial.user_attrs["asked"]: trial.params["kl_weight"] for trial in trials if "asked" in trial.user_attrs}
    assert asked == first


def test_the_curves_best_weights_and_their_neighbours_are_asked_for_unless_one_as_good_is(tmp_path: Path) -> None:
    setting = replace(having(trials=16), curve={"fitted": 0.11, "prior": 2.0})
    weights = [candidate.trial.params["kl_weight"] for candidate in opened(tmp_path, setting).ask(8)]
    # 0.3 is that of params.yaml; 1, half of the prior's best, is the bound already
    assert weights[:7] == [0.11, 2.0, 0.3, pytest.approx(1.0, rel=0.004), 0.055, 0.22, 4.0]
    assert setting.name() == having(trials=16).name()


def test_half_of_a_study_covers_the_range_also_from_two_processes(tmp_path: Path) -> None:
    both = opened(tmp_path, having(trials=12)).ask(3) + opened(tmp_path, having(trials=12)).ask(3)
    weights = [candidate.trial.params["kl_weight"] for candidate in both]
    assert len(set(weights)) == 6
    assert np.diff(np.log(sorted([0.01, 100.0, *weights]))).max() < np.log(100.0 / 0.01) / 4


WIDE = having(latent_size=(2, 4), learning_rate=(1e-3, 1e-2))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (SETTING, having(trials=99, population=3, seeds=5, seed=5), True),
        (SETTING, replace(SETTING, aim=replace(SETTING.aim, kl_weight=7.0)), True),
        (SETTING, replace(SETTING, train=replace(SETTING.train, epochs=3, device="auto")), True),
        (WIDE, replace(WIDE, architecture=replace(SETTING.architecture, latent_size=2)), True),  # promoted
        (SETTING, WIDE, False),
        (SETTING, having(kl_weight=(0.1, 100.0)), False),
        (SETTING, having(objectives=("nll",)), False),
        (SETTING, having(sampler_of_latents="prior"), False),
        (SETTING, replace(SETTING, hashes={"data": "other", "judge": "j"}), False),
        (SETTING, replace(SETTING, train=replace(SETTING.train, batch_size=10)), False),
        (SETTING, having(epochs=5), False),
        (SETTING, replace(SETTING, aim=replace(SETTING.aim, pixels="binary")), False),
        (SETTING, replace(SETTING, architecture=replace(SETTING.architecture, latent_size=5)), False),
    ],
)
def test_what_changes_the_figures_and_nothing_else_makes_another_study(
    one: Setting, other: Setting, same: bool
) -> None:
    assert (one.name() == other.name()) == same


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kl_weight", [1.0, 0.1], r"must be \[lowest, highest\] with lowest < highest, not \[1.0, 0.1\]"),
        ("latent_size", [8], r"must be a list of 2 or more different values, not \[8\]"),
        ("objectives", ["kl", "kl"], "must be a list of 1 or more different values"),
    ],
)
def test_a_section_that_makes_no_study_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"params.yaml: tune.{key} {message}"):
        parse(TuneParams, OURS["tune"] | {key: value}, "params.yaml: tune")
