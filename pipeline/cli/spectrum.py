"""`cvae spectrum`: what each KL weight can give, before any training."""

from typing import Annotated

import typer

SHOWN = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def spectrum(
    nats: Annotated[float | None, typer.Option(metavar="N", help="a budget: say at which weight the kl is N")] = None,
    latents: Annotated[int | None, typer.Option(min=1, metavar="L", help="in place of model.latent_size")] = None,
) -> None:
    """Say what each KL weight can give, before training.

    It trains nothing: docs/spectrum.md says how, and how far it can be trusted.

    \b
    cvae spectrum
    cvae spectrum --nats 20
    """
    from pipeline.base.console import table
    from pipeline.base.device import pick_device
    from pipeline.base.params import load, load_key
    from pipeline.base.paths import PREPARED
    from pipeline.model.cvae import ModelParams, resolve
    from pipeline.stages.saved import load_splits
    from pipeline.training.objective import ObjectiveParams
    from pipeline.weight.spectrum import check, expected, of_split

    aim = load(ObjectiveParams, "objective")
    latents = latents or resolve(load(ModelParams, "model")).latent_size
    check(aim.likelihood)
    (train,) = load_splits(PREPARED, "train", device=pick_device(load_key(str, "train", "device")))
    found = of_split(train, aim.likelihood, aim.pixels, aim.sigma, latents)
    if nats is not None:
        beta = found.weight_for(nats, latents)
        print(f"The expected kl is {nats:g} nats per image at β = {beta:.3g}, with {latents} latents.")
        return
    weights = found.collapses(latents).tolist()
    table("Collapse: the KL weight above which the latents of a class are unused", ["digit", "β"], [
        *([str(digit), weight] for digit, weight in enumerate(weights)), ["all", max(weights)],
    ])  # fmt: skip
    rows = expected(found, SHOWN, latents)
    columns = ["β", "expected kl, nats per image", "active latents"]
    cells = [[f"{row['kl_weight']:g}", round(row["kl"], 2), row["active_units"]] for row in rows]
    table(f"With {latents} latents, {aim.likelihood} on {aim.pixels} pixels", columns, cells)
    print(f"A budget: `cvae spectrum --nats 20` ({found.weight_for(20, latents):.3g} here).")
