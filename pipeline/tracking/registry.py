"""MLflow's registered model: the promoted one is `champion`, the one before it `challenger`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.tracking.local import connect, find, is_there, model_of, one_line, tracking_uri
from pipeline.tracking.package import NAMES

NAME = NAMES["samples"]
CHAMPION, CHALLENGER = "champion", "challenger"


def crown(run_id: str, beside: Sequence[Path] = ()) -> str | None:
    """Registers the model of a run in today's store, and says what was done; None if there is no such run or model.

    beside: files that are copied into the model's folder, where cli/serve.py finds them. Raises UserError if the store
    cannot be used.
    """
    uri = tracking_uri()
    run = find(uri, run_id)
    if run is None or not model_of(run):
        return None
    with one_line(uri):
        client = connect(uri)
        former = _champion(client)
        model = client.get_logged_model(model_of(run))
        for file in beside:
            client.log_model_artifact(model.model_id, str(file))
        if former is not None and former.source == f"models:/{model.model_id}":
            return f"models:/{NAME}@{CHAMPION} is version {former.version}, as it was"
        new = client.create_model_version(NAME, f"models:/{model.model_id}", run_id, model_id=model.model_id)
        client.set_registered_model_alias(NAME, CHAMPION, new.version)
        said = f"models:/{NAME}@{CHAMPION} is now version {new.version}"
        if former is not None:
            client.set_registered_model_alias(NAME, CHALLENGER, former.version)
            said += f"; version {former.version} is @{CHALLENGER}"
        return said


def aliases(uri: str) -> dict[str, tuple[str, Any]]:
    """Each alias of the registered model with its version's number, and the version; None where it is not there.

    Empty where nothing was registered. Raises UserError if the store cannot be used.
    """
    from mlflow.exceptions import MlflowException

    found: dict[str, tuple[str, Any]] = {}
    if not is_there(uri):
        return found
    with one_line(uri):
        client = connect(uri)
        for model in client.search_registered_models(f"name = '{NAME}'"):
            for alias, number in model.aliases.items():
                try:
                    found[alias] = number, client.get_model_version(NAME, number)
                except MlflowException:
                    found[alias] = number, None
    return found


def _champion(client: Any) -> Any:
    """The version that is champion, or None. The registered model is made if needed."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(NAME, description="Samples digits, and completes pictures: docs/serving.md.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise UserError(f"the model {NAME} can't be registered: {error.message}") from error
    try:
        return client.get_model_version_by_alias(NAME, CHAMPION)
    except MlflowException:
        return None
