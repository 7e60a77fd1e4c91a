"""The search on tiny images: training, pruning, measuring, and what is read from the trials afterwards."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from settings import objective_params
from studies import CPU, SETTING, events, finished, having, opened, states

from pipeline.base.errors import UserError
from pipeline.measure.evaluator import Evaluator
from pipeline.measure.metrics import OF_SAMPLES
from pipeline.study.queue import Study
from pipeline.study.search import Began, Ended, Epoch, Event, batch_size
from pipeline.study.trials import Chosen
from pipeline.training import population

EIGHT = having(trials=8)
FRECHET = "validation/fitted/frechet"
Done = tuple[Study, list[Event]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    found = opened(tmp_path_factory.mktemp("study") / "eight", EIGHT)
    return found, list(events(found))


def test_each_trial_begins_ends_and_has_an_event_for_each_epoch(done: Done) -> None:
    found, seen = done
    assert found.done() == 8
    assert set(states(found)) == {"COMPLETE", "PRUNED"}
    for kind in (Began, Ended):
        assert sorted(event.candidate.number for event in seen if isinstance(event, kind)) == list(range(8))
    epochs = [event.record.epoch for event in seen if isinstance(event, Epoch) and event.candidate.number == 0]
    assert epochs == [1, 2, 3, 4]


def test_the_worse_half_is_pruned_at_each_rung_except_what_people_ask_about(done: Done) -> None:
    first = done[0].trials()[:4]  # a third of eight, but at least four, train at once
    at_one = [trial.intermediate_values[1] for trial in first]
    for trial in first:
        better = sum(value < trial.intermediate_values[1] for value in at_one)
        assert (trial.user_attrs["epochs"] > 1) == (better < 2 or "asked" in trial.user_attrs)
    assert [trial.state.name for trial in first if "asked" in trial.user_attrs] == ["COMPLETE", "COMPLETE"]


def test_the_table_has_both_samplers_of_every_trial(done: Done) -> None:
    table = done[0].table()
    names = [f"validation/{sampler}/{name}" for sampler in ("prior", "fitted") for name in OF_SAMPLES]
    assert table[[*names, "validation/elbo", "validation/active_units", "kl_weight"]].notna().all(axis=None)
    assert (table["validation/elbo"] == -table["validation/reconstruction"] - table["validation/kl"]).all()
    assert [trial.value for trial in done[0].trials()] == table[FRECHET].tolist()
    assert table["asked"].tolist()[:3] == ["params.yaml", "the article, the bound", ""]


def test_the_best_trial_is_the_complete_one_with_the_lowest_value(done: Done) -> None:
    found, _ = done
    table = found.table()
    best = table[table["state"] == "COMPLETE"].sort_values(FRECHET).iloc[0]
    chosen = found.choose()
    assert (chosen.number, chosen.values) == (best["trial"], {"frechet": best[FRECHET]})
    assert chosen.sets == {("objective", "kl_weight"): best["kl_weight"]}
    assert found.choose(chosen.number) == chosen
    summary = found.summary({"frechet": 1.0})
    assert summary["protocol"]["trials"] == {name.lower(): states(found).count(name) for name in states(found)}
    assert Chosen.from_summary(summary) == replace(chosen, run_id=None, tracking_uri=None)


def test_a_picture_of_each_trial_is_kept(done: Done) -> None:
    found, seen = done
    for event in seen:
        if isinstance(event, Ended):
            kept = found.strip(event.candidate.number)
            assert event.strip is not None
            assert kept is not None
            assert kept.shape == (2 * 28 + 2, 10 * 30 - 2)
            assert (kept == event.strip).all()


@pytest.mark.slow
def test_a_study_continues_only_with_more_trials_and_repeats_no_weight(tmp_path: Path) -> None:
    finished(tmp_path, having(trials=5, epochs=1))
    assert list(events(opened(tmp_path, having(trials=5, epochs=1)))) == []
    found = finished(tmp_path, having(trials=9, epochs=1))
    assert found.done() == len(found.trials()) == found.table()["kl_weight"].nunique() == 9


def test_several_objectives_give_a_front_and_prune_nothing(tmp_path: Path) -> None:
    found = finished(tmp_path, having(epochs=2, objectives=("reconstruction", "kl", "nll", "active_units")))
    assert states(found) == ["COMPLETE"] * 6
    table = found.table()
    assert (table["validation/nll"] < -table["validation/elbo"] + 1).all()
    assert found.choose().number in [trial.number for trial in found.front()]
    assert set(found.choose().values) == {"reconstruction", "kl", "nll", "active_units"}


def test_the_trial_of_the_front_nearest_to_its_ideal_corner_is_chosen(tmp_path: Path) -> None:
    found = opened(tmp_path, having(objectives=("reconstruction", "diversity")))
    rule = found.setting.space()
    for weight, values in zip([1.0, 2.0, 3.0, 4.0], [(10, 0.1), (11, 0.9), (20, 1.0), (21, 0.2)], strict=True):
        trial = optuna.create_trial(params={"kl_weight": weight}, distributions=rule, values=list(values))
        found.inner.add_trial(trial)
    assert [trial.number for trial in found.front()] == [0, 1, 2]
    assert found.choose().number == 1


@pytest.mark.parametrize("objective", ["elbo", "frechet"])
def test_an_infeasible_trial_is_best_only_where_all_are(tmp_path: Path, objective: Any) -> None:
    """Then it is the one with the highest class_accuracy."""
    found = opened(tmp_path, having(objectives=(objective,), least_class_accuracy=0.9))
    rule = found.setting.space()
    for weight, value, missing in [(1.0, 5.0, 0.4), (2.0, 6.0, 0.1), (3.0, 5.5, -0.05), (4.0, 5.6, -0.01)]:
        trial = optuna.create_trial(
            params={"kl_weight": weight}, distributions=rule, value=value, constraints={"class_accuracy": missing}
        )
        found.inner.add_trial(trial)
        if weight == 2.0:
            assert (found.choose().number, found.choose().feasible) == (1, False)
    assert (found.choose().number, found.choose().feasible) == (3 if objective == "elbo" else 2, True)


@pytest.mark.slow
def test_the_constraint_of_a_trial_is_its_class_accuracy(tmp_path: Path) -> None:
    found = finished(tmp_path, having(trials=4, pruner="none", epochs=2, least_class_accuracy=0.5))
    assert set(states(found)) == {"COMPLETE"}
    table = found.table()
    assert (table["feasible"] == (table["validation/fitted/class_accuracy"] >= 0.5)).all()


@pytest.mark.slow
def test_different_shapes_train_in_populations_of_their_own(tmp_path: Path) -> None:
    found = opened(
        tmp_path,
        having(
            trials=7, epochs=1, population=7, latent_size=(2, 4), conditioning=("sum", "concat"),
            learning_rate=(1e-3, 1e-2),
        ),
    )  # fmt: skip
    seen = [event for event in events(found) if isinstance(event, Epoch)]
    for event in seen:
        values = event.candidate.values
        assert event.model.latent_size == values["latent_size"]
        assert event.model.architecture.conditioning == values["conditioning"]
        # at the last step of its only epoch, half a cosine has nearly reached 0
        assert 0 < event.record.figures["learning_rate"] < values["learning_rate"]
    assert len({event.model.architecture for event in seen}) > 1
    open_values = {"objective.kl_weight", "model.latent_size", "model.conditioning", "train.learning_rate"}
    assert set(found.summary({})["params"]) == open_values
    assert set(found.importances()) == set(found.setting.space())


def test_a_diverged_member_is_a_result_and_the_others_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = population.start

    def sick(*arguments: Any) -> Any:
        members = start(*arguments)
        with torch.no_grad():
            members.weights["log_var.bias"][1] = 200.0  # its exponential overflows float32
        return members

    monkeypatch.setattr(population, "start", sick)
    found = opened(tmp_path, having(trials=3, epochs=2, population=3, pruner="none"))
    ended = {event.candidate.number: event for event in events(found) if isinstance(event, Ended)}
    assert "epoch 1" in ended[1].why
    assert found.table()["state"].tolist() == ["COMPLETE", "DIVERGED", "COMPLETE"]
    assert found.done() == 3
    with pytest.raises(UserError, match=r"trial 1 of study .* diverged: only a complete one can be chosen"):
        found.choose(1)


def test_a_member_that_cannot_be_measured_has_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, calls = Evaluator.samples, []

    def once_not_finite(self: Evaluator, *arguments: Any) -> dict[str, float]:
        calls.append(1)
        return measure(self, *arguments) | ({"frechet": math.nan} if len(calls) == 1 else {})

    monkeypatch.setattr(Evaluator, "samples", once_not_finite)
    found = finished(tmp_path, having(trials=3, population=3, epochs=1))
    assert found.table()["state"].tolist() == ["DIVERGED", "COMPLETE", "COMPLETE"]


def test_a_trial_that_cannot_be_chosen_is_named(done: Done, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no complete trial yet: run `cvae tune`"):
        opened(tmp_path).choose()
    sick = opened(tmp_path, having(trials=1))
    sick.tell(sick.ask(1)[0], "FAIL", "diverged")
    with pytest.raises(UserError, match=r"all trials of study .* diverged: set a lower train.learning_rate"):
        sick.choose()
    with pytest.raises(UserError, match=r"has no trial 17: `cvae study` lists"):
        done[0].choose(17)
    with pytest.raises(UserError, match=r"trial \d of study .* was pruned: only a complete one can be chosen"):
        done[0].choose(states(done[0]).index("PRUNED"))


def test_the_population_is_as_large_as_asked_or_a_third_of_the_study() -> None:
    sizes = [batch_size(having(trials=trials), CPU) for trials in (3, 21, 10_000)]
    assert [batch_size(having(population=9), CPU), *sizes] == [9, 4, 7, 16]


def test_several_latents_an_image_leave_memory_for_fewer_members(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 16 * population.member_bytes(SETTING.architecture, SETTING.train.batch_size)
    monkeypatch.setattr(population, "_memory", lambda _: 2 * needed)
    several = replace(SETTING, aim=objective_params(draws=50))
    assert batch_size(having(trials=10_000), CPU) == 16
    assert batch_size(having(several, trials=10_000), CPU) < 4
