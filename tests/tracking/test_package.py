import json
import re
import subprocess
from pathlib import Path

import pytest
from drills import Zygote
from packaged import save_cvae_in
from stores import client, kept

from pipeline.base.errors import UserError
from pipeline.completion import model as completion
from pipeline.stages.saved import save_completer
from pipeline.tracking import package, runs

# A program that forgets this project first, and may load no pickle.
PROGRAM = """
import json, mlflow, numpy, pandas, sys
for name in [name for name in sys.modules if name.partition(".")[0] == "pipeline"]:
    del sys.modules[name]
model = mlflow.pyfunc.load_model(f"runs:/{sys.argv[1]}/cvae-mnist")
images = numpy.stack(model.predict(pandas.DataFrame({"digit": [3, 7, 3], "seed": [1, 1, 1]})))
import pipeline.cli.serve
same = bool((images[0] == images[2]).all())
print(json.dumps([images.shape, same, float(images.max()), pipeline.cli.serve.__file__]))

model = mlflow.pyfunc.load_model(f"runs:/{sys.argv[2]}/cvae-mnist-completion")
request = {"image": numpy.zeros((28, 28)).tolist(), "mask": "top", "count": 3, "digit": 4, "seed": 1}
found = numpy.stack(model.predict([request, request]))
print(json.dumps([found.shape, float(found[:, :, :14].min()), float(found[:, :, 14:].max())]))
"""


@pytest.mark.slow
def test_packaged_models_sample_and_complete_without_pickle(root: Path, zygote: Zygote) -> None:
    with runs.start("train", "e") as run:
        run.model(save_cvae_in(root))
        run.metrics({"nll": 80.0}, step=1, of_model=True)
    with runs.add_to(run.pointer(), "train", "e") as again:
        again.metrics({"frechet": 2.0}, step=1, of_model=True)
    model = client(run).get_logged_model(kept(run).outputs.model_outputs[-1].model_id)
    assert {metric.key: metric.value for metric in model.metrics} == {"nll": 80.0, "frechet": 2.0}
    folder = Path(model.artifact_location.removeprefix("file://"))
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes <= {"", ".py", ".json", ".txt", ".yaml", ".safetensors", ".html", ".md", ".css", ".js"}
    assert re.search(r"^torch==[\d.]+$", (folder / "requirements.txt").read_text(), re.MULTILINE)
    save_completer(root / "completer.safetensors", completion.build(2, 8, 0))
    with runs.start("completion cvae", "e") as completer:
        completer.model(root / "completer.safetensors", "completions")

    settings = {"MLFLOW_TRACKING_URI": run.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = ["python", "-c", PROGRAM, run.run_id, completer.run_id]
    said = subprocess.check_output(command, env=zygote.environment() | settings, text=True)
    (shape, same, most, file), (completed, hidden, seen) = map(json.loads, said.splitlines())
    assert (shape, same) == ([3, 28, 28], True)
    assert 0 < most <= 1
    assert Path(file).parts[-4:] == ("code", "pipeline", "cli", "serve.py")  # the model's own copy
    assert completed == [2, 3, 28, 28]
    assert hidden > 0 == seen


@pytest.mark.usefixtures("root")
def test_a_run_without_a_model_is_an_error_in_one_line() -> None:
    with runs.start("train", "e") as run:
        pass
    none = "has no model: it ended without one"
    for uri, words in ((f"runs:/{run.run_id}", none), (f"runs:/{'0' * 32}", "no run"), ("x", "names no")):
        with pytest.raises(UserError, match=words):
            package.download_model(uri)
