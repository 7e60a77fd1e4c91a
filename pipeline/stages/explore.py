"""Writes reports/explore.html, the page to play with: any KL weight by a slider. Ten seconds."""

from pipeline.base import console
from pipeline.base.files import write_text
from pipeline.base.params import load
from pipeline.base.paths import BEST, EXPLORE
from pipeline.stages.playing import NotShown, write_page
from pipeline.stages.saved import load_json
from pipeline.tracking.runs import TrackingParams, add_to


def main() -> None:
    try:
        write_page(EXPLORE)
    except NotShown as error:  # no reason for an experiment to fail
        console.warn(str(error))
        write_text(EXPLORE, f'<!doctype html>\n<meta charset="utf-8">\n<title>No page</title>\n<p>{error}.</p>\n')
    experiment = load(TrackingParams, "tracking").experiment
    of_study_run = load_json(BEST, "run `dvc repro tune` first", "run")["run"]  # MLflow shows the page with it
    with add_to(of_study_run, "explore", experiment) as run:
        run.artifact(EXPLORE)


if __name__ == "__main__":
    console.run(main)
