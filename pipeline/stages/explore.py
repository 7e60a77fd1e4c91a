"""Writes reports/explore.html, the page to play with: any KL weight by a slider. Half a minute on two cores."""

from pipeline.base import console
from pipeline.base.params import load
from pipeline.base.paths import BEST, EXPLORE
from pipeline.stages.playing import of_study, read, write_page
from pipeline.tracking.runs import TrackingParams, add_to


def main() -> None:
    write_page(of_study(), EXPLORE)
    experiment = load(TrackingParams, "tracking").experiment
    with add_to(read(BEST, "tune")["run"], "explore", experiment) as run:  # the study's, with which MLflow shows it
        run.artifact(EXPLORE)


if __name__ == "__main__":
    console.run(main)
