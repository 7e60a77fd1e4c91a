"""How often the study's interval holds the truly best weight: many small studies on real images.

    python -m benchmarks.study_coverage --rounds 200 --kept reports/coverage.csv     # about half an hour on two cores

Eight weights train on 2,000 images with each of 200 seeds (a small network, three epochs). The means over all seeds
are taken for the truth. Blocks of `--seeds` seeds are then studies of their own, raced by the study's own rule from the
kept figures, as they would have been trained. It goes on from the kept file. The result stands in docs/lab/study.md.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from pipeline.base.files import sha256
from pipeline.base.paths import JUDGE, PREPARED
from pipeline.model.cvae import Architecture
from pipeline.stages.study.files import read_bench, read_setting
from pipeline.study.search import train_together
from pipeline.study.space import Setting
from pipeline.study.uses import NAMES, answers, undecided

WEIGHTS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
IMAGES, VALIDATION = 2000, 1000


def small() -> Setting:
    """The study's setting with a small network and short trainings."""
    ours = read_setting()
    return replace(
        ours,
        tune=replace(ours.tune, study="coverage", trials=len(WEIGHTS), epochs=3, least_class_accuracy=None),
        architecture=Architecture(8, (128,), (128,), "concat", encoder_sees_label=True),
        train=replace(ours.train, batch_size=50, learning_rate=0.01, ema=0.95, precision="float32"),
        components=2,
        nll_draws=50,
        hashes={"data": sha256(PREPARED), "judge": sha256(JUDGE)},
    )


def train(setting: Setting, rounds: int, kept: Path) -> pd.DataFrame:
    """A row for each weight and seed, kept after every seed."""
    split, evaluator = read_bench(setting)
    evaluator = replace(evaluator, split=evaluator.split[:VALIDATION], train=split[:IMAGES])
    table = pd.read_csv(kept) if kept.exists() else pd.DataFrame()
    trials = [{"kl_weight": weight} for weight in WEIGHTS]
    for seed in range(table["seed"].max() + 1 if len(table) else 0, rounds):
        rows = [
            {"trial": found.member, "seed": seed, **trials[found.member], **found.fitted.figures}
            for found in train_together(setting, trials, seed, split[:IMAGES], evaluator)
            if found.fitted
        ]
        table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(kept, index=False)
        print(f"seed {seed + 1} of {rounds}", flush=True)
    return table


def raced(block: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """What a study would have trained of a block of seeds."""
    seeds = sorted(block["seed"].unique())
    table = block[block["seed"] == seeds[0]]
    for seed in seeds[1:]:
        racing = undecided(table, setting) & set(table[table["seed"] == table["seed"].max()]["trial"])
        table = pd.concat([table, block[(block["seed"] == seed) & block["trial"].isin(racing)]])
    return table


def coverage(table: pd.DataFrame, setting: Setting, seeds: int) -> pd.DataFrame:
    """For each use: the true best, in how many studies the interval held it, and the interval's median ends."""
    setting = replace(setting, tune=replace(setting.tune, seeds=seeds))
    truth, rows = answers(table, setting), []
    blocks = [block for _, block in table.groupby(table["seed"] // seeds) if block["seed"].nunique() == seeds]
    studies = [raced(block, setting) for block in blocks]
    found = [answers(study, setting) for study in studies]
    for name in NAMES:
        best = truth[name].kl_weight
        ends = pd.DataFrame([answer[name].interval for answer in found])
        rows.append(
            {
                "use": name,
                "seeds": seeds,
                "studies": len(studies),
                "truly best": best,
                "in the interval": int(((ends[0] <= best) & (best <= ends[1])).sum()),
                "lowest mean is it": sum(answer[name].kl_weight == best for answer in found),
                "median interval": f"{ends[0].median():g} to {ends[1].median():g}",
                "trainings": f"{sum(map(len, studies)) / len(studies):.0f} of {seeds * len(WEIGHTS)}",
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="seeds in all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5], help="of one study")
    parser.add_argument("--kept", type=Path, default=Path("reports/coverage.csv"), help="the figures of all trainings")
    options = parser.parse_args()
    setting = small()
    table = train(setting, options.rounds, options.kept)
    print(pd.concat([coverage(table, setting, seeds) for seeds in options.seeds]).to_string(index=False))


if __name__ == "__main__":
    main()
