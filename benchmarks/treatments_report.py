"""What benchmarks/treatments.csv says: the tables and the picture of docs/lab/treatments.md, or the README's few lines.

    python -m benchmarks.treatments_report             # rewrites what stands between the marks, and the picture
    python -m benchmarks.treatments_report --readme    # prints the few lines

Means ± standard deviations over seeds, on test. Which row is called the best was decided on validation.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.treatments import (
    CHOICE,
    CHOICE_COLUMNS,
    COLUMNS,
    FOLDER,
    SETTING,
    SETUP,
    TABLE,
    TREATMENTS,
    Setting,
    chosen,
    read_rows,
    settings_of,
)  # fmt: skip
from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.base.files import replacing
from pipeline.model.likelihood import names_on
from pipeline.model.samples import SAMPLERS
from pipeline.show import plots as figures

DOC, PICTURE = Path("docs/lab/treatments.md"), Path("docs/lab/treatments.png")
BEGIN, END = "<!-- treatments: written by `make treatments` -->", "<!-- treatments: end -->"
NOTHING = "Not measured yet: `make treatments` writes its tables here."
GROUP = [*SETTING, "sampler", "choice", "kl_weight"]
FORMATS = {
    "class_accuracy": ".3f", "diversity": ".2f", "frechet": ".1f", "precision": ".2f", "recall": ".2f",
    "density": ".2f", "coverage": ".2f", "nll": ".1f", "bits_per_dimension": ".3f", "reconstruction": ".1f",
    "kl": ".1f", "elbo": ".1f", "active_units": ".1f", "train_seconds": ".0f",
}  # fmt: skip
SHOWN = ("frechet", "class_accuracy", "diversity", "precision", "recall", "coverage")
FIT = ("nll", "reconstruction", "kl", "active_units", "train_seconds")


@dataclass(frozen=True)
class Figure:
    """A mean over seeds, and their standard deviation (of one seed there is none)."""

    mean: float
    std: float
    count: int

    def shown(self, name: str) -> str:
        if math.isnan(self.mean):
            return "–"
        # The minus of the rest of the prose; and a spread that rounds to nothing is one all the same.
        mean = f"{self.mean:,{FORMATS[name]}}".replace("-", "−")
        return mean if self.count < 2 or math.isnan(self.std) else f"{mean} ± {self.std:,{FORMATS[name]}}"


@dataclass(frozen=True)
class Results:
    """Both tables, and what they were made with. rows: a row a setting, sampler and choice, with its figures."""

    table: pd.DataFrame
    choices: pd.DataFrame
    setup: dict[str, Any]
    rows: list["Result"]

    def of(self, setting: Setting, sampler: str, choice: str) -> "Result | None":
        return next(
            (row for row in self.rows if (row.setting, row.sampler, row.choice) == (setting, sampler, choice)), None
        )

    def settings(self) -> list[Setting]:
        return list(dict.fromkeys(row.setting for row in self.rows))


@dataclass(frozen=True)
class Result:
    """One row of a summary."""

    setting: Setting
    sampler: str
    choice: str
    kl_weight: float
    figures: dict[str, Figure]
    at_edge: bool  # the chosen weight is the least or greatest of its grid: a better one may lie beyond

    def weight(self) -> str:
        return f"{self.kl_weight:g}{'*' if self.at_edge else ''}"

    def shown(self, name: str) -> str:
        return self.figures[name].shown(name)


def read(folder: Path) -> Results | None:
    """What has been measured; None where nothing has. Raises UserError for files that don't belong together."""
    if not (folder / TABLE).exists():
        return None
    table, choices = read_rows(folder / TABLE, COLUMNS), read_rows(folder / CHOICE, CHOICE_COLUMNS)
    try:
        setup = json.loads((folder / SETUP).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / SETUP} can't be read ({error}): run `make treatments`") from None
    if {*table["setup"], *choices["setup"]} - {setup["setup"]}:
        raise UserError(f"{folder / TABLE} has rows of another set-up than {SETUP}: run `make treatments`")
    rows = []
    for _, group in table.groupby(GROUP, sort=False):
        first = group.iloc[0]
        (setting,) = settings_of(group.iloc[:1])
        grid = choices.loc[[other == setting for other in settings_of(choices)], "kl_weight"].astype(float)
        weight = float(first["kl_weight"])
        values = {name: _figure(group[name]) for name in FORMATS}
        edge = first["choice"] == "tuned" and len(grid) > 1 and weight in (grid.min(), grid.max())
        rows.append(Result(setting, first["sampler"], first["choice"], weight, values, edge))
    return Results(table, choices, setup, rows)


def _figure(values: "pd.Series[Any]") -> Figure:
    known = values.dropna().astype(float)
    return Figure(float(known.mean()), float(known.std()), len(known))


# What it means, in sentences


