"""Where the time of an evaluation goes: all metrics on 10,000 test images and as many samples of each sampler.

    python -m benchmarks.evaluation         # a minute or two on 2 cores, after `dvc repro`

Nearly all of it is the nll, which decodes 500 latents per image. Beside it stands how long the dense matrix products of
that would take at this machine's matmul rate. The nll can take less, because the latents of an image share work
(bound.ONE_BY_ONE). Nothing is chosen by what this reads of test.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from benchmarks import machine
from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.params import load, parse
from pipeline.base.paths import JUDGE, MODEL, PREPARED
from pipeline.data.splits import to_unit
from pipeline.measure import bound
from pipeline.measure import evaluator as evaluation
from pipeline.measure.evaluator import EvaluateParams
from pipeline.model.cvae import CVAE
from pipeline.stages.saved import load_cvae, load_judges, load_splits
from pipeline.training.objective import ObjectiveParams

T = TypeVar("T")
PROBE = 200  # images for measuring the speed-up of shared work


def nll_products(model: CVAE, draws: int) -> list[tuple[int, int, int]]:
    """Matrix products of the decoder for all latents of an image, as (m, k, n)."""
    layers = [part for part in (*model.decoder, model.pixels) if isinstance(part, nn.Linear)]
    return [(draws, layer.in_features, layer.out_features) for layer in layers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    arguments = parser.parse_args()
    device = pick_device("auto")
    saved = load_cvae(MODEL, device)
    aim = parse(ObjectiveParams, saved.params["objective"], "objective")
    model, density = saved.model, saved.density
    params = load(EvaluateParams, "evaluate")
    judges = load_judges(JUDGE, device)
    train, test = load_splits(PREPARED, "train", "test", device=device)
    found: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = work()
        machine.wait(device)
        found[name] = time.perf_counter() - began
        print(f"{name:28} {found[name]:7.2f} s", flush=True)
        return result

    evaluator = evaluation.Evaluator(judges, test, train, aim.pixels, params.seed)
    timed("all metrics", lambda: evaluator.evaluate(model, density, params.nll_draws, aim.kl_weight))
    print("of which")
    timed("a judge reads one set", lambda: judges.plain.read(to_unit(test.images)))
    timed("samples of one sampler", lambda: evaluator.samples(model, density, ["fitted"]))
    timed("reconstruction and kl", lambda: evaluator.fit_figures(model))
    timed("nll", lambda: bound.log_likelihood(model, test, aim.pixels, params.nll_draws, params.seed, aim.kl_weight))

    shapes = nll_products(model, params.nll_draws)
    found["nll_tflop_dense"] = len(test) * machine.flops(shapes) / 1e12
    found["nll_floor_dense"] = len(test) * machine.matmul_seconds(shapes, torch.float32, device)
    print(
        f"the decoder's dense products: {found['nll_tflop_dense']:.2f} TFLOP, {found['nll_floor_dense']:.1f} s at "
        f"{1e3 * found['nll_tflop_dense'] / found['nll_floor_dense']:.0f} GFLOP/s"
    )
    few, ratios = test[:PROBE], []
    for _ in range(3):
        times = []
        for least in (bound.ONE_BY_ONE, params.nll_draws + 1):
            before, bound.ONE_BY_ONE = bound.ONE_BY_ONE, least
            began = time.perf_counter()
            bound.log_likelihood(model, few, aim.pixels, params.nll_draws, params.seed, aim.kl_weight)
            machine.wait(device)
            times.append(time.perf_counter() - began)
            bound.ONE_BY_ONE = before
        ratios.append(times[1] / times[0])
    found["one_by_one_ratio"] = statistics.median(ratios)
    print(f"image by image against all at once, {PROBE} images: {found['one_by_one_ratio']:.2f} times as fast")
    if arguments.out:
        arguments.out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    console.run(main)
