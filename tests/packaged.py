"""Untrained models as the stages save them: a CVAE, a curve, and a completer."""

from pathlib import Path

import latents
import numpy as np
import torch
from settings import OURS, model_params, objective_params

from pipeline.base.params import parse, plain
from pipeline.completion import model as completion
from pipeline.model.cvae import build, resolve
from pipeline.model.density import stacked
from pipeline.stages.saved import save_completer, save_curve, save_cvae
from pipeline.weight import curve

SHAPE = model_params(latent_size=2, encoder_hidden=(8,), decoder_hidden=(8,))
WEIGHT = objective_params().kl_weight
IMAGE = np.zeros((28, 28), np.float32)
IMAGE[4:24, 12:16] = 0.75


def save_cvae_in(folder: Path) -> Path:
    params = {"model": plain(SHAPE), "objective": plain(objective_params()), "sample": {"sampler": "fitted"}}
    save_cvae(folder / "cvae.safetensors", build(resolve(SHAPE), 0, "bernoulli"), latents.density(), params)
    return folder / "cvae.safetensors"


def save_three(folder: Path) -> None:
    """`cvae.safetensors`, `curve.safetensors` and `completer.safetensors`."""
    save_cvae_in(folder)
    save_completer(folder / "completer.safetensors", completion.build(3, 16, 0))
    weight, aim = parse(curve.WeightParams, OURS["weight"], "weight"), objective_params()
    model = curve.build(SHAPE, aim, weight, seed=1)
    with torch.no_grad():
        for place, part in enumerate(model.network.parameters()):  # so that the weight changes the pictures
            part.add_(0.2 * latents.normal(*part.shape, seed=place).float())
    wide = latents.density()._replace(means=3 * latents.density().means)
    params = {"model": plain(SHAPE), "objective": plain(aim), "weight": plain(weight)}
    save_curve(folder / "curve.safetensors", model, params, stacked([latents.density(), wide], weight.range))
