"""What makes a study: its points, its name, and the sections that make none."""

import doctest
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from studies import SETTING, having, opened

from pipeline.base.errors import UserError
from pipeline.study import search, space
from pipeline.study.queue import open_study
from pipeline.study.space import Setting


@pytest.mark.parametrize("module", [space, search], ids=["space", "search"])
def test_the_examples_in_the_docstrings_hold(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_what_people_ask_about_comes_first() -> None:
    """The article's 1e-5 at its batch size of 128 is the bound, whatever the batch size is: one trial for both."""
    assert [origin for origin, _ in SETTING.asked()] == ["params.yaml", "the article, the bound"]
    assert [point["kl_weight"] for _, point in SETTING.asked()] == [0.3, pytest.approx(1.0, rel=0.004)]


def test_a_weight_outside_the_range_or_asked_twice_is_left_out() -> None:
    assert [origin for origin, _ in having(kl_weight=(0.2, 0.9)).asked()] == ["params.yaml"]
    at_the_bound = replace(SETTING, aim=replace(SETTING.aim, kl_weight=1.001))
    assert [origin for origin, _ in at_the_bound.asked()] == ["params.yaml"]


def test_half_of_a_study_covers_the_range(tmp_path: Any) -> None:
    """A second process continues with the gaps that the first has left."""
    setting = having(trials=12)
    weights = [candidate.kl_weight for _ in range(2) for candidate in opened(tmp_path, setting).ask(3)]
    assert len(set(weights)) == 6
    assert np.diff(np.log(sorted([0.01, 100.0, *weights]))).max() < np.log(100.0 / 0.01) / 4


def test_the_name_ignores_the_budget_and_the_current_weight() -> None:
    other = having(trials=99, population=3, pruner="none", seed=5)
    other = replace(other, aim=replace(SETTING.aim, kl_weight=7.0))
    other = replace(other, train=replace(SETTING.train, epochs=3, device="auto"))
    assert other.name() == SETTING.name()


def test_promoting_an_open_value_makes_no_new_study() -> None:
    wide = having(latent_size=(2, 4), learning_rate=(1e-3, 1e-2))
    architecture, train = replace(wide.architecture, latent_size=2), replace(wide.train, learning_rate=5e-3)
    assert replace(wide, architecture=architecture, train=train).name() == wide.name()


@pytest.mark.parametrize(
    "other",
    [
        having(kl_weight=(0.1, 100.0)),
        having(latent_size=(2, 4)),
        having(objectives=("nll",)),
        having(sampler_of_latents="prior"),
        having(epochs=5),
        replace(SETTING, hashes={"data": "other", "judge": "j"}),
        replace(SETTING, train=replace(SETTING.train, batch_size=10)),
        replace(SETTING, aim=replace(SETTING.aim, pixels="binary")),
        replace(SETTING, architecture=replace(SETTING.architecture, latent_size=5)),
    ],
)
def test_whatever_changes_the_figures_makes_another_study(other: Setting) -> None:
    assert other.name() != SETTING.name()


def test_the_params_of_a_trial_are_those_of_a_training() -> None:
    found = SETTING.params({"kl_weight": 7.0})
    assert (found["objective.kl_weight"], found["train.epochs"]) == (7.0, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_weight": (1.0, 0.1)}, r"must be \[lowest, highest\] with lowest < highest, not \[1.0, 0.1\]"),
        ({"kl_weight": ()}, r"tune.kl_weight must be .*not \[\]"),
        ({"learning_rate": (1e-3,)}, r"tune.learning_rate must be \[lowest, highest\]"),
        ({"latent_size": (8,)}, "tune.latent_size must name at least two choices or be null"),
        ({"conditioning": ("sum", "sum")}, "tune.conditioning must name at least two"),
        ({"objectives": ()}, "tune.objectives must name at least one metric"),
        ({"objectives": ("kl", "kl")}, "names a metric twice"),
    ],
)  # fmt: skip
def test_a_section_that_makes_no_study_is_refused_before_anything_is_made(
    changes: dict[str, Any], message: str, tmp_path: Any
) -> None:
    with pytest.raises(UserError, match=message):
        open_study(having(**changes), tmp_path, create=True)
    assert not list(tmp_path.iterdir())
