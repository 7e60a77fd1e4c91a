"""How well a model explains images: the iwae bound on log p(x∣y), and the active latent dimensions."""

import math
from typing import Any

import torch
from torch import Tensor

from pipeline.data.splits import Pixels, Split, as_pixels
from pipeline.model.cvae import CVAE, Model

ACTIVE = 0.01  # Burda 2016, section 5.2
DECODED_AT_ONCE = 4096  # latents, so that their activations stay in the CPU's cache
DECODED_ON_GPU = 65_536  # the same on a GPU, which is then at work all the time; it takes some GB
ONE_BY_ONE = 64  # with k from here on, a CPU decodes one image's latents at a time (CVAE.decode_one_image)


def active_dimensions(mu: Tensor) -> Tensor:
    """Indices of the latent dimensions whose posterior mean (N, latent) varies: Var_x(E_q[z∣x]) > 0.01."""
    return (mu.var(0) > ACTIVE).nonzero().squeeze(1)


@torch.no_grad()
def log_likelihood(model: CVAE, split: Split, pixels: Pixels, k: int, seed: int) -> Tensor:
    """The iwae bound (Burda 2016, eq. 8) on log p(x∣y) with k samples of z: (N,) nats per image.

    log 1/k Σ_i p(x∣z_i,y) p(z_i∣y) / q(z_i∣x,y) with z_i from q. At k = 1 it is the evidence lower bound, and it rises
    with k towards log p(x∣y). Binary pixels are sampled once, by `seed`.
    """
    source = torch.Generator(split.images.device).manual_seed(seed)
    return importance_weighted(model, as_pixels(split.images, pixels, source), split.labels, k, source)


@torch.no_grad()
def importance_weighted(model: Model, images: Tensor, condition: Tensor, k: int, source: torch.Generator) -> Tensor:
    """The same for images (N, 1, 28, 28) in [0, 1] and any model's condition (N, ...).

    Nearly all the time goes to the decoder, which runs k times per image. On a CPU a CVAE decodes the latents of one
    image at a time: a dense decoder then skips idle units, and activations of convolutions stay in the cache.
    """
    one_by_one = k >= ONE_BY_ONE and images.device.type == "cpu"

    def log_p_x(z: Tensor, x: Tensor, context: Any) -> Tensor:
        """log p(x∣z) of latents (K, N, latent) and pixels (N, 784): (K, N)."""
        if not (one_by_one and isinstance(model, CVAE)):
            return model.likelihood.log_prob(model.decode(z, context), x)
        rows = zip(z.unbind(1), context.split(1), x.split(1), strict=True)
        outputs = ((model.decode_one_image(latents, label), pixels) for latents, label, pixels in rows)
        return torch.stack([model.likelihood.log_prob(output, pixels) for output, pixels in outputs], 1)

    at_once = DECODED_ON_GPU if images.is_cuda else DECODED_AT_ONCE
    images_at_once, samples_at_once = max(at_once // k, 1), min(k, at_once)
    bound = torch.empty(len(images), device=images.device)
    prior = model.prior()
    for start in range(0, len(images), images_at_once):
        rows = slice(start, start + images_at_once)
        x, context = images[rows], model.context(condition[rows])
        q = model.encode(x, context)
        log_ratio = torch.empty(k, len(x), device=q.mu.device)
        for first in range(0, k, samples_at_once):
            noise = torch.randn(min(samples_at_once, k - first), *q.mu.shape, generator=source, device=q.mu.device)
            z = q.sample(noise)
            log_p_z = prior.log_prob(z, context)
            log_ratio[first : first + samples_at_once] = log_p_x(z, x.flatten(1), context) + log_p_z - q.log_prob(z)
        bound[rows] = log_ratio.logsumexp(0) - math.log(k)
    return bound
