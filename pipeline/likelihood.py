"""How the decoder's output explains pixels.

A likelihood turns the decoder's raw outputs (..., 784) into log p(x∣z,y) in nats per image, a mean picture and
draws. It is a module, so that one with weights of its own (a learned σ, say) trains and travels with the model.
To add one: write the class, name it in LIKELIHOODS and in `Name`; CONTRIBUTING.md lists the tests it must pass.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Name = Literal["bernoulli"]


class Bernoulli(nn.Module):
    """Each pixel is 1 with probability sigmoid(output).

    On grey pixels x in [0, 1] the same formula is a cross entropy, no normalised density; on binary pixels it is
    the exact log-likelihood (Kingma & Welling 2014, appendix C.1).
    """

    def log_prob(self, outputs: Tensor, pixels: Tensor) -> Tensor:
        """(..., 784) logits and pixels that expand to their shape, to (...) nats per image.

        On logits: sigmoid followed by a logarithm loses everything beyond ±17 in float32.
        """
        logits = outputs.float() if outputs.dtype == torch.bfloat16 else outputs
        return -F.binary_cross_entropy_with_logits(logits, pixels.expand_as(logits), reduction="none").sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """(..., 784) logits to expected pixels in [0, 1]."""
        return outputs.float().sigmoid()

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(..., 784) logits to a draw of binary pixels."""
        return torch.bernoulli(self.mean(outputs), generator=generator)


LIKELIHOODS: dict[str, type[Bernoulli]] = {"bernoulli": Bernoulli}


def build(name: Name) -> Bernoulli:
    """The likelihood of that name, untrained."""
    return LIKELIHOODS[name]()
