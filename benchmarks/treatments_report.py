"""Writes the tables and the figure of docs/lab/treatments.md from benchmarks/treatments.csv.

    python -m benchmarks.treatments_report

Means ± standard deviations over seeds, on test. Which setting is called best was decided on validation.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import charts
from benchmarks.results import between
from benchmarks.treatments import CHOICE, FOLDER, SCHEDULES, SETTING, SETUP, TABLE, chosen
from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.base.files import replacing, write_text
from pipeline.model.samples import SAMPLERS

DOC = Path("docs/lab/treatments.md")
BEGIN, END = "<!-- treatments: written by `make treatments` -->", "<!-- treatments: end -->"
FORMATS = {
    "class_accuracy": ".3f", "diversity": ".2f", "frechet": ".1f", "precision": ".2f", "recall": ".2f",
    "coverage": ".2f", "nll": ".1f", "bits_per_dimension": ".3f", "reconstruction": ".1f", "kl": ".1f",
    "active_units": ".1f", "train_seconds": ".0f",
}  # fmt: skip
SHOWN = ("frechet", "class_accuracy", "diversity", "precision", "recall", "coverage")
FIT = ("nll", "bits_per_dimension", "reconstruction", "kl", "active_units", "train_seconds")
OF_SCHEDULES = ("frechet", "class_accuracy", "diversity", "coverage", "kl", "active_units")


@dataclass(frozen=True)
class Results:
    """table: treatments.csv. choice: treatments.choice.csv. setup: treatments.json. rows: see `summary`."""

    table: pd.DataFrame
    choice: pd.DataFrame
    setup: dict[str, Any]
    rows: pd.DataFrame


def read(folder: Path) -> Results:
    """What was measured. Raises UserError where nothing was, or the files have different set-ups."""
    try:
        table, choice = pd.read_csv(folder / TABLE), pd.read_csv(folder / CHOICE)
        setup = json.loads((folder / SETUP).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / TABLE} can't be read ({error}): run `make treatments`") from None
    if {*table["setup"], *choice["setup"]} != {setup["setup"]}:
        raise UserError(f"{folder / TABLE} has another set-up than {SETUP}: run `make treatments`")
    return Results(table, choice, setup, summary(table, choice))


def summary(table: pd.DataFrame, choice: pd.DataFrame) -> pd.DataFrame:
    """A row per setting, sampler and choice: its figures as `mean ± std`, and frechet's `mean`, `std` as numbers.

    at_end: the chosen weight is at an end of its grid, so a better one may lie beyond.
    """
    rows = []
    for key, group in table.groupby([*SETTING, "sampler", "choice", "kl_weight"], sort=False):
        row: dict[str, Any] = dict(zip([*SETTING, "sampler", "choice", "kl_weight"], key, strict=True))
        grid = of_setting(choice, row)["kl_weight"]
        row["at_end"] = row["choice"] == "tuned" and len(grid) > 1 and row["kl_weight"] in (grid.min(), grid.max())
        row |= {name: shown(group[name], form) for name, form in FORMATS.items()}
        rows.append(row | {"mean": group["frechet"].mean(), "std": group["frechet"].std()})
    return pd.DataFrame(rows)


def of_setting(table: pd.DataFrame, row: Any) -> pd.DataFrame:
    return table[(table[list(SETTING)] == [row[name] for name in SETTING]).all(axis=1)]


def shown(values: "pd.Series[Any]", form: str) -> str:
    """`12.0 ± 0.5`; one seed has no deviation; `–` where nothing is known.

    >>> shown(pd.Series([-1.0, -2.0]), ".1f")
    '−1.5 ± 0.7'
    """
    known = values.dropna()
    if not len(known):
        return "–"
    mean = f"{known.mean():,{form}}".replace("-", "−")
    return mean if len(known) < 2 else f"{mean} ± {known.std():,{form}}"


def render(results: Results) -> str:
    """What stands between the marks of the page."""
    rows = results.rows
    plain = rows[rows["treatment"] == "constant"]
    parts = [protocol(results), "", *best(results), "", "![Frechet by likelihood, prior and sampler](treatments.png)"]
    for sampler in SAMPLERS:
        parts += ["", f"**Samples, {sampler} sampler**, at the weight chosen for it", ""]
        parts += markdown(plain[plain["sampler"] == sampler], SHOWN)
    parts += ["", "**The fit**, nats per image, at the weight chosen for the fitted sampler", ""]
    parts += markdown(plain[plain["sampler"] == "fitted"], FIT)
    if rows["treatment"].isin(SCHEDULES).any():
        bernoulli = (rows[["likelihood", "prior", "pixels"]] == ["bernoulli", "standard", "grey"]).all(axis=1)
        tuned = rows[bernoulli & (rows["choice"] == "tuned")].sort_values("sampler", ascending=False, kind="stable")
        cells = [
            [row["sampler"], f"`{row['treatment']}`", weight(row), *(row[name] for name in OF_SCHEDULES)]
            for row in tuned.to_dict("records")
        ]
        parts += ["", "**KL treatments**: `bernoulli`, standard prior, grey pixels", ""]
        parts += lines(["sampler", "treatment", "β", *OF_SCHEDULES], cells)
    return "\n".join(parts)


def protocol(results: Results) -> str:
    """How it was measured."""
    setup, first, seeds = results.setup, results.table.iloc[0], results.table["seed"].nunique()
    epochs = f"{first['epochs']} {'epoch' if first['epochs'] == 1 else 'epochs'}"
    hidden = " and ".join(map(str, setup["architecture"]["encoder_hidden"]))
    return (
        f"Measured on MNIST test by `make treatments`: {seeds} seeds, mean ± standard deviation. One budget for all: "
        f"hidden layers of {hidden}, {first['train_images']:,} training images, {epochs} at batch "
        f"{setup['train']['batch_size']}.\n"
        f"The KL weight β has the lowest frechet on {setup['validation_images']:,} validation images, among a small "
        "grid. It was chosen with a seed that is not measured, and a collapsed model can't be chosen. \\*: at an end "
        "of its grid, so a better one may lie beyond. *untuned*: β = 1, without a choice.\n"
        f"Samples are compared with {first['test_images']:,} test images. The nll is of {first['nll_images']:,} of "
        f"them, with k = {first['nll_draws']}. Compare it only within one likelihood and kind of pixels."
    )


def best(results: Results) -> Iterator[str]:
    """For each sampler the setting that had the lowest frechet on validation, with its figures on test."""
    rows = results.rows
    rows = rows[(rows["pixels"] == "grey") & (rows["treatment"] == "constant") & (rows["choice"] == "tuned")]
    for sampler in SAMPLERS:
        found = []
        for row in rows[rows["sampler"] == sampler].to_dict("records"):
            tried = of_setting(results.choice, row)
            found.append((tried.loc[tried["kl_weight"] == chosen(tried, sampler), f"{sampler}_frechet"].iloc[0], row))
        _, row = min(found, key=lambda pair: pair[0])
        figures = ", ".join(f"{name} {row[name]}" for name in ("frechet", "class_accuracy", "diversity", "coverage"))
        yield (
            f"- **Best with the {sampler} sampler** (by validation): `{row['likelihood']}` with the {row['prior']} "
            f"prior at β = {row['kl_weight']:g}, {figures}."
        )


def markdown(rows: pd.DataFrame, names: Sequence[str]) -> list[str]:
    names = [name for name in names if (rows[name] != "–").any()]
    cells = [[*head(row), *(row[name] for name in names)] for row in rows.to_dict("records")]
    return lines(["likelihood", "prior", "β", *names], cells)


def head(row: Any) -> list[str]:
    name = f"`{row['likelihood']}`{', binary pixels' if row['pixels'] == 'binary' else ''}"
    return [name, row["prior"], f"{weight(row)}{' *untuned*' if row['choice'] == 'untuned' else ''}"]


def weight(row: Any) -> str:
    return f"{row['kl_weight']:g}{'*' if row['at_end'] else ''}"


def lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def picture(rows: pd.DataFrame, path: Path) -> None:
    """Frechet by likelihood, prior and sampler."""
    plain = rows[rows["treatment"] == "constant"]
    binary = plain["pixels"].map({"grey": "", "binary": ", binary"})
    with replacing(path) as part:
        charts.treatments(plain.assign(setting=plain["likelihood"] + binary)).savefig(part, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=FOLDER, metavar="FOLDER", help=f"({FOLDER})")
    parser.add_argument("--doc", type=Path, default=DOC, metavar="FILE", help=f"({DOC})")
    options = parser.parse_args()
    results = read(options.tables)
    write_text(options.doc, between(options.doc, BEGIN, END, render(results)))
    picture(results.rows, options.doc.with_name("treatments.png"))
    print(f"{options.doc} and its figure written")


if __name__ == "__main__":
    console.run(main)
