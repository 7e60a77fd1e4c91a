"""The model card that `cvae promote` writes, with Hugging Face's headings and its `model-index`."""

import io
from collections.abc import Mapping
from typing import Any

from pipeline.base.console import number
from pipeline.base.files import write_text
from pipeline.base.paths import METRICS, MODEL, VALIDATION
from pipeline.cli.handing import SHOWN, flattened, rendered

CARD = MODEL.with_name("CARD.md")


def of_today(kl_weight: float) -> dict[str, dict[str, float]]:
    """The figures of the evaluated model by split; empty where they are those of another KL weight, or not there."""
    import json

    found = {}
    for split, path in (("validation", VALIDATION), ("test", METRICS)):
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))
            if figures["protocol"]["kl_weight"] == kl_weight:
                found[split] = flattened(figures)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def write_card(
    kl_weight: float, why: str, model: str, figures: Mapping[str, Mapping[str, float]], params: Mapping[str, Any],
    data: str, means: bool = False,
) -> None:  # fmt: skip
    """Writes models/CARD.md. figures: by split. model: as `--model` names it. data: the hash of the prepared data.

    means: whether the figures are means over a study's seeds.
    """
    shown = {split: {name: one[name] for name in SHOWN if name in one} for split, one in figures.items()}
    text = rendered(
        "card.md",
        header=header(shown),
        kl_weight=f"{kl_weight:g}",
        why=why,
        model=model,
        figures={split: {name: number(value) for name, value in one.items()} for split, one in shown.items()},
        params=params,
        data=data,
        means=means,
    )
    write_text(CARD, text)
    print(f"{CARD} written: the model's card")


def header(figures: Mapping[str, Mapping[str, float]]) -> str:
    """The YAML block of a card, with a result for each split."""
    from ruamel.yaml import YAML

    results = [
        {
            "task": {"type": "unconditional-image-generation", "name": "class-conditional image generation"},
            "dataset": {"type": "ylecun/mnist", "name": "MNIST", "split": split},
            "metrics": [{"type": name, "name": name, "value": float(value)} for name, value in one.items()],
        }
        for split, one in figures.items()
    ]
    content: dict[str, Any] = {
        "library_name": "pytorch",
        "license": "mit",
        "datasets": ["ylecun/mnist"],
        "tags": ["vae", "conditional-vae", "mnist"],
    }
    if results:  # a card's model-index must have results
        content["model-index"] = [{"name": "cvae-mnist", "results": results}]
    yaml, text = YAML(), io.StringIO()
    yaml.dump(content, text)
    return text.getvalue()
