"""The search on tiny images: training, racing, measuring, and what is read from the trials afterwards."""

import math
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import torch
from studies import events, finished, having, opened, refused, states

import pipeline.study.search as search_room
from pipeline.measure.evaluator import Evaluator
from pipeline.measure.metrics import OF_SAMPLES
from pipeline.study.queue import Study
from pipeline.study.search import Began, Ended, Epoch, Event
from pipeline.training import population

FRECHET = "validation/fitted/frechet"
Done = tuple[Study, list[Event]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    found = opened(tmp_path_factory.mktemp("study") / "eight", having(trials=8))
    return found, list(events(found))


def add(found: Study, weight: float, values: list[float], constraints: dict[str, float] | None = None) -> None:
    """A complete trial."""
    point: dict[str, Any] = {"params": {"kl_weight": weight}, "distributions": found.setting.space()}
    found.inner.add_trial(optuna.create_trial(**point, values=values, constraints=constraints))


def test_each_trial_begins_ends_has_an_event_for_each_epoch_and_keeps_its_picture(done: Done) -> None:
    found, seen = done
    assert found.done() == 8
    assert set(states(found)) == {"COMPLETE"}
    for kind in (Began, Ended):
        assert sorted(event.candidate.trial.number for event in seen if isinstance(event, kind)) == list(range(8))
    epochs = [
        (event.seed, event.record.epoch)
        for event in seen
        if isinstance(event, Epoch) and event.candidate.trial.number == 0
    ]
    assert epochs == [(seed, epoch) for seed in (0, 1) for epoch in (1, 2, 3, 4)]
    for event in seen:
        if isinstance(event, Ended):
            kept = found.strip(event.candidate.trial.number)
            assert kept is not None
            assert (kept == event.strip).all()


def test_a_trials_values_are_means_over_its_seeds_with_their_errors_beside_them(done: Done) -> None:
    found, table = done[0], done[0].table()
    seeds = found.seeds().groupby("trial")[FRECHET]
    assert seeds.size().tolist() == table["seeds"].tolist() == [2] * 8
    assert [trial.values for trial in found.trials()] == [[pytest.approx(mean)] for mean in seeds.mean()]
    assert table[FRECHET].to_numpy() == pytest.approx(seeds.mean().to_numpy())
    assert table[f"{FRECHET}_error"].to_numpy() == pytest.approx(seeds.std().to_numpy() / math.sqrt(2))


def test_weights_of_a_round_share_everything_and_rounds_share_nothing(done: Done) -> None:
    """Two trials of one weight are one training; another seed is another."""
    found = opened(done[0]._root.parent / "twins", having(trials=2, epochs=1))
    for _ in range(2):
        found.inner.enqueue_trial({"kl_weight": 0.5})
    list(events(found))
    one, other = (rows.drop(columns="trial").reset_index(drop=True) for _, rows in found.seeds().groupby("trial"))
    pd.testing.assert_frame_equal(one, other)
    assert one[FRECHET].nunique() == one["validation/reconstruction"].nunique() == 2


def test_a_weight_that_serves_no_use_gets_no_second_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(tmp_path, having(trials=4, epochs=1, seeds=3, population=4))
    monkeypatch.setattr(search_room, "undecided", lambda *_: {1, 2})
    ended = [event.candidate for event in events(found) if isinstance(event, Ended)]
    assert [candidate.trial.number for candidate in ended] == [0, 3, 1, 2]
    assert [sorted(candidate.seeds) for candidate in ended] == [[0], [0], [0, 1, 2], [0, 1, 2]]
    assert found.table()["seeds"].tolist() == [1, 3, 3, 1]


def test_the_table_has_both_samplers_of_every_trial_and_the_best_is_the_lowest_complete_one(done: Done) -> None:
    found, table = done[0], done[0].table()
    names = [f"validation/{sampler}/{name}" for sampler in ("prior", "fitted") for name in OF_SAMPLES]
    assert table[[*names, "validation/elbo", "validation/active_units", "kl_weight"]].notna().all(axis=None)
    assert [trial.value for trial in found.trials()] == table[FRECHET].tolist()
    assert table["asked"].tolist()[:3] == ["params.yaml", "the article, the bound", ""]
    best = table[table["state"] == "COMPLETE"].sort_values(FRECHET).iloc[0]
    chosen = found.choose()
    assert (chosen.number, chosen.values) == (best["trial"], {FRECHET: best[FRECHET]})
    assert chosen.params == {"objective.kl_weight": best["kl_weight"]}


def test_several_objectives_give_a_front_of_what_is_feasible(tmp_path: Path) -> None:
    objectives = ("reconstruction", "kl", "nll", "active_units")
    found = finished(tmp_path, having(epochs=2, objectives=objectives, least_class_accuracy=0.5))
    assert states(found) == ["COMPLETE"] * 6
    table = found.table()
    assert (table["feasible"] == (table["validation/fitted/class_accuracy"] >= 0.5)).all()
    assert found.choose().number in [trial.number for trial in found.front()]
    assert set(found.choose().values) == {f"validation/{name}" for name in objectives}


def test_the_trial_of_the_front_nearest_to_its_ideal_corner_is_chosen(tmp_path: Path) -> None:
    found = opened(tmp_path, having(objectives=("reconstruction", "diversity")))
    for weight, values in enumerate([[10.0, 0.1], [11.0, 0.9], [20.0, 1.0], [21.0, 0.2]], 1):
        add(found, weight, values)
    assert [trial.number for trial in found.front()] == [0, 1, 2]
    assert found.choose().number == 1


@pytest.mark.parametrize(("objective", "best"), [("elbo", 3), ("frechet", 2)])
def test_an_infeasible_trial_is_best_only_where_all_are(tmp_path: Path, objective: str, best: int) -> None:
    found = opened(tmp_path, having(objectives=(objective,), least_class_accuracy=0.9))
    for weight, value, missing in [(1.0, 5.0, 0.4), (2.0, 6.0, 0.1), (3.0, 5.5, -0.05), (4.0, 5.6, -0.01)]:
        add(found, weight, [value], {"class_accuracy": missing})
        if weight == 2.0:  # the highest class_accuracy so far
            assert (found.choose().number, found.choose().feasible) == (1, False)
    assert (found.choose().number, found.choose().feasible) == (best, True)


@pytest.mark.slow
def test_different_shapes_train_in_populations_of_their_own(tmp_path: Path) -> None:
    wide: dict[str, Any] = {"latent_size": (2, 4), "conditioning": ("sum", "concat"), "learning_rate": (1e-3, 1e-2)}
    found = opened(tmp_path, having(trials=7, epochs=1, population=7, **wide))
    shapes = set()
    for event in events(found):
        if not isinstance(event, Epoch):
            continue
        values = event.candidate.trial.params
        assert event.fitted is not None
        shapes.add(event.fitted.model.architecture)
        assert event.fitted.model.latent_size == values["latent_size"]
        assert event.fitted.model.architecture.conditioning == values["conditioning"]
        # at the last step of its only epoch, half a cosine has nearly reached 0
        assert 0 < event.record.figures["train/learning_rate"] < values["learning_rate"]
    assert len(shapes) > 1


def test_a_member_that_diverges_or_cannot_be_measured_is_a_result_and_the_others_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, measure, calls = population.start, Evaluator.samples, []

    def sick(*arguments: Any) -> Any:
        members = start(*arguments)
        with torch.no_grad():
            members.weights["log_var.bias"][1] = 200.0  # its exponential overflows float32
        return members

    def once_not_finite(self: Evaluator, *arguments: Any) -> dict[str, float]:
        calls.append(1)
        return measure(self, *arguments) | ({"frechet": math.nan} if len(calls) == 1 else {})

    monkeypatch.setattr(population, "start", sick)
    monkeypatch.setattr(Evaluator, "samples", once_not_finite)
    found = finished(tmp_path, having(trials=3, epochs=2, population=3))
    assert found.table()["state"].tolist() == ["DIVERGED", "DIVERGED", "COMPLETE"]
    assert found.table()["epochs"].tolist() == [2, 1, 2]
    assert found.done() == 3


def test_a_trial_that_cannot_be_chosen_is_named(done: Done, tmp_path: Path) -> None:
    with refused("has no complete trial yet: run `cvae tune`"):
        opened(tmp_path).choose()
    sick = opened(tmp_path, having(trials=1))
    sick.tell(sick.ask(1)[0], "FAIL")
    with refused("all trials of study .* diverged: set a lower train.learning_rate"):
        sick.choose()
    with refused("has no trial 17: `cvae study` lists"):
        done[0].choose(17)
    with refused(r"trial 0 of study .* is diverged: only a complete one can be chosen"):
        sick.choose(0)
