"""Packaged models: weights, this package's code, and what to install. No pickles."""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pipeline.base.errors import UserError
from pipeline.base.files import home, replacing, sha256
from pipeline.tracking.local import connect, model_of, named, one_line

MODEL = "model"
LOADER = "pipeline.cli.serve"
LOADER_NEEDS = ("torch", "numpy", "pydantic", "safetensors", "pandas")

Served = Literal["samples", "completions"]  # what a packaged model answers requests with
NAMES: dict[Served, str] = {"samples": "cvae-mnist", "completions": "cvae-mnist-completion"}  # of the models

JSON = "application/json"
FORMS = {"inputs", "instances", "dataframe_records", "dataframe_split"}
LARGEST_BODY = 10_000_000  # bytes: a thousand pictures to complete
LONGEST_ERROR = 300


def pack(weights: Path, run_id: str = "", model_id: str = "") -> Path:
    """Writes an MLflow model folder beside `weights`, which answers requests through cli/serve.py.

    The ids say which run and which logged model it belongs to.
    """
    from mlflow import pyfunc
    from mlflow.models import Model

    folder, (signature, example) = weights.with_name(MODEL), _interface()
    pyfunc.save_model(
        str(folder),
        mlflow_model=Model(artifact_path=MODEL, run_id=run_id, model_uuid=model_id, model_id=model_id),
        loader_module=LOADER,
        data_path=str(weights),
        code_paths=[str(Path(__file__).parents[1])],
        pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in LOADER_NEEDS],
        signature=signature,
        input_example=example,
    )
    return folder


def warm_up() -> None:
    """Packs an empty file, so that all imports are done when a model comes."""
    with tempfile.TemporaryDirectory(prefix="cvae-", ignore_cleanup_errors=True) as folder:  # see records.py
        empty = Path(folder, "empty")
        empty.touch()
        pack(empty)


def _interface() -> tuple[Any, Any]:
    """The signature of a packaged model and an example request, as cli/serve.py reads them."""
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import AnyType, Array

    types: dict[str, Any] = {
        "digit": DataType.long, "kl_weight": DataType.double, "seed": DataType.long, "sampler": DataType.string,
        "count": DataType.long, "image": Array(Array(DataType.double)), "mask": AnyType(),  # type: ignore[no-untyped-call]
    }  # fmt: skip
    inputs = Schema([ColSpec(of, name, required=False) for name, of in types.items()])
    outputs = Schema([TensorSpec(np.dtype("float32"), (-1, 28, 28))])
    return ModelSignature(inputs, outputs), pd.DataFrame({"digit": [3], "seed": [0]})


def _why_none(run: Any) -> str:
    """Which runs have models, said for a run that has none."""
    kind = run.data.tags.get("kind", "training")
    if kind == "trial":
        return "of a study, only the best trial's model is kept"
    if kind == "study":
        return "it is a study, whose best trial has one"
    return "it ended without one" if run.info.status == "FINISHED" else "its training did not end"


@contextmanager
def bad_requests() -> Iterator[None]:
    """Turns what is wrong with a request into MLflow's error, which its servers answer with 400 and no stack trace."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    try:
        yield
    except UserError as error:
        raise MlflowException(str(error), error_code=BAD_REQUEST) from error


def answer_by(answers: Callable[[list[Any]], list[Any]]) -> None:
    """Where this process is MLflow's scoring server: it then reads requests by `requests_in`, and answers by `answers`.

    MLflow's own reading makes 3.5 a 3, answers 100,000 brackets with 500, and repeats the request in its errors. No
    method of a model changes that, so the function `invocations` of its server is replaced.
    """
    server = sys.modules.get("mlflow.pyfunc.scoring_server")
    if server is None:
        return

    def invocations(body: bytes, content_type: str | None, *_: Any) -> Any:
        try:
            found = [one.astype(float).round(4).tolist() for one in answers(requests_in(body, content_type or ""))]
            return server.InvocationsResponse(json.dumps({"predictions": found}), 200, JSON)
        except UserError as error:
            said = {"error_code": "BAD_REQUEST", "message": " ".join(str(error).split())[:LONGEST_ERROR]}
            return server.InvocationsResponse(json.dumps(said), 400, JSON)

    server.invocations = invocations  # type: ignore[attr-defined]


def requests_in(body: bytes, content_type: str) -> list[Any]:
    """The requests that the body of an HTTP request holds, in any of MLflow's four forms. Raises UserError."""
    if content_type.partition(";")[0].strip().lower() != JSON:
        raise UserError(f"the content type must be {JSON}, not {content_type!r}")
    if len(body) > LARGEST_BODY:
        raise UserError(f"the body may have {LARGEST_BODY:,} bytes, not {len(body):,}")
    try:
        content = json.loads(body)
    except RecursionError:
        raise UserError("the body is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"the body is not JSON: {error}") from None
    if not isinstance(content, dict) or len(content) != 1 or not content.keys() <= FORMS:
        raise UserError('the body must be {"inputs": [REQUEST, …]}, such as {"inputs": [{"digit": 8, "seed": 1}]}')
    ((form, found),) = content.items()
    if form == "dataframe_split":
        try:
            found = [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
        except (KeyError, TypeError, ValueError):
            raise UserError("dataframe_split needs columns, and data: rows of as many values") from None
    if not isinstance(found, list):
        raise UserError(f"{form} must be a list of requests")
    return found


def download_model(uri: str) -> Path:
    """Fetches the weights of the run at `runs:/<run id>` to `models/<run id>.safetensors` in the user's project folder.

    Raises UserError if there is no such run, or no model in it.
    """
    run, store = named(uri)
    run_id = run.info.run_id
    target = home() / "models" / f"{run_id}.safetensors"
    with packaged(run, store) as weights, replacing(target) as part:
        shutil.copy(weights, part)
    return target


@contextmanager
def packaged(run: Any, store: str) -> Iterator[Path]:
    """The weights of a run's model, in a temporary folder. Raises UserError if it has none, or others than it says."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    run_id = run.info.run_id
    if not model_of(run):
        raise UserError(f"run {run_id} has no model: {_why_none(run)}")
    with tempfile.TemporaryDirectory(prefix="cvae-") as folder:
        with one_line(store):
            place = connect(store).get_logged_model(model_of(run)).artifact_location
            try:
                data = download_artifacts(f"{place}/data", dst_path=folder, tracking_uri=store)
            except (MlflowException, FileNotFoundError):
                raise UserError(f"the model of run {run_id} is not at {place}: put that folder back") from None
        weights = sorted(Path(data).rglob("*.safetensors"))
        if not weights:
            raise UserError(f"the model of run {run_id} is not one of this project: it holds no safetensors file")
        if run.data.tags.get("model_hash") not in (None, sha256(weights[0])):
            other = f"MLflow's weights of run {run_id} are not those of its tag model_hash"
            raise UserError(f"{other}: don't use them; `dvc repro --force` of its stage makes a new run")
        yield weights[0]
