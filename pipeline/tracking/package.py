"""Packaged models: weights, this package's code, and what to install. No pickles."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pipeline.base.errors import UserError
from pipeline.base.files import home, replacing
from pipeline.tracking.local import connect, named, one_line

MODEL = "model"
LOADER = "pipeline.cli.serve"
LOADER_NEEDS = ("torch", "numpy", "pydantic", "safetensors", "pandas")

Served = Literal["samples", "completions"]  # what a packaged model answers requests with
NAMES: dict[Served, str] = {"samples": "cvae-mnist", "completions": "cvae-mnist-completion"}  # of the models


def pack(weights: Path, served: Served, run_id: str = "", model_id: str = "") -> Path:
    """Writes an MLflow model folder beside `weights`, which answers requests through cli/serve.py.

    The ids say which run and which logged model it belongs to.
    """
    from mlflow import pyfunc
    from mlflow.models import Model

    folder, (signature, example) = weights.with_name(MODEL), _interface(served)
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
    with tempfile.TemporaryDirectory(prefix="cvae-") as folder:
        empty = Path(folder, "empty")
        empty.touch()
        pack(empty, "samples")


def _interface(served: Served) -> tuple[Any, Any]:
    """The signature of a packaged model and an example request, as cli/serve.py reads them."""
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    if served == "completions":
        pictures = TensorSpec(np.dtype("float32"), (-1, 28, 28))
        completions = TensorSpec(np.dtype("float32"), (-1, -1, 28, 28))
        params = [ParamSpec(name, DataType.long, usual) for name, usual in (("count", 8), ("digit", -1), ("seed", 0))]
        half = np.zeros((1, 28, 28), np.float32)
        half[:, :14] = -1
        return ModelSignature(Schema([pictures]), Schema([completions]), ParamSchema(params)), half
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.long, "digit"),
        ColSpec(DataType.long, "seed", required=False),
        ColSpec(DataType.string, "sampler", required=False),
    ]
    outputs = Schema([TensorSpec(np.dtype("float32"), (-1, 28, 28))])
    return ModelSignature(Schema(inputs), outputs), pd.DataFrame({"digit": [3], "seed": [0]})


def _why_none(run: Any) -> str:
    """Which runs have models, said for a run that has none."""
    kind = run.data.tags.get("kind", "training")
    if kind == "trial":
        return "of a study, only the best trial's model is kept"
    if kind == "study":
        return "it is a study, whose best trial has one"
    return "its training did not end"


@contextmanager
def bad_requests() -> Iterator[None]:
    """Turns what is wrong with a request into MLflow's error, which its server answers with 400 and one sentence."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    try:
        yield
    except (UserError, TypeError, ValueError) as error:
        raise MlflowException(str(error), error_code=BAD_REQUEST) from error


def download_model(uri: str, root: Path) -> Path:
    """Fetches the weights of the run at `runs:/<run id>` to `models/<run id>.safetensors` in the user's project folder.

    Raises UserError if there is no such run, or no model in it.
    """
    run, store = named(uri, root)
    run_id = run.info.run_id
    if not (run.outputs and run.outputs.model_outputs):
        raise UserError(f"run {run_id} has no model: {_why_none(run)}")
    with one_line(store), tempfile.TemporaryDirectory(prefix="cvae-") as folder:
        from mlflow.artifacts import download_artifacts

        model = connect(store).get_logged_model(run.outputs.model_outputs[-1].model_id)
        data = download_artifacts(f"{model.artifact_location}/data", dst_path=folder, tracking_uri=store)
        weights = sorted(Path(data).rglob("*.safetensors"))
        if not weights:
            raise UserError(f"the model of run {run_id} is not one of this project: it holds no safetensors file")
        target = home(root) / "models" / f"{run_id}.safetensors"
        with replacing(target) as part:
            shutil.copy(weights[0], part)
    return target
