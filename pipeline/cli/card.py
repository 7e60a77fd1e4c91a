"""The model card that `cvae promote` writes, with Hugging Face's headings and its `model-index`."""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline.base.console import number
from pipeline.base.errors import UserError
from pipeline.base.files import write_text
from pipeline.base.paths import METRICS, MODEL, VALIDATION
from pipeline.cli.handing import BROKEN, SHOWN, flattened, rendered
from pipeline.stages.saved import load_json

if TYPE_CHECKING:
    from pipeline.study.space import Setting

CARD = MODEL.with_name("CARD.md")


def write_card(setting: "Setting", why: str, run_id: str | None, row: Mapping[Any, Any]) -> None:
    """Writes models/CARD.md of the trial in a row of the study's table, or, where the row is empty, of today's model.

    run_id: whose model MLflow has; None: `dvc repro` trains it.
    """
    kl_weight = float(row["kl_weight"]) if row else setting.aim.kl_weight
    measured = {name.removeprefix("validation/"): value for name, value in row.items() if "/" in name}
    figures = {"validation": measured} if row else _of_today(kl_weight)
    text = rendered(
        "card.md",
        kl_weight=f"{kl_weight:g}",
        why=why,
        model=f"runs:/{run_id}" if run_id else str(MODEL),
        figures={
            split: {name: one[name] for name in SHOWN if math.isfinite(one.get(name, math.nan))}
            for split, one in figures.items()
        },
        number=number,
        params={"likelihood": setting.aim.likelihood, "pixels": setting.aim.pixels},
        data=setting.hashes.get("data", ""),
        means=bool(row),
    )
    write_text(CARD, text)
    print(f"{CARD} written: the model's card")


def _of_today(kl_weight: float) -> dict[str, dict[str, float]]:
    """The figures of the evaluated model by split; empty where they are those of another KL weight, or not there."""
    found = {}
    for split, path in (("validation", VALIDATION), ("test", METRICS)):
        with suppress(UserError, *BROKEN):
            figures = load_json(path, "", "protocol")
            if figures["protocol"]["kl_weight"] == kl_weight:
                found[split] = flattened(figures)
    return found
