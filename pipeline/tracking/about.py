"""What a run says of itself: its parameters, the file that holds all of them, and its description."""

import io
import subprocess
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from pipeline.base import console
from pipeline.base.params import FILE

ALWAYS = ("objective.kl_weight",)
OF_SAMPLES = ("frechet", "class_accuracy", "diversity", "coverage")
OF_FIT = ("reconstruction", "kl", "nll")
SAMPLERS = ("fitted", "prior")


def changed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of values by names such as `train.epochs`: the KL weight, and what differs from params.yaml as last committed.

    MLflow's page lists every parameter beside each picture. Where git has no params.yaml, all values count.
    """
    committed = _committed()
    return {
        name: value
        for name, value in values.items()
        if name in ALWAYS or name not in committed or committed[name] != value
    }


def as_file(values: Mapping[str, Any]) -> str:
    """Values by names such as `train.epochs`, as the text of a file like params.yaml."""
    from ruamel.yaml import YAML

    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(by_section(values), text)
    return text.getvalue()


def figures(found: Mapping[str, Mapping[str, float]]) -> str:
    """A table in Markdown of the headline figures of each split, such as {"test": {"fitted/frechet": 3.6}}."""

    def row(split: str, sampler: str) -> list[str]:
        names = [*(f"{sampler}/{name}" for name in OF_SAMPLES), *OF_FIT]
        return [split, sampler, *(console.number(found[split].get(name, "–")) for name in names)]

    headings = ["split", "sampler", *OF_SAMPLES, *OF_FIT]
    return console.markdown(headings, [row(split, sampler) for split in found for sampler in SAMPLERS])


def picture(run_id: str, artifact: str) -> str:
    """An artifact of a run in Markdown, which MLflow's page shows in a description."""
    return f"![{artifact}](get-artifact?{urlencode({'path': artifact, 'run_uuid': run_id})})"


def by_section(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"train.epochs": 20}` as `{"train": {"epochs": 20}}`."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = list(value) if isinstance(value, tuple) else value
    return sections


def _committed() -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        shown = subprocess.run(["git", "show", f"HEAD:./{FILE}"], capture_output=True, timeout=10, check=True)
        content = YAML(typ="safe", pure=True).load(shown.stdout.decode())
        return {f"{section}.{key}": value for section, values in content.items() for key, value in values.items()}
    except (OSError, ValueError, AttributeError, YAMLError, subprocess.SubprocessError):
        return {}
