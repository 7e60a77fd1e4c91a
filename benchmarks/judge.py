"""The judges' accuracy on MNIST's test images, sharp, blurred and faded, against bars. A miss is exit status 1.

    python -m benchmarks.judge                               # train them: a minute and a half on 2 cores
    python -m benchmarks.judge models/judge.safetensors      # trained ones: seconds

Samples of a VAE are softer and greyer than the data. Beside each bar of the tolerant judge stands the accuracy of one
that was trained in the same way on unaltered images. The unit tests check the same after a tenth of the training.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.base import console
from pipeline.base.params import load
from pipeline.base.paths import PREPARED
from pipeline.data import splits as data
from pipeline.data.splits import CLASSES
from pipeline.measure import judge
from pipeline.stages.saved import load_judges, load_splits

SHARP_BAR = 0.994


def blurred(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur, black outside the picture. Independent of the blur in the judge's training."""
    reach = int(4 * sigma)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2))
    kernel /= kernel.sum()
    once = F.conv2d(images, kernel.view(1, 1, 1, -1), padding=(0, reach))
    return F.conv2d(once, kernel.view(1, 1, -1, 1), padding=(reach, 0))


def views(images: Tensor) -> Iterator[tuple[str, Tensor, float, float | None]]:
    """Name, images, bar, and the accuracy of a judge trained on unaltered images."""
    yield "sharp", images, SHARP_BAR, None
    yield "blurred by 1 pixel", blurred(images, 1.0), 0.992, 0.989
    yield "blurred by 1.5", blurred(images, 1.5), 0.985, 0.951
    yield "blurred by 2", blurred(images, 2.0), 0.970, 0.626
    yield "half the contrast", 0.5 * images, 0.992, 0.992
    yield "0.3 of the contrast", 0.3 * images, 0.985, 0.970
    yield "half, on grey", 0.1 + 0.5 * images, 0.980, 0.574
    yield "0.6, blurred by 1.5", 0.6 * blurred(images, 1.5), 0.980, 0.746


def trained() -> judge.Judges:
    """Judges trained by params.yaml, as in the judge stage."""
    params = load(judge.JudgeParams, "judge")
    judges = judge.Judges(judge.build(params.seed), judge.build(params.seed))
    train, validation = load_splits(PREPARED, "train", "validation")
    for name, record in judge.fit_both(judges, train, validation, params):
        print(f"{name}, epoch {record.epoch}: {record.accuracy:.4f} on validation", file=sys.stderr)
    return judges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", type=Path, help="trained judges")
    path = parser.parse_args().weights
    (test,) = load_splits(PREPARED, "test")
    network, plain = load_judges(path) if path else trained()
    images = data.to_unit(test.images)
    share = float((plain.read(images).labels == test.labels).float().mean())
    print(f"the plain judge: {share:.4f} of sharp images read right (bar {SHARP_BAR:.3f})\n\nthe tolerant judge")
    missed = share < SHARP_BAR
    print(f"{'images':20} {'read right':>10} {'bar':>6} {'unaltered':>10}")
    for name, changed, bar, unaltered in views(images):
        share = float((network.read(changed).labels == test.labels).float().mean())
        missed |= share < bar
        print(f"{name:20} {share:10.4f} {bar:6.3f} {unaltered or '':>10}{' missed' if share < bar else ''}")
    means = torch.stack([images[test.labels == digit].mean(0) for digit in range(CLASSES)])
    right = int((network.read(means).labels == torch.arange(CLASSES)).sum())
    missed |= right < CLASSES
    print(f"{'class means':20} {right:7} of {CLASSES}")
    sys.exit(missed)


if __name__ == "__main__":
    console.run(main)
