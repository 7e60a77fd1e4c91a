"""Small models as the stages save them: a CVAE and a curve, untrained, and a completer that was trained a little."""

from pathlib import Path

import latents
import numpy as np
import torch
from bands import banded
from settings import OURS, model_params, objective_params, train_params

from pipeline.base.params import parse, plain
from pipeline.completion import model as completion
from pipeline.completion.views import training_view
from pipeline.model.cvae import build, resolve
from pipeline.model.density import stacked
from pipeline.model.multirate import MultiRate
from pipeline.stages.saved import save_completer, save_curve, save_cvae
from pipeline.training.fit import fit, start
from pipeline.weight import curve

SHAPE = model_params(latent_size=2, encoder_hidden=(8,), decoder_hidden=(8,))
WEIGHT = objective_params().kl_weight
IMAGE = np.zeros((28, 28), np.float32)
IMAGE[4:24, 12:16] = 0.75


def save_cvae_in(folder: Path) -> Path:
    params = {"model": plain(SHAPE), "objective": plain(objective_params()), "sample": {"sampler": "fitted"}}
    save_cvae(folder / "cvae.safetensors", build(resolve(SHAPE), 0, "bernoulli"), latents.density(), params)
    return folder / "cvae.safetensors"


def completer() -> completion.Completer:
    """Trained for 45 steps on bright bands."""
    data, params = banded(30, 0), train_params(learning_rate=0.01)
    training = start(completion.build(3, 16, 0), params, torch.device("cpu"))
    costs = [
        record.figures["train/loss"]
        for record in fit(training, data, data, params, completion.AIM, training_view(0.15, 0.5))
    ]
    assert costs[-1] < costs[0]
    return training.model


def multi_rate() -> MultiRate:
    """Untrained."""
    return curve.build(SHAPE, objective_params(), parse(curve.WeightParams, OURS["weight"], "weight"), seed=1)


def save_three(folder: Path) -> None:
    """`cvae.safetensors`, `curve.safetensors` and `completer.safetensors`."""
    save_cvae_in(folder)
    save_completer(folder / "completer.safetensors", completer())
    weight, aim = parse(curve.WeightParams, OURS["weight"], "weight"), objective_params()
    model = multi_rate()
    with torch.no_grad():
        for place, part in enumerate(model.network.parameters()):  # so that the weight changes the pictures
            part.add_(0.2 * latents.normal(*part.shape, seed=place).float())
    wide = latents.density()._replace(means=3 * latents.density().means)
    params = {"model": plain(SHAPE), "objective": plain(aim), "weight": plain(weight)}
    save_curve(folder / "curve.safetensors", model, params, stacked([latents.density(), wide], weight.range))
