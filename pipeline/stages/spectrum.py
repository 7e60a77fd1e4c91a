"""What each KL weight can give, from the training images alone: reports/weight/spectrum.json and .png. Some seconds."""

import pandas as pd

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.errors import UserError
from pipeline.base.files import write_json
from pipeline.base.params import load, load_key
from pipeline.base.paths import PREPARED, SPECTRUM, SPECTRUM_FIGURE
from pipeline.model.cvae import ModelParams, resolve
from pipeline.show.spectrum import spectrum_figure, unknown
from pipeline.show.style import save
from pipeline.stages.saved import load_splits
from pipeline.training.objective import ObjectiveParams
from pipeline.weight import bernoulli, spectrum


def solved(aim: ObjectiveParams, latents: int) -> spectrum.Spectrum:
    """The spectrum of the training images; warns where it may be off. Raises UserError."""
    (train,) = load_splits(PREPARED, "train", device=pick_device(load_key(str, "train", "device")))
    found = spectrum.of_split(train, aim.likelihood, aim.pixels, aim.sigma, latents)
    for digit, weight in found.unsettled:
        reason = f"its solution did not settle in {bernoulli.STEPS} steps (docs/spectrum.md)"
        console.warn(f"the expected kl of digit {digit} may be off around β = {weight:g}: {reason}")
    return found


def main() -> None:
    latents, aim = resolve(load(ModelParams, "model")).latent_size, load(ObjectiveParams, "objective")
    about = {"likelihood": aim.likelihood, "pixels": aim.pixels, "latent_size": latents}
    try:
        spectrum.check(aim.likelihood)
    except UserError as error:  # the pipeline goes on with a likelihood that has no spectrum
        write_json(SPECTRUM, about | {"unknown": str(error)})
        save(unknown(str(error)), SPECTRUM_FIGURE)
        print(f"{SPECTRUM}: {error}")
        return
    found = solved(aim, latents)
    rows, by_class, collapse = spectrum.expected(found, spectrum.WEIGHTS), found.collapses().tolist(), found.collapse()
    write_json(SPECTRUM, about | {"collapse": collapse, "collapse_by_class": by_class, "expected": rows})
    save(spectrum_figure(pd.DataFrame(rows), collapse), SPECTRUM_FIGURE)
    print(f"{SPECTRUM}: above β = {collapse:.3g}, no latent can pay for itself in any class")


if __name__ == "__main__":
    console.run(main)
