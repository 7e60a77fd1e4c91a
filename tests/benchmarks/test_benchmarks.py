"""The benchmark itself, on small data: contenders do the same work, and figures are what they are said to be."""

import contextlib
import copy
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bands import banded
from settings import objective_params, train_params

from benchmarks import charts, contenders, machine, results, run
from benchmarks.contenders import CONTENDERS, Setting, in_own_process
from pipeline import SPINNING, SPINS
from pipeline.data import splits as data
from pipeline.model.cvae import PRESETS, build

CPU = torch.device("cpu")


def setting(rounds: int = 2, count: int = 20, batch_size: int = 50) -> Setting:
    params = train_params(epochs=rounds, batch_size=batch_size, learning_rate=2e-3)
    return Setting("article", banded(count, 0), banded(8, 1), params, objective_params(), rounds)


def needed(name: str) -> None:
    if name in ("lightning", "pythae") and not importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed by `make bench` alone")


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.filterwarnings("default")  # other people's programs warn as they like
def test_a_contender_trains_once_a_round(name: str) -> None:
    needed(name)
    task = setting(rounds=3)
    network = task.network()
    times = list(CONTENDERS[name](task, network))
    assert len(times) == 3
    assert min(times) > 0
    if name != "pythae":
        assert task.elbo(network) > task.elbo(task.network()) + 10


@pytest.mark.slow
def test_a_contender_in_its_own_process_trains_once_a_round_and_hands_its_weights_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SPINNING, SPINS)
    task, network, others = setting(rounds=2), setting().network(), multiprocessing.active_children()
    rounds = in_own_process("dataloader", task, network)
    elbos = [task.elbo(network)]
    with contextlib.closing(rounds):  # or else a failure would leave the process waiting, and pytest for it
        for seconds in rounds:
            assert seconds > 0
            elbos.append(task.elbo(network))
            if sys.platform == "linux":
                (child,) = set(multiprocessing.active_children()) - set(others)
                assert f"{SPINNING}=".encode() not in Path(f"/proc/{child.pid}/environ").read_bytes()
    assert elbos[0] + 10 < elbos[1] < elbos[2]
    assert set(multiprocessing.active_children()) <= set(others)  # it has ended


@pytest.mark.parametrize(("value", "inside"), [(SPINS, None), ("7", "7")])
def test_yardsticks_do_not_inherit_what_the_product_sets_and_do_what_the_user_sets(
    value: str, inside: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SPINNING, value)
    with contenders.without_our_environment():
        assert os.environ.get(SPINNING) == inside
    assert os.environ[SPINNING] == value


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_contenders_of_one_batch_size_end_at_the_same_elbo() -> None:
    """The same weights at first, the same rates and as many steps: only the order of images and the noise differ."""
    elbos = {}
    for name in ("dataloader", "lightning", "ours"):
        if name != "lightning" or importlib.util.find_spec(name):
            task = setting(rounds=6, count=40)
            network = task.network()
            list(CONTENDERS[name](task, network))
            elbos[name] = task.elbo(network)
    start = setting().elbo(setting().network())
    assert max(elbos.values()) - min(elbos.values()) < 0.05 * (min(elbos.values()) - start)


@pytest.mark.slow
def test_a_broken_contender_is_told_from_one_that_does_the_work() -> None:
    """One that trains on half the steps ends at another elbo, which the exit status tells."""
    entry = {"batch_size": run.BATCH, "images_per_second": 10.0}
    ours = {
        "ours_float32_128": entry | {"elbo": -100.2},
        "ours_float32_512": entry | {"batch_size": 512, "elbo": -140.0},
    }
    loop = {"dataloader": entry | {"elbo": -100.0}}
    assert run.agreed(loop | ours, 0.04) == ([], "ours_float32_128")
    assert run.agreed(loop | {"lightning": entry | {"elbo": -120.0}} | ours, 0.04)[0] == ["lightning"]
    assert run.agreed(loop | {"pythae": entry | {"elbo": None}} | ours, 0.04)[0] == []


def test_ours_is_the_fastest_setting_whose_elbo_is_no_worse() -> None:
    def entry(batch_size: int, elbo: float, pace: float) -> dict[str, Any]:
        return {"batch_size": batch_size, "elbo": elbo, "images_per_second": pace}

    race = {
        "dataloader": entry(128, -100, 1),
        "ours_float32_128": entry(128, -100, 3),
        "ours_float32_256": entry(256, -99, 4),
        "ours_float32_512": entry(512, -105, 9),
    }
    assert run.agreed(race, 0.04)[1] == "ours_float32_256"
    # A loop that ended badly is no licence for the others.
    race |= {"dataloader": entry(128, -106, 1), "lightning": entry(128, -99, 2)}
    assert run.agreed(race, 0.04) == (["dataloader"], "ours_float32_256")


@pytest.mark.slow
def test_the_products_of_a_step_are_those_that_it_does() -> None:
    """Counted by torch's own counter of floating-point operations."""
    from torch.utils.flop_counter import FlopCounterMode

    for preset, architecture in PRESETS.items():
        task = replace(setting(), preset=preset)
        network, rows = build(architecture, 0), task.train[:32]
        with FlopCounterMode(display=False) as counter:
            task.loss(network, data.to_unit(rows.images), rows.labels).backward()
        assert machine.flops(machine.products(network, 32)) == counter.get_total_flops()


