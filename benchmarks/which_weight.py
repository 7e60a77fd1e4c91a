"""Publishes a study: its files into docs/results/study, and its tables into docs/which-weight.md.

dvc repro tune && python -m benchmarks.which_weight                 # seconds
python -m benchmarks.which_weight --sigma-vae 3                     # and trains σ-VAE with three seeds: a minute

σ-VAE (Rybkin 2021) trains with β = 1 under a Gaussian whose σ is the optimal one, and so needs no KL weight. It trains
here as the study's weights do: same network, epochs, seeds, images and judges. Its reconstruction and nll are those of
another likelihood, so they stand in no table beside a Bernoulli's.
"""

import argparse
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from benchmarks.results import between
from pipeline.base.console import markdown
from pipeline.base.files import write_text
from pipeline.base.paths import BEST, PUBLISHED, SEEDS, STUDY_FIGURES, TRIALS
from pipeline.stages.study.files import read_bench, read_setting
from pipeline.stages.study.words import plus_minus
from pipeline.study.search import train_together
from pipeline.study.uses import summary

PAGE = Path("docs/which-weight.md")
COLUMNS = ("kl", *(f"{sampler}/{name}" for sampler in ("fitted", "prior") for name in ("frechet", "class_accuracy")))


def sigma_vae(seeds: int) -> str:
    """The table of σ-VAE, trained with so many seeds, in Markdown."""
    setting = read_setting()
    setting = replace(setting, aim=replace(setting.aim, likelihood="sigma_optimal"))
    train, evaluator = read_bench(setting)
    rows = []
    for seed in range(setting.train.seed, setting.train.seed + seeds):
        for found in train_together(setting, [{"kl_weight": 1.0}], seed, train, evaluator):
            if found.failed:
                raise SystemExit(f"seed {seed} diverged")
            if found.fitted:
                rows.append({"trial": 0, "seed": seed, "kl_weight": 1.0, **found.fitted.figures})
    means = summary(pd.DataFrame(rows), setting).to_dict("records")[0]
    cells = [plus_minus(means[f"validation/{name}"], means[f"validation/{name}_error"]) for name in COLUMNS]
    return markdown(["", "seeds", *COLUMNS], [["σ-VAE", str(len(rows)), *cells]])


def publish(name: str, text: str) -> None:
    """Puts `text` between the page's comments `name: begin` and `name: end`."""
    write_text(PAGE, between(PAGE, f"<!-- {name}: begin -->", f"<!-- {name}: end -->", text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigma-vae", type=int, metavar="SEEDS", help="train σ-VAE too")
    options = parser.parse_args()
    command = [sys.executable, "-m", "pipeline.cli", "study", "--markdown"]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout.strip()
    for picture in ("uses", "weights"):
        answer += f"\n\n![{picture} of the study](results/study/{picture}.png)"
    publish("study", answer)
    if options.sigma_vae:
        publish("sigma-vae", sigma_vae(options.sigma_vae))
    for path in (BEST, TRIALS, SEEDS, *sorted(STUDY_FIGURES.glob("*.png"))):
        shutil.copy(path, PUBLISHED)


if __name__ == "__main__":
    main()
