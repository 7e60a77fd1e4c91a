"""What MLflow's page shows when it opens: views of an experiment, and their addresses.

A view is an experiment tag in the form that the page itself writes ("Save view"): columns, order, charts. Its address
names the tag. Users find the views under "Views", also where they started `mlflow ui` themselves.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import UserError
from pipeline.base.params import did_you_mean, digest

KIND, KIND_OF_TRAINING = "mlflow.experimentKind", "custom_model_development"  # not the view for language models
GROUP = "group"  # the tag by which the list groups runs: a study with its trials, or trainings
WEIGHT = "objective.kl_weight"
FRECHET = "validation/fitted/frechet"
SAMPLES = "samples"  # the key of the picture that every training and every trial has
PREFIX = "mlflow.sharedViewState."
ALL_RUNS = 200  # that a chart shows

# In pixels; where the name is longer, the page cuts it.
COLUMNS = {
    f"params.`{WEIGHT}`": 150,
    f"metrics.`{FRECHET}`": 200,
    "metrics.`validation/fitted/class_accuracy`": 240,
    "metrics.`validation/fitted/diversity`": 210,
    "metrics.`validation/nll`": 120,
    "attributes.`Duration`": 90,
    "metrics.`test/fitted/frechet`": 160,
    "attributes.`Models`": 150,
}
SECTIONS = {  # and how many charts stand side by side
    "β against frechet": 2, "samples": 1, "validation": 3, "validation/fitted": 3, "validation/prior": 3, "test": 3,
    "test/fitted": 3, "test/prior": 3, "train": 3, "time": 3,
}  # fmt: skip
Client = Any


def best_first(client: Client, experiment: str) -> str:
    """The address of all runs of an experiment (its id), best first, each study's trials together."""
    grouping = {"aggregateFunction": "min", "groupByKeys": [{"mode": "tag", "groupByData": GROUP}]}
    return _save(client, experiment, "Best first", _state("", grouping))


def comparison(client: Client, experiment: str, study: str) -> str:
    """The address of the comparison of a study's trials. Raises UserError where the experiment has no such study."""
    found = client.search_runs([experiment], "tags.kind = 'study'", max_results=1000)
    names = [run.data.tags.get("study", "") for run in found]
    if study not in names:
        close = did_you_mean(study, names) or (f": there are {', '.join(names)}" if names else "")
        raise UserError(f"there is no study {study} in this experiment{close}")
    only = f"tags.study = '{study}' and tags.kind = 'trial'"
    state = _state(only, None) | {"runListHidden": True}  # room for the charts
    return _save(client, experiment, f"Trials of {study}", state) + "&compareRunsMode=CHART"


def _save(client: Client, experiment: str, name: str, state: Mapping[str, Any]) -> str:
    """Writes a view if it is not there yet, and returns its address. One of that name from another version goes."""
    tags = client.get_experiment(experiment).tags
    if tags.get(KIND) != KIND_OF_TRAINING:
        client.set_experiment_tag(experiment, KIND, KIND_OF_TRAINING)
    identity = f"cvae-{digest(name)[:6]}-"
    view = identity + digest(state)[:6]
    for key in tags:
        if key.startswith(PREFIX + identity) and key != PREFIX + view:
            client.delete_experiment_tag(experiment, key)
    if PREFIX + view not in tags:
        now = int(time.time() * 1000)
        content = {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state, ensure_ascii=False)}
        client.set_experiment_tag(experiment, PREFIX + view, json.dumps(content, ensure_ascii=False))
    return f"/#/experiments/{experiment}/runs?viewStateShareKey={view}&workflowType=machine_learning"


def _state(only: str, grouping: Mapping[str, Any] | None) -> dict[str, Any]:
    """only: MLflow's filter on runs. The page has defaults for what is not said."""
    return {
        "searchFilter": only,
        "orderByKey": f"metrics.`{FRECHET}`",
        "orderByAsc": True,
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": COLUMNS,
        "groupBy": grouping,
        "useGroupedValuesInCharts": False,
        "runsHiddenMode": "SHOW_ALL",
        # The page adds a chart for every other metric, in the section that its name begins with.
        "compareRunCharts": [
            _against_weight(FRECHET),
            _against_weight("validation/prior/frechet"),
            _card("IMAGE", "samples", SAMPLES, imageKeys=[SAMPLES], step=0, showRunParams=False),
        ],
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True, "columns": columns}
            for name, columns in SECTIONS.items()
        ],
        "isAccordionReordered": True,  # keeps our order of sections
    }


def _against_weight(metric: str) -> dict[str, Any]:
    """The weight goes up and the metric to the right: the page can make only the y axis of metrics logarithmic."""
    weight = "train/kl_weight"
    axes = {"metricKey": weight, "scaleType": "log", "xAxisKey": "metric", "selectedXAxisMetricKey": metric}
    drawn = {"displayPoints": True, "lineSmoothness": 0, "useGlobalLineSmoothing": False, "useGlobalXaxisKey": False}
    return _card("LINE", "β against frechet", metric, selectedMetricKeys=[weight], **axes, **drawn)


def _card(kind: str, section: str, name: str, **more: Any) -> dict[str, Any]:
    return {
        "type": kind, "uuid": f"{section}: {name}", "metricSectionId": section, "displayName": name,
        "runsCountToCompare": ALL_RUNS, "deleted": False, "isGenerated": False, **more,
    }  # fmt: skip
