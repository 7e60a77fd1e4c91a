"""What a run says of itself: its parameters, and the file that holds all of them."""

import io
import subprocess
from collections.abc import Mapping
from typing import Any

from pipeline.base.params import FILE

ALWAYS = ("objective.kl_weight",)


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
