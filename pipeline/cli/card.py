"""The model card that `cvae promote` writes, with Hugging Face's headings and its `model-index`."""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pipeline.base.console import number
from pipeline.base.errors import UserError
from pipeline.base.files import write_text
from pipeline.base.paths import METRICS, MODEL, VALIDATION
from pipeline.cli.handing import BROKEN, SHOWN, flattened, rendered
from pipeline.stages.saved import load_json

CARD = MODEL.with_name("CARD.md")


def of_today(kl_weight: float) -> dict[str, dict[str, float]]:
    """The figures of the evaluated model by split; empty where they are those of another KL weight, or not there."""
    found = {}
    for split, path in (("validation", VALIDATION), ("test", METRICS)):
        with suppress(UserError, *BROKEN):
            figures = load_json(path, "", "protocol")
            if figures["protocol"]["kl_weight"] == kl_weight:
                found[split] = flattened(figures)
    return found


def write_card(
    kl_weight: float, why: str, model: str, figures: Mapping[str, Mapping[str, float]], params: Mapping[str, Any],
    data: str, means: bool = False,
) -> None:  # fmt: skip
    """Writes models/CARD.md. figures: by split. model: as `--model` names it. data: the hash of the prepared data.

    means: whether the figures are means over a study's seeds.
    """
    shown = {
        split: {name: one[name] for name in SHOWN if math.isfinite(one.get(name, math.nan))}
        for split, one in figures.items()
    }
    text = rendered(
        "card.md",
        kl_weight=f"{kl_weight:g}",
        why=why,
        model=model,
        figures=shown,
        number=number,
        params=params,
        data=data,
        means=means,
    )
    write_text(CARD, text)
    print(f"{CARD} written: the model's card")
