"""How long from prepared data to digits that the judge reads: train `strong`, fit densities, measure on validation.

    time python -m benchmarks.accuracy      # up to half a minute on 2 cores; status 1 below a class_accuracy of 0.97

Needs the judge (`dvc repro judge`). Does not read test.
"""

import sys

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.params import parse, read
from pipeline.base.paths import JUDGE, PREPARED
from pipeline.measure import evaluator as evaluation
from pipeline.model.cvae import PRESETS, build
from pipeline.stages.saved import load_judges, load_splits
from pipeline.training import fit as train
from pipeline.training.fit import TrainParams
from pipeline.training.objective import ObjectiveParams

BAR = 0.97
CHANGES = {"epochs": 2, "batch_size": 256, "learning_rate": 0.004, "ema": None}
KL_WEIGHT = 1.0


def main() -> None:
    device = pick_device("auto")
    params = parse(TrainParams, read()["train"] | CHANGES, "train")
    aim = parse(ObjectiveParams, read()["objective"] | {"kl_weight": KL_WEIGHT}, "objective")
    known, unseen = load_splits(PREPARED, "train", "validation", device=device)
    run = train.start(build(PRESETS["strong"], params.seed), params, device)
    for record in train.fit(run, known, unseen, params, aim):
        elbo, pace = record.figures["validation/elbo"], record.figures["time/images_per_second"]
        print(f"epoch {record.epoch}: elbo {elbo:.2f}, {pace:,.0f} images/s")
    judges = load_judges(JUDGE, device)
    measure = evaluation.Evaluator(judges, unseen, known[: evaluation.QUICK_TRAIN], aim.pixels, params.seed)
    found = measure.samples(run.model, measure.density(run.model, read()["sample"]["components"]), ["fitted"])
    print(", ".join(f"{name} {found[f'fitted/{name}']:.3f}" for name in ("class_accuracy", "diversity", "frechet")))
    sys.exit(found["fitted/class_accuracy"] < BAR)


if __name__ == "__main__":
    console.run(main)