def best(results: Results, sampler: str) -> Result | None:
    """The tuned row of one sampler whose setting had the least frechet on validation: grey pixels, constant weight."""
    found: tuple[float, Result] | None = None
    for setting in results.settings():
        row = results.of(setting, sampler, "tuned")
        if row is None or setting.pixels != "grey" or setting.treatment != "constant":
            continue
        tried = results.choices[[other == setting for other in settings_of(results.choices)]]
        at = tried.loc[tried["kl_weight"] == chosen(setting, results.choices, sampler), f"{sampler}_frechet"]
        value = float(at.iloc[0])
        if found is None or value < found[0]:
            found = value, row
    return found and found[1]


def verdict(untuned: Figure, tuned: Figure) -> str:
    """`worse`, `better` or `equal`: whether two means differ by more than two standard errors of the difference."""
    error = math.sqrt(sum(0.0 if math.isnan(f.std) else f.std**2 / f.count for f in (untuned, tuned)))
    difference = untuned.mean - tuned.mean
    if abs(difference) <= 2 * error:
        return "equal"
    return "worse" if difference > 0 else "better"


def sentences(results: Results) -> Iterator[str]:
    """The plain answers, each from the figures."""
    for sampler in SAMPLERS:
        row = best(results, sampler)
        if row is not None:
            yield (
                f"**Best with the {sampler} sampler** (by validation): {_named(row.setting)} at β = {row.kl_weight:g}, "
                f"frechet {row.shown('frechet')}, class_accuracy {row.shown('class_accuracy')}, diversity "
                f"{row.shown('diversity')}, coverage {row.shown('coverage')}."
            )
    answers = [answer for sampler in SAMPLERS if (answer := sigma_vae(results, sampler))]
    if answers:
        words = {word for word, _ in answers}
        short = {
            frozenset(["yes"]): "Yes.",
            frozenset(["no"]): "No, whichever the sampler.",
        }.get(frozenset(words), "It depends on the sampler.")
        yield f"**Does σ-VAE remove the need to tune?** {short} {' '.join(text for _, text in answers)}"
    text = by_prior(results)
    if text:
        yield text


def sigma_vae(results: Results, sampler: str) -> tuple[str, str] | None:
    """Whether `sigma_optimal` at weight 1 does as well as what was tuned, with the figures: (`yes` or `no`, words)."""
    setting = Setting("sigma_optimal", "standard")
    untuned, tuned = results.of(setting, sampler, "untuned"), results.of(setting, sampler, "tuned")
    top = best(results, sampler)
    if untuned is None or tuned is None or top is None:
        return None
    figure = untuned.figures["frechet"]
    own, all_ = verdict(figure, tuned.figures["frechet"]), verdict(figure, top.figures["frechet"])
    text = f"With the {sampler} sampler `sigma_optimal` at β = 1 has a frechet of {untuned.shown('frechet')}"
    if tuned.kl_weight == untuned.kl_weight:
        text += ", and tuning finds no better weight for it in its grid"
    else:
        text += f", tuned (β = {tuned.kl_weight:g}) {tuned.shown('frechet')}"
    if top.setting != setting:
        text += f"; the best tuned setting, {_named(top.setting)} at β = {top.kl_weight:g}, has {top.shown('frechet')}"
    loses = "worse" in (own, all_)
    word = "so tuning pays" if loses else "so nothing is lost without tuning"
    ratio = figure.mean / min(tuned.figures["frechet"].mean, top.figures["frechet"].mean)
    return ("no" if loses else "yes"), f"{text}: {word}{f' ({ratio:.1f} times)' if loses else ''}."


def by_prior(results: Results) -> str:
    """Which prior has the lower nll and frechet: in how many of the likelihoods' own comparisons each is the least."""
    lines = []
    for name, sampler in (("nll", "fitted"), ("frechet", "prior"), ("frechet", "fitted")):
        wins: dict[str, int] = {}
        groups = list(dict.fromkeys((row.setting.likelihood, row.setting.pixels) for row in results.rows))
        for group in groups:
            rows = [
                row for row in results.rows
                if (row.setting.likelihood, row.setting.pixels) == group and row.setting.treatment == "constant"
                and (row.sampler, row.choice) == (sampler, "tuned") and not math.isnan(row.figures[name].mean)
            ]  # fmt: skip
            if len(rows) > 1:
                first = min(rows, key=lambda row: row.figures[name].mean).setting.prior
                wins[first] = wins.get(first, 0) + 1
        if wins:
            counts = sorted(wins.items(), key=lambda item: -item[1])
            shares = ", ".join(f"`{prior}` in {count}" for prior, count in counts)
            lines.append(f"{name} at the weight chosen for the {sampler} sampler: {shares}")
    if not lines:
        return ""
    return f"**Which prior is least, of {len(groups)} likelihoods and pixels, in** {'; '.join(lines)}."


def _named(setting: Setting) -> str:
    return f"`{setting.likelihood}` with the {setting.prior} prior"


# Tables