def test_each_of_our_settings_has_a_name_of_its_own() -> None:
    found = list(run.entries(CPU))
    assert len({entry.name for entry in found}) == len(found)
    assert {"dataloader", "ours_float32_128", "ours_float32_256"} <= {entry.name for entry in found}
    task = setting()
    for entry in found:
        own = entry.setting("article", task.train, task.validation, 3)
        params, large = own.params, entry.batch_size > run.BATCH
        assert (params.epochs, params.batch_size, params.compile) == (3, entry.batch_size, entry.compile)
        # All end at the evidence lower bound; only larger batches take their time to come to it.
        assert (own.aim.kl_weight, own.aim.schedule) == (1, "warmup" if large else "constant")
    first, loop = found[-1].setting("article", task.train, task.validation, 3).network(), task.network()
    assert (found[-1].init, found[0].init) == ("dark", "torch")
    assert not torch.equal(first.pixels.weight, loop.pixels.weight)


def test_a_population_counts_as_fast_as_it_is_compiled_or_not() -> None:
    ratio = {"solo float32, compiled": 1.0, "16 members float32": 1.4, "16 members float32, compiled": 1.6}
    for faster in (1.6, 1.3):
        ratio["16 members float32, compiled"] = faster
        found = run.figures_of({}, {}, {"article": {"ratio": ratio}})
        assert found["article_population_16_ratio"] == max(faster, 1.4)
        assert found["article_population_16_time"] == 16 / max(faster, 1.4)


def test_a_verdict_for_each_bar() -> None:
    bars = {"pace": (5.0, "least"), "wait": (2.0, "most"), "unknown": (1.0, "most")}
    rows = results.verdicts({"pace": 4.9, "wait": 1.9}, bars)
    assert {name: row["met"] for name, row in rows.items()} == {"pace": False, "wait": True, "unknown": None}


def test_each_program_adds_its_part(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.add(path, {"growth": 1, "bars": {"a": 1}})
    results.add(path, {"date": 2, "bars": {"b": 2}})
    results.add(path, {"growth": 3})
    assert json.loads(path.read_text(encoding="utf-8")) == {"growth": 3, "date": 2, "bars": {"a": 1, "b": 2}}


def test_seconds_are_those_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the work moves; it is slow the first time, as whatever is built then."""
    now, calls = [0.0], [0]

    def work() -> None:
        calls[0] += 1
        now[0] += 0.01 if calls[0] > 1 else 5.0

    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert machine.seconds(work, CPU, rounds=3) == pytest.approx(0.01)
    assert calls[0] >= 1 + 5 + 3 * 5


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_counts_the_processes_that_a_command_starts() -> None:
    """A child that holds 200 MiB for a second, started by a shell."""
    program = "import time; held = b'x' * (200 * 2**20); time.sleep(1.5)"
    seconds, peak, status = machine.peak_memory(["sh", "-c", f'"{sys.executable}" -c "{program}"; true'])
    assert status == 0
    assert seconds > 1
    assert 0.19 < peak < 0.4


def test_the_copy_of_the_training_images_is_what_torchvision_reads(tmp_path: Any) -> None:
    from torchvision.datasets import MNIST

    from benchmarks.contenders import _as_published

    split = banded(3, 0)
    _as_published(tmp_path / "MNIST" / "raw", split)
    read = MNIST(str(tmp_path), train=True)
    assert torch.equal(read.data, split.images.squeeze(1))
    assert torch.equal(read.targets, split.labels)


def test_the_chart_is_small_and_names_the_machine(tmp_path: Any) -> None:
    entry = {"images_per_second": 1e4, "ratio": 2.0, "batch_size": 128, "precision": "float32", "compiled": False}
    entry |= {"init": "torch"}
    race = dict.fromkeys(["dataloader", "dataloader_2_workers", "lightning", "pythae", "ours_float32_128"], entry)
    race["ours_float32_128_compiled"] = entry | {"compiled": True}
    signed = {"machine": machine.describe(CPU), "versions": machine.versions(), "date": "today"}
    figure = charts.race(signed | {"contenders": {"strong": race, "article": race}})
    path = tmp_path / "chart.png"
    figure.savefig(path, dpi=80)
    assert path.stat().st_size < run.LARGEST_CHART
    note = figure._supxlabel.get_text()  # type: ignore[attr-defined]
    assert machine.describe(CPU)["processor"] in note
    assert torch.__version__.split("+")[0] in note


@pytest.mark.parametrize("module", ["run", "commands", "growth", "profile", "evaluation", "population", "judge"])
@pytest.mark.slow
def test_a_benchmark_says_what_it_does(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", "--help"], capture_output=True, text=True, check=True
    )
    assert f"python -m benchmarks.{module}" in done.stdout


def test_ours_is_the_product_s_own_training() -> None:
    """A round is an epoch of train.fit from the network's weights, in place."""
    from pipeline.training import fit as train

    task = setting(rounds=1)
    network = task.network()
    alone = train.start(copy.deepcopy(network), task.params, CPU)
    list(CONTENDERS["ours"](task, network))
    list(train.fit(alone, task.train, task.validation, task.params, task.aim))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), alone.model.parameters(), strict=True))
