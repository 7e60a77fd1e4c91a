"""Publishes a study: its files into docs/results/study, and its tables into docs/which-weight.md.

dvc repro tune && python -m benchmarks.which_weight                 # seconds
python -m benchmarks.which_weight --sigma-vae 3                     # and trains σ-VAE with three seeds
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.base.paths import BEST, PUBLISHED, SEEDS, STUDY_FIGURES, TRIALS

PAGE = Path("docs/which-weight.md")


def said(*command: str) -> str:
    done = subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.PIPE, encoding="utf-8")
    return done.stdout.strip()


def between(page: str, name: str, text: str) -> str:
    """The page with `text` between the comments `name: begin` and `name: end`."""
    before, _, rest = page.partition(f"<!-- {name}: begin -->\n")
    _, end, after = rest.partition(f"<!-- {name}: end -->")
    if not end:
        raise ValueError(f"{PAGE} has no place for {name}")
    return f"{before}<!-- {name}: begin -->\n{text}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigma-vae", type=int, metavar="SEEDS", help="train σ-VAE too")
    options = parser.parse_args()
    answer = said("pipeline.cli", "study", "--markdown")
    for picture in ("uses", "weights"):
        answer += f"\n\n![{picture} of the study](results/study/{picture}.png)"
    page = between(PAGE.read_text(encoding="utf-8"), "study", answer)
    if options.sigma_vae:
        lines = said("benchmarks.sigma_vae", "--seeds", str(options.sigma_vae)).splitlines()
        page = between(page, "sigma-vae", "\n".join(line for line in lines if line.startswith("|")))
    for path in (BEST, TRIALS, SEEDS, *sorted(STUDY_FIGURES.glob("*.png"))):
        shutil.copy(path, PUBLISHED)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
