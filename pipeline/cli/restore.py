"""`cvae restore`: brings the params and weights of an MLflow run back into the project."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.base.addresses import address
from pipeline.base.errors import UserError
from pipeline.base.files import alone, replacing, sha256, write_json
from pipeline.base.paths import CHECKPOINTS, HISTORY, MODEL, PREPARED, RUN

BEFORE = Path(".cvae/before")
PARAMS = Path("params.yaml")
TOUCHED = (PARAMS, Path("dvc.lock"), MODEL, RUN, HISTORY)


def restore(run: Annotated[str, typer.Argument(metavar="RUN", help="the id of a training or trial in MLflow")]) -> None:
    """Bring a run's params and weights back.

    params.yaml gets the run's values. models/ and reports/history.csv get its weights and epochs, from DVC's cache or
    from MLflow. The files that stood there are kept in .cvae/before. After an error everything is as it was.

    \b
    cvae restore 3f2a…              `cvae ui` shows the ids
    dvc repro evaluate
    """
    from pipeline.base.params import write
    from pipeline.tracking.local import named

    found, store = named(f"runs:/{run.removeprefix('runs:/')}")
    with tempfile.TemporaryDirectory(prefix="cvae-") as folder, alone(CHECKPOINTS / "train.lock"):
        files, source = _from_dvc(found), "DVC's cache"
        if not files:
            files, source = _from_mlflow(found, store, Path(folder)), "MLflow"
        changes = _changes(found, store, files.get(MODEL))
        with _or_as_before() as kept:
            before = write(changes)
            for path, file in files.items():
                with replacing(path) as part:
                    shutil.copyfile(file, part)
            why = _lock(found) if files else "the run's weights were not kept"
    for (section, key), value in changes.items():
        print(f"{PARAMS}: {section}.{key} {json.dumps(before[section, key])} → {json.dumps(value)}")
    if files:
        print(f"{', '.join(map(str, files))}: from {source}")
    print(f"{PREPARED}:", _other_data(found) or "the run's data")
    print(f"what stood there before is in {kept}")
    anew = f"would train anew with these params, since {why}"
    print(f"`dvc repro` {anew if why else 'goes on from here: dvc.lock names these files'}")


@contextmanager
def _or_as_before() -> Iterator[Path]:
    """Keeps copies of all files that are touched, and yields their folder. After an error they are put back."""
    kept = BEFORE / datetime.now().strftime("%Y-%m-%dT%H-%M-%S.%f")
    for path in filter(Path.exists, TOUCHED):
        (kept / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, kept / path)
    try:
        yield kept
    except BaseException:
        for path in TOUCHED:
            if (kept / path).exists():
                with replacing(path) as part:
                    shutil.copyfile(kept / path, part)
            else:
                path.unlink(missing_ok=True)
        shutil.rmtree(kept)
        raise


def _from_dvc(run: Any) -> dict[Path, Path]:
    """The outputs of the stage `train` that name the run, in DVC's cache; none if it does not hold them all."""
    from pipeline.base.params import read

    said = subprocess.run(["dvc", "cache", "dir"], capture_output=True, text=True)
    cache, tag = Path(said.stdout.strip()), run.data.tags.get("model_hash")
    for entry in cache.glob("runs/*/*/*") if said.returncode == 0 else ():
        with suppress(OSError, ValueError, KeyError, TypeError, UserError):  # of another stage, or not in the cache
            hashes = {Path(out["path"]): out["md5"] for out in read(entry)["outs"]}
            outs = {path: cache / "files/md5" / md5[:2] / md5[2:] for path, md5 in hashes.items()}
            is_of_run = json.loads(outs[RUN].read_text(encoding="utf-8"))["run_id"] == run.info.run_id
            if is_of_run and tag in (None, sha256(outs[MODEL])) and outs[HISTORY].exists():
                return outs
    return {}


def _from_mlflow(run: Any, store: str, folder: Path) -> dict[Path, Path]:
    """The same files, made in `folder` of what MLflow has; none if it has no weights."""
    import pandas as pd

    from pipeline.base.params import digest
    from pipeline.stages.saved import params_of
    from pipeline.tracking.local import KEY, artifact, history_of, model_of, tracking_uri
    from pipeline.tracking.package import packaged

    if not model_of(run):
        return {}
    tags, files = run.data.tags, {path: folder / path.name for path in (MODEL, RUN, HISTORY)}
    with packaged(run, store) as weights:
        shutil.copyfile(weights, files[MODEL])
    hashes = {"data": tags.get("data_hash", ""), "params": digest(params_of(files[MODEL]))}
    uri = address(tracking_uri())
    pointer = {"run_id": run.info.run_id, "run_key": tags.get(KEY, ""), "tracking_uri": uri, "hashes": hashes}
    write_json(files[RUN], pointer)
    if artifact(run, store, HISTORY.name, folder) is None:  # a trial's
        curves = [name for name in run.data.metrics if name.count("/") == 1]
        epochs = enumerate(history_of(run, store, curves), 1)
        table = pd.DataFrame([{"epoch": epoch, "step": step, **row} for epoch, (step, row) in epochs])
        table.dropna(axis="columns").to_csv(files[HISTORY], index=False)  # without what the end alone has
    return files


def _changes(run: Any, store: str, weights: Path | None) -> dict[tuple[str, str], Any]:
    """What params.yaml must get. Raises UserError for a run that this version of the project can't train."""
    from pipeline.base.params import digest, read
    from pipeline.stages.check import load_all
    from pipeline.stages.saved import params_of
    from pipeline.tracking import local

    sections, content = params_of(weights) if weights else local.params_of(run, store), read()
    if not {"model", "objective", "train"} <= sections.keys():
        name = f"run {run.info.run_id} ({run.info.run_name})"
        raise UserError(f"{name} is no training of the CVAE, and no trial of a study")
    if digest(sections) != run.data.tags.get("params_hash"):
        from pipeline.model.cvae import as_given

        sections["model"] = as_given(sections["model"], content["model"])
    changes = {(name, key): value for name, one in sections.items() for key, value in one.items()}
    for name, key in changes:
        if key not in content.get(name, {}):
            commit = run.data.tags.get("mlflow.source.git.commit", "its commit")
            lacks = f"run {run.info.run_id} has {name}.{key}, {PARAMS} does not"
            raise UserError(f"{lacks}: `git checkout {commit}` brings its version")
    load_all({name: {**one, **sections.get(name, {})} for name, one in content.items()})
    return {(name, key): value for (name, key), value in changes.items() if content[name][key] != value}


def _lock(run: Any) -> str:
    """Lets dvc.lock name the files, if the stage `train` would make them now. Returns why not, or nothing."""
    from pipeline.cli.verify import same_code

    if run.data.tags.get("kind") == "trial":
        return "a study trained these weights, not the stage train; `cvae evaluate` measures them"
    if _other_data(run):
        return "the data is not the run's"
    if not same_code(run.data.tags.get("mlflow.source.git.commit", "")):
        return "today's code of the training is not the run's"
    done = subprocess.run(["dvc", "commit", "--force", "train"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"`dvc commit train` failed ({' '.join(done.stderr.split())})"


def _other_data(run: Any) -> str:
    """In words what the data is; empty where it is the run's."""
    if not PREPARED.exists():
        return "not here: `dvc repro prepare` makes it"
    known = run.data.tags.get("data_hash", "(not recorded)")
    return "" if sha256(PREPARED) == known else f"NOT the run's data, which has the SHA-256 {known}"
