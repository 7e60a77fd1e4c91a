"""The table of treatments on tiny data: the choice sees validation alone, and nothing is lost or mixed up."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import pytest
from bands import banded, judge
from imports import ROOT
from settings import objective_params, train_params

from benchmarks import treatments, treatments_report
from benchmarks.treatments import (
    CHOICE,
    CHOICE_COLUMNS,
    COLUMNS,
    SETUP,
    TABLE,
    Choose,
    Measure,
    Setting,
    Setup,
    grids,
    keep,
    read_rows,
    run,
    settings,
    to_choose,
    to_measure,
)
from pipeline.base.errors import UserError
from pipeline.data.splits import Split
from pipeline.measure.judge import Reader
from pipeline.model.cvae import Architecture
from pipeline.model.likelihood import LIKELIHOODS
from pipeline.model.samples import SAMPLERS

SETUP_ = Setup(
    architecture=Architecture(2, (8,), (8,), "concat", encoder_sees_label=True),
    prior_components=2,
    aim=objective_params(),
    train=train_params(epochs=1, batch_size=50),
    components=1,
    grids=dict.fromkeys(LIKELIHOODS, (0.5, 2.0)),
    train_images=200,
    validation_images=80,
    test_images=90,
    nll_images=10,
    nll_draws=3,
    hashes={"data": "a", "judge": "b"},
)
SPLITS = {"train": banded(20, 0), "validation": banded(8, 1), "test": banded(9, 2)}
TWO = [Setting("bernoulli", "standard"), Setting("sigma_optimal", "class")]


@dataclass
class Given:
    """Splits from memory; what is opened, and when, is looked at."""

    splits: dict[str, Split] = field(default_factory=lambda: dict(SPLITS))
    opened: list[str] = field(default_factory=list)
    on_open: Callable[[str], object] = str.upper  # of no effect, and a worker can unpickle it

    def split(self, name: str) -> Split:
        self.on_open(name)
        self.opened.append(name)
        return self.splits[name]

    def reader(self) -> Reader:
        return judge


def measured(
    folder: Path,
    source: Given | None = None,
    setup: Setup = SETUP_,
    wanted: Sequence[Setting] = TWO,
    seeds: int = 2,
    untuned: Sequence[str] = ("sigma_optimal",),
    say: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    run(setup, wanted, folder, source or Given(), seeds=seeds, untuned=untuned, say=say)
    return read_rows(folder / TABLE, COLUMNS)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    measured(folder)
    return folder


def read(folder: Path) -> bytes:
    """The tables but for the seconds, which no two runs share."""
    table = read_rows(folder / TABLE, COLUMNS).drop(columns="train_seconds")
    return table.to_csv().encode() + (folder / CHOICE).read_bytes()


# ── the choice ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_test_is_not_opened_before_every_choice_is_written(tmp_path: Path) -> None:
    def look(name: str) -> None:
        if name == "test":
            choices = read_rows(tmp_path / CHOICE, CHOICE_COLUMNS)
            assert to_choose(TWO, choices, SETUP_) == []
            assert not (tmp_path / TABLE).exists()

    source = Given(on_open=look)
    measured(tmp_path, source)
    assert "test" in source.opened


@pytest.mark.slow
def test_a_test_split_that_cannot_be_read_leaves_the_choice_as_it_is(tmp_path: Path, done: Path) -> None:
    def refuse(name: str) -> None:
        if name == "test":
            raise RuntimeError("test is closed")

    with pytest.raises(RuntimeError, match="test is closed"):
        measured(tmp_path, Given(on_open=refuse))
    assert (tmp_path / CHOICE).read_bytes() == (done / CHOICE).read_bytes()
    assert not (tmp_path / TABLE).exists()


@pytest.mark.slow
def test_the_figures_are_of_test_and_the_choice_is_not(tmp_path: Path, done: Path) -> None:
    measured(tmp_path, Given(SPLITS | {"test": banded(9, 5)}))
    assert (tmp_path / CHOICE).read_bytes() == (done / CHOICE).read_bytes()
    ours, theirs = read_rows(tmp_path / TABLE, COLUMNS), read_rows(done / TABLE, COLUMNS)
    assert ours["kl_weight"].equals(theirs["kl_weight"])
    assert (ours["reconstruction"] != theirs["reconstruction"]).all()
    assert (ours["frechet"] != theirs["frechet"]).all()


@pytest.mark.slow
def test_another_validation_split_changes_the_choice_s_figures(tmp_path: Path, done: Path) -> None:
    measured(tmp_path, Given(SPLITS | {"validation": banded(8, 6)}))
    ours, theirs = read_rows(tmp_path / CHOICE, CHOICE_COLUMNS), read_rows(done / CHOICE, CHOICE_COLUMNS)
    assert (ours["fitted_frechet"] != theirs["fitted_frechet"]).all()


def tried(**figures: Sequence[float]) -> pd.DataFrame:
    """A choice table of one setting at weights 0.5, 1, 2, …"""
    count = len(next(iter(figures.values())))
    rows = pd.DataFrame(
        {"likelihood": "bernoulli", "prior": "standard", "pixels": "grey", "treatment": "constant", **figures}
    )
    return rows.assign(kl_weight=[0.5 * 2**index for index in range(count)])


def test_each_sampler_s_weight_is_the_one_of_its_least_frechet() -> None:
    table = tried(
        prior_frechet=[9, 5, 7], fitted_frechet=[2, 3, 4], prior_diversity=[1, 1, 1], fitted_diversity=[1, 1, 1]
    )
    assert treatments.chosen(TWO[0], table, "prior") == 1
    assert treatments.chosen(TWO[0], table, "fitted") == 0.5


def test_a_collapsed_or_diverged_weight_is_not_chosen_while_there_is_another() -> None:
    table = tried(prior_frechet=[math.nan, 5, 1], prior_diversity=[math.nan, 0.5, 0.1])
    assert treatments.chosen(TWO[0], table, "prior") == 1
    assert treatments.chosen(TWO[0], table.iloc[[2]], "prior") == 2
    with pytest.raises(UserError, match="diverged at every weight"):
        treatments.chosen(TWO[0], table.iloc[[0]], "prior")


def test_measured_seeds_are_not_the_one_that_chose(done: Path) -> None:
    choices, table = read_rows(done / CHOICE, CHOICE_COLUMNS), read_rows(done / TABLE, COLUMNS)
    assert not set(choices["seed"]) & set(table["seed"])
    assert table["seed"].nunique() == 2


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_for_each_setting_sampler_choice_and_seed(done: Path) -> None:
    table, choices = read_rows(done / TABLE, COLUMNS), read_rows(done / CHOICE, CHOICE_COLUMNS)
    expected = [
        (setting.likelihood, sampler, choice, seed)
        for setting in TWO
        for sampler in sorted(SAMPLERS)
        for choice in (["tuned", "untuned"] if setting.likelihood == "sigma_optimal" else ["tuned"])
        for seed in (1, 2)
    ]
    assert list(zip(table["likelihood"], table["sampler"], table["choice"], table["seed"], strict=True)) == expected
    assert len(choices) == 4
    for row in table.to_dict("records"):
        (setting,) = treatments.settings_of(pd.DataFrame([row]))
        weight = treatments.chosen(setting, choices, row["sampler"]) if row["choice"] == "tuned" else 1.0
        assert row["kl_weight"] == weight
    assert table[["nll", "frechet", "coverage", "active_units", "train_seconds"]].notna().all(axis=None)
    assert (table["test_images"] == 90).all()
    assert (table["nll_draws"] == 3).all()


def test_seeds_and_samplers_differ_and_the_fit_of_one_model_does_not(done: Path) -> None:
    table = read_rows(done / TABLE, COLUMNS)
    for _, group in table.groupby(["likelihood", "choice"]):
        assert group["frechet"].nunique() == len(group) == 4
    by_model = table.groupby(["likelihood", "kl_weight", "seed"])["nll"].nunique()
    assert (by_model == 1).all()


def test_all_likelihoods_priors_and_pixels_are_asked_for() -> None:
    found = settings(list(LIKELIHOODS), schedules=True)
    assert len(found) == len(set(found)) == 6 * 3 + 3 + 4
    assert {setting.likelihood for setting in found if setting.pixels == "binary"} == {"bernoulli"}


@pytest.mark.parametrize("setting", settings(list(LIKELIHOODS), schedules=True), ids=str)
def test_every_setting_is_trained_and_measured(setting: Setting) -> None:
    bench = treatments.Bench(SETUP_, Given())
    (row,) = Measure(setting, (("fitted", "tuned", 0.5),), 1)(bench)
    assert math.isfinite(row["nll"])
    assert math.isfinite(row["frechet"])
    assert (row["bits_per_dimension"] is None) == (setting.likelihood != "discretized_logistic")
    assert row["treatment"] == setting.treatment


def test_a_treatment_reaches_the_objective() -> None:
    aims = {name: Setting("bernoulli", "standard", treatment=name).aim(SETUP_.aim) for name in treatments.TREATMENTS}
    assert [aims[name].schedule for name in aims] == ["warmup", "cyclical", "capacity", "constant"]
    assert [aims[name].free_bits is not None for name in aims] == [False, False, False, True]


def test_a_model_that_diverged_has_a_row_without_figures(tmp_path: Path) -> None:
    setup = replace(SETUP_, train=replace(SETUP_.train, learning_rate=1e30))
    rows = Choose(TWO[0], (0.5,))(treatments.Bench(setup, Given()))
    keep(tmp_path / CHOICE, rows, CHOICE_COLUMNS, TWO, "x")
    assert read_rows(tmp_path / CHOICE, CHOICE_COLUMNS)["fitted_frechet"].isna().all()


# ── killed, gone on with, asked anew ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 2, 3, 5])
def test_a_run_that_was_killed_goes_on_to_the_same_table(
    tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    count = 0

    def counted(task: Choose | Measure, bench: treatments.Bench) -> list[treatments.Row]:
        nonlocal count
        count += 1
        if count > stop_after:
            raise KeyboardInterrupt
        return plain[type(task)](task, bench)

    plain: dict[type, Callable[..., list[treatments.Row]]] = {Choose: Choose.__call__, Measure: Measure.__call__}
    with monkeypatch.context() as patch:
        patch.setattr(Choose, "__call__", counted)
        patch.setattr(Measure, "__call__", counted)
        with pytest.raises(KeyboardInterrupt):
            measured(tmp_path)
    assert len(read_rows(tmp_path / CHOICE, CHOICE_COLUMNS)) == 2 * min(stop_after, 2)
    assert (tmp_path / TABLE).exists() == (stop_after > 2)
    measured(tmp_path)
    assert read(tmp_path) == read(done)


@pytest.mark.slow
def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    measured(tmp_path)
    said: list[str] = []
    source = Given()
    measured(tmp_path, source, say=said.append)
    assert source.opened == []
    assert said == ["everything is measured already"]


@pytest.mark.slow
def test_more_settings_and_seeds_add_rows_and_keep_the_others(tmp_path: Path, done: Path) -> None:
    first = measured(tmp_path, wanted=TWO[:1], seeds=1, untuned=())
    both = measured(tmp_path)
    assert read(tmp_path) == read(done)
    assert set(first["train_seconds"]) <= set(both["train_seconds"])


@pytest.mark.slow
def test_a_grid_that_grows_adds_its_weights_and_measures_what_is_chosen_anew(tmp_path: Path, done: Path) -> None:
    whole = SETUP_.grids
    measured(tmp_path, setup=replace(SETUP_, grids=dict.fromkeys(LIKELIHOODS, (2.0,))))
    before = read_rows(tmp_path / TABLE, COLUMNS).astype({"kl_weight": float})
    assert set(before[before["choice"] == "tuned"]["kl_weight"]) == {2.0}
    measured(tmp_path, setup=replace(SETUP_, grids=whole))
    # By another population each is trained as well as alone, but not to the last digit.
    for name, columns in ((TABLE, COLUMNS), (CHOICE, CHOICE_COLUMNS)):
        found, other = (read_rows(folder / name, columns) for folder in (tmp_path, done))
        keys = [column for column in treatments.KEY if column in columns]
        pd.testing.assert_frame_equal(found[keys], other[keys])
    table = read_rows(tmp_path / TABLE, COLUMNS)
    same = before.merge(table, on=[*treatments.KEY, "train_seconds"])
    assert len(same) == (table["kl_weight"] == 2.0).sum() + (table["choice"] == "untuned").sum()


@pytest.mark.slow
def test_rows_of_another_set_up_are_set_aside_and_come_back(tmp_path: Path, done: Path) -> None:
    measured(tmp_path)
    said: list[str] = []
    other = replace(SETUP_, nll_draws=4, hashes={"data": "a", "judge": "c"})
    table = measured(tmp_path, setup=other, say=said.append)
    assert (table["nll_draws"] == 4).all()
    assert "nll_draws, hashes.judge" in said[0]
    kept = tmp_path / "aside" / SETUP_.digest()
    assert read(kept) == read(done)
    source = Given()
    measured(tmp_path, source)
    assert source.opened == []
    assert read(tmp_path) == read(done)


def test_weight_seed_and_machine_are_no_part_of_the_set_up() -> None:
    for train in (replace(SETUP_.train, seed=9), replace(SETUP_.train, device="cuda", precision="bfloat16")):
        assert replace(SETUP_, train=train).digest() == SETUP_.digest()
    assert replace(SETUP_, aim=objective_params(kl_weight=7.0)).digest() == SETUP_.digest()
    assert replace(SETUP_, train=replace(SETUP_.train, epochs=2)).digest() != SETUP_.digest()


@pytest.mark.parametrize("broken", ["columns", "setup", "no setup", "mixed"])
def test_tables_that_are_not_ours_are_refused_in_a_line(tmp_path: Path, done: Path, broken: str) -> None:
    for name in (TABLE, CHOICE, SETUP):
        (tmp_path / name).write_bytes((done / name).read_bytes())
    if broken == "columns":
        (tmp_path / TABLE).write_text("a,b\n1,2\n")
    elif broken == "setup":
        (tmp_path / SETUP).write_text("[]")
    elif broken == "no setup":
        (tmp_path / SETUP).unlink()
    else:
        text = (tmp_path / TABLE).read_text()
        (tmp_path / TABLE).write_text(text.replace(SETUP_.digest(), "0" * 16, 1))
    with pytest.raises(UserError, match="treatments") as caught:
        measured(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_progress_says_what_is_reckoned_and_what_is_left(tmp_path: Path) -> None:
    said: list[str] = []
    measured(tmp_path, say=said.append)
    assert any(line.startswith("reckoned, with one process: 4 models to choose weights on validation") for line in said)
    steps = [line for line in said if " left)" in line]
    assert len(steps) == 2 + 4
    assert steps[-1].startswith("6/6")
    assert steps[-1].endswith("(0 s left)")


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path: Path, done: Path) -> None:
    run(SETUP_, TWO, tmp_path, Given(), seeds=2, untuned=["sigma_optimal"], workers=2)
    assert read(tmp_path) == read(done)


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_weights_are_given_to_all_or_to_one() -> None:
    found = grids(["3,1", "bernoulli=0.5"], tuple(LIKELIHOODS))
    assert found["bernoulli"] == (0.5,)
    assert found["gaussian"] == (1, 3)


@pytest.mark.parametrize("option", ["0", "a", "bernouli=1", "1,", "inf", "nan"])
def test_weights_that_are_none_are_refused(option: str) -> None:
    with pytest.raises(UserError, match="--weights"):
        grids([option], tuple(LIKELIHOODS))


def test_every_default_grid_holds_what_is_measured_untuned() -> None:
    assert all(len(grid) >= 3 and list(grid) == sorted(grid) for grid in treatments.GRIDS.values())
    assert treatments.UNTUNED in treatments.GRIDS["sigma_optimal"]


def test_quick_changes_options_that_there_are() -> None:
    known = vars(treatments.parser().parse_args([]))
    assert set(treatments.QUICK) <= set(known)


# ── the report ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_document_agrees_with_the_committed_table() -> None:
    text = (ROOT / treatments_report.DOC).read_text(encoding="utf-8")
    assert treatments_report.replaced(text, treatments_report.render(ROOT / "benchmarks")) == text
    measured_yet = (ROOT / "benchmarks" / TABLE).exists()
    assert (ROOT / treatments_report.PICTURE).exists() == measured_yet


def synthetic(folder: Path, untuned: Sequence[float], tuned: Sequence[float], other: Sequence[float]) -> Path:
    """Tables with these frechets over seeds, of σ-optimal untuned and tuned and of a bernoulli, for both samplers."""
    sigma, bernoulli = Setting("sigma_optimal", "standard"), Setting("bernoulli", "standard")
    rows, tries = [], []
    for setting, choice, weight, values in (
        (sigma, "untuned", 1.0, untuned), (sigma, "tuned", 3.0, tuned), (bernoulli, "tuned", 0.5, other),
    ):  # fmt: skip
        for sampler in SAMPLERS:
            for seed, value in enumerate(values, 1):
                rows.append({
                    **vars(setting), "sampler": sampler, "choice": choice, "kl_weight": weight, "seed": seed,
                    "frechet": value, "class_accuracy": 0.9, "diversity": 0.8, "nll": -100.0, "train_images": 10,
                    "test_images": 20, "nll_images": 5, "nll_draws": 3, "epochs": 1,
                })  # fmt: skip
    for setting, weights, frechet in ((sigma, (1.0, 3.0, 10.0), 30.0), (bernoulli, (0.5, 1.0), 20.0)):
        for index, weight in enumerate(weights):
            figures = {f"{sampler}_frechet": frechet + abs(index - (setting == sigma)) for sampler in SAMPLERS}
            figures |= {f"{sampler}_diversity": 1.0 for sampler in SAMPLERS}
            tries.append({**vars(setting), "kl_weight": weight, "seed": 0, **figures})
    treatments.prepare(folder, SETUP_)
    keep(folder / TABLE, rows, COLUMNS, [sigma, bernoulli], SETUP_.digest())
    keep(folder / CHOICE, tries, CHOICE_COLUMNS, [sigma, bernoulli], SETUP_.digest())
    return folder


def test_means_and_deviations_are_over_seeds(tmp_path: Path) -> None:
    results = treatments_report.read(synthetic(tmp_path, [40, 42, 44], [30, 31, 32], [20, 20, 20]))
    assert results is not None
    row = results.of(Setting("sigma_optimal", "standard"), "prior", "untuned")
    assert row is not None
    assert (row.figures["frechet"].mean, row.figures["frechet"].std, row.figures["frechet"].count) == (42, 2, 3)
    assert row.shown("frechet") == "42.0 ± 2.0"
    assert row.shown("nll") == "−100.0 ± 0.0"
    assert row.shown("coverage") == "–"


@pytest.mark.parametrize(
    ("untuned", "short", "words"),
    [
        ([60, 62, 64], "No, whichever the sampler.", "so tuning pays (3.1 times)"),
        ([19, 20, 21], "Yes.", "so nothing is lost without tuning"),
        ([20, 40, 60], "Yes.", "so nothing is lost without tuning"),  # within two standard errors
    ],
)
def test_whether_tuning_is_needed_follows_from_the_figures(
    tmp_path: Path, untuned: list[float], short: str, words: str
) -> None:
    text = treatments_report.readme(synthetic(tmp_path, untuned, [30, 31, 32], [19, 20, 21]))
    assert f"**Does σ-VAE remove the need to tune?** {short}" in text
    assert text.count(words) == 2


def test_the_best_row_is_the_one_that_validation_likes_best_whatever_test_says(tmp_path: Path) -> None:
    """On test σ-optimal is ahead; on validation the bernoulli was."""
    results = treatments_report.read(synthetic(tmp_path, [5, 5, 5], [5, 5, 5], [20, 21, 22]))
    assert results is not None
    best = treatments_report.best(results, "fitted")
    assert best is not None
    assert best.setting.likelihood == "bernoulli"


def test_a_weight_at_the_edge_of_its_grid_is_marked(tmp_path: Path) -> None:
    results = treatments_report.read(synthetic(tmp_path, [5], [5], [5]))
    assert results is not None
    assert {(row.setting.likelihood, row.weight()) for row in results.rows} == {
        ("sigma_optimal", "1"), ("sigma_optimal", "3"), ("bernoulli", "0.5*"),
    }  # fmt: skip


def test_the_report_takes_the_place_of_the_one_before(done: Path) -> None:
    text = f"above\n{treatments_report.BEGIN}\nold\n{treatments_report.END}\nbelow\n"
    new = treatments_report.replaced(text, treatments_report.render(done))
    assert new.startswith("above\n")
    assert new.endswith("\nbelow\n")
    assert "old" not in new
    assert treatments_report.replaced(new, treatments_report.render(done)) == new
    for name in ("`sigma_optimal`", "*untuned*", "±", "frechet"):
        assert name in new
    with pytest.raises(UserError, match="marks"):
        treatments_report.replaced("no marks", "x")


def test_every_measured_row_stands_in_the_report(done: Path) -> None:
    text = treatments_report.render(done)
    results = treatments_report.read(done)
    assert results is not None
    for row in results.rows:
        assert row.shown("frechet") in text
    assert "**KL treatments**" not in text


@pytest.mark.slow
def test_schedules_stand_in_a_table_of_their_own(tmp_path: Path) -> None:
    wanted = [TWO[0], *(Setting("bernoulli", "standard", treatment=name) for name in treatments.TREATMENTS)]
    measured(tmp_path, wanted=wanted, seeds=1, untuned=())
    text = treatments_report.render(tmp_path)
    assert text.index("**KL treatments**") > text.index("**The fit**")
    for name in treatments.TREATMENTS:
        assert text.count(f"| `{name}` |") == 2


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    assert treatments_report.render(tmp_path) == treatments_report.readme(tmp_path) == treatments_report.NOTHING


def test_the_picture_is_small(tmp_path: Path, done: Path) -> None:
    results = treatments_report.read(done)
    assert results is not None
    treatments_report.picture(results, tmp_path / "x.png")
    assert 1000 < (tmp_path / "x.png").stat().st_size < 100_000


def test_the_set_up_is_written_whole_and_names_the_data_and_the_judge(done: Path) -> None:
    content = json.loads((done / SETUP).read_text(encoding="utf-8"))
    assert content["hashes"] == {"data": "a", "judge": "b"}
    assert content["setup"] == SETUP_.digest()
    assert {"architecture", "train", "aim", "machine"} <= set(content)
    assert to_measure([], pd.DataFrame(), pd.DataFrame(columns=list(COLUMNS)), (), 1) == []