def render(folder: Path) -> str:
    """What stands between the marks of docs/lab/treatments.md."""
    results = read(folder)
    if results is None or not results.rows:
        return NOTHING
    parts = [protocol(results), *(f"- {sentence}" for sentence in sentences(results)), ""]
    parts += [f"![Frechet by likelihood, prior and sampler]({PICTURE.name})", ""]
    for sampler in SAMPLERS:
        rows = [row for row in results.rows if row.sampler == sampler and row.setting.treatment == "constant"]
        parts += [f"**Samples, {sampler} sampler**, at the weight chosen for it", ""]
        parts += [
            *_table(["likelihood", "prior", "β", *SHOWN], [[*_head(row), *map(row.shown, SHOWN)] for row in rows])
        ]
        parts += [""]
    rows = [row for row in results.rows if row.sampler == "fitted" and row.setting.treatment == "constant"]
    parts += ["**The fit**, nats per image, at the weight chosen for the fitted sampler", ""]
    bits = ["bits_per_dimension"] if any(row.setting.likelihood in names_on("levels") for row in rows) else []
    columns = [FIT[0], *bits, *FIT[1:]]
    parts += _table(["likelihood", "prior", "β", *columns], [[*_head(row), *map(row.shown, columns)] for row in rows])
    parts += ["", *_schedules(results)]
    return "\n".join(parts).strip()


def protocol(results: Results) -> str:
    """How it was measured."""
    setup, first = results.setup, results.table.iloc[0]
    model, train = setup["architecture"], setup["train"]
    seeds = results.table["seed"].nunique()
    hidden = " and ".join(str(units) for units in model["encoder_hidden"])
    lines = [
        f"Measured on MNIST test by `make treatments`: {seeds} seeds, mean ± standard deviation. One budget for all: "
        f"{model['architecture']} with hidden layers of {hidden}, {first['train_images']:,} training images, "
        f"{train['epochs']} {'epoch' if train['epochs'] == 1 else 'epochs'} at batch {train['batch_size']}.",
        f"The KL weight β is the one with the least frechet on {setup['validation_images']:,} validation images, of a "
        "small grid and trained from a seed that is not among the measured ones; a collapsed model can't win. *: at "
        "the edge of its grid, so that a better one may lie beyond. *untuned* is β = 1, which nobody chose.",
        f"Samples are compared with {first['test_images']:,} test images; nll is of {first['nll_images']:,} of them, "
        f"with k = {first['nll_draws']}, and compares within one likelihood and kind of pixels alone (bits per "
        "dimension with published work). So short a training ranks beginnings: the default of `make repro` reaches a "
        "far lower frechet.",
        "",
    ]
    return "\n".join(lines).replace("*:", "\\*:")


def _head(row: Result) -> list[str]:
    name = f"`{row.setting.likelihood}`"
    name += ", binary pixels" if row.setting.pixels == "binary" else ""
    return [name, row.setting.prior, f"{row.weight()} *untuned*" if row.choice == "untuned" else row.weight()]


def _schedules(results: Results) -> list[str]:
    """The KL treatments beside the constant weight."""
    rows = [row for row in results.rows if row.setting.treatment in TREATMENTS]
    if not rows:
        return []
    plain = Setting("bernoulli", "standard")
    rows = [row for row in results.rows if row.setting == plain] + rows
    columns = ["sampler", "treatment", "β", *SHOWN[:3], "coverage", "kl", "active_units"]
    cells = [
        [row.sampler, f"`{row.setting.treatment}`", row.weight(), *map(row.shown, columns[3:])]
        for sampler in SAMPLERS
        for row in rows
        if row.sampler == sampler
    ]
    return ["**KL treatments**: `bernoulli`, standard prior, grey pixels", "", *_table(columns, cells), ""]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def readme(folder: Path) -> str:
    """The short form."""
    results = read(folder)
    if results is None or not results.rows:
        return NOTHING
    return "\n".join(f"- {sentence}" for sentence in sentences(results))


def replaced(text: str, inside: str) -> str:
    """The document with `inside` between its marks. Raises UserError where it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{DOC} has lost its marks: put back the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{inside}\n{END}{after}"


def picture(results: Results, path: Path) -> None:
    """Frechet by likelihood, prior and sampler."""
    rows = [
        {
            "setting": row.setting.likelihood + (", binary" if row.setting.pixels == "binary" else ""),
            "prior": row.setting.prior,
            "sampler": row.sampler,
            "choice": row.choice,
            "mean": row.figures["frechet"].mean,
            "std": row.figures["frechet"].std,
        }
        for row in results.rows
        if row.setting.treatment == "constant"
    ]
    with replacing(path) as part:
        figures.treatments(pd.DataFrame(rows)).savefig(part, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="print the few lines, and write nothing")
    parser.add_argument("--tables", type=Path, default=FOLDER, metavar="FOLDER", help="(default: benchmarks)")
    parser.add_argument("--doc", type=Path, default=DOC, metavar="FILE", help=f"(default: {DOC})")
    options = parser.parse_args()
    if options.readme:
        print(readme(options.tables))
        return
    results = read(options.tables)
    if results is None:
        raise UserError(f"{options.tables / TABLE} not found: run `make treatments`")
    text = options.doc.read_text(encoding="utf-8")
    with replacing(options.doc) as part:
        part.write_text(replaced(text, render(options.tables)), encoding="utf-8")
    picture(results, options.doc.with_name(PICTURE.name))
    print(f"{options.doc} and {options.doc.with_name(PICTURE.name)} written")


if __name__ == "__main__":
    console.run(main)
