"""σ-VAE in the study's own protocol: the likelihood that learns its σ, which stands in for a KL weight.

    python -m benchmarks.sigma_vae --seeds 3     # three trainings: about a minute on two cores

σ-VAE (Rybkin 2021) trains with β = 1 under a Gaussian whose σ is the optimal one, and so needs no KL weight. It trains
here as the study's weights do: same network, epochs, seeds, images and judges. Prints its row for docs/which-weight.md.
Its reconstruction and nll are those of another likelihood, so they stand in no table beside a Bernoulli's.
"""

import argparse
from dataclasses import replace

import pandas as pd

from pipeline.stages.study.files import read_bench, read_setting
from pipeline.stages.study.words import plus_minus
from pipeline.study.search import train_together
from pipeline.study.uses import summary

COLUMNS = tuple(f"{sampler}/{name}" for sampler in ("fitted", "prior") for name in ("frechet", "class_accuracy"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    setting = read_setting()
    setting = replace(setting, aim=replace(setting.aim, likelihood="sigma_optimal"))
    train, evaluator = read_bench(setting)
    rows = []
    for seed in range(setting.train.seed, setting.train.seed + options.seeds):
        for found in train_together(setting, [{"kl_weight": 1.0}], seed, train, evaluator):
            if found.failed:
                raise SystemExit(f"seed {seed} diverged")
            if found.figures:
                rows.append({"trial": 0, "seed": seed, "kl_weight": 1.0, **found.figures})
                print(f"seed {seed}: {found.seconds:.0f} s for the last epoch and measuring", flush=True)
    means = summary(pd.DataFrame(rows), setting).to_dict("records")[0]
    names = ("validation/kl", *(f"validation/{name}" for name in COLUMNS))
    print("| | seeds | " + " | ".join(name.removeprefix("validation/") for name in names) + " |")
    cells = (plus_minus(means[name], means[f"{name}_error"]) for name in names)
    print("|---" * (len(names) + 2) + "|")
    print(f"| σ-VAE | {len(rows)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
