"""`cvae verify`: whether dvc.lock, files, MLflow's runs, Optuna's trials and the registry still belong together."""

import math
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from pipeline.base.addresses import shown
from pipeline.base.errors import UserError
from pipeline.base.files import sha256
from pipeline.base.paths import BEST, CURVE, HISTORY, METRICS, MODEL, PREPARED, RUN, TRIALS, VALIDATION

CHANGED = {  # DVC's word for an output that changed: what is wrong, and the remedy
    "modified": ("is not the file that dvc.lock names", "`dvc checkout --force {}` brings that one back"),
    "deleted": ("is missing", "`dvc checkout {}` brings it back"),
    "new": ("is not in dvc.lock", "`dvc repro` makes it anew"),
    "not in cache": ("is not in DVC's cache", "`dvc commit {}` puts it there, `dvc repro` makes it anew"),
}
GARBAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError)  # what reading something else raises


def verify() -> None:
    """Check that files, runs and trials still match.

    By hashes and ids: dvc.lock and the files, models/run.json and its MLflow run, reports/ and the figures of that run,
    the study's files and its trials in Optuna and MLflow, MLflow's champion and its run. It lists every broken link
    with the remedy, and changes nothing. The exit status is 2 if a link is broken.
    """
    from pipeline.tracking.local import reading_uri

    links = Links(reading_uri())
    for part in (_files, _training, _study, _registry, _outbox):
        with links.reading():
            part(links)
    broken = dict.fromkeys(links.broken)
    for line in broken:
        print(f"✗ {line}")
    for line in dict.fromkeys(links.unchecked):
        print(f"· {line}")
    print(f"{links.held} links hold, {len(broken)} {'is' if len(broken) == 1 else 'are'} broken")
    if broken:
        raise typer.Exit(2)


@dataclass
class Links:
    """What was found. uri: of the store that is read. Each line of `broken` says what, where, and the remedy."""

    uri: str
    held: int = 0
    broken: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def hold(self, whole: bool, otherwise: str) -> bool:
        """Counts a link, or notes how it is broken."""
        if whole:
            self.held += 1
        else:
            self.broken.append(otherwise)
        return whole

    @contextmanager
    def reading(self, path: Path | str = "", remedy: str = "") -> Iterator[None]:
        """What can't be read is a broken link; an error that is not in words is one of the file at `path`."""
        try:
            yield
        except UserError as error:
            self.broken.append(str(error))
        except GARBAGE as error:
            if not path:
                raise
            self.broken.append(f"{path} is not what this version writes ({error!r}): {remedy}")

    def run(self, run_id: str, key: str, named_by: str) -> Any:
        """The MLflow run of that id or key, which `named_by` names; None if it is not there, which is noted."""
        from pipeline.tracking.local import find

        found = find(self.uri, run_id, key)
        remedy = f"; a deleted one comes back by `mlflow runs restore --run-id {run_id}`" if run_id else ""
        nowhere = f"{named_by} names MLflow run {run_id or key}, which is not at {shown(self.uri)}"
        self.hold(found is not None, f"{nowhere}: name its store in MLFLOW_TRACKING_URI{remedy}")
        return found

    def figures(
        self, path: Path, expected: Mapping[str, float], where: str, has: Mapping[str, float], remedy: str
    ) -> None:
        """Whether `has`, the figures at `where`, has all those in the file, with the same values."""
        wrong, said = differing(expected, has), ""
        if wrong:
            name, *others = wrong
            said = f"{name} is {expected[name]:.6g}, in {where} {f'{has[name]:.6g}' if name in has else 'none'}"
            said += f" (and {len(others)} more)" if others else ""
        self.hold(not wrong, f"{path}: {said}: {remedy}")

    def weights(self, run: Any) -> None:
        """Whether the weights that MLflow keeps for a run are those that its tag names."""
        from pipeline.tracking.package import packaged

        if "model_hash" not in run.data.tags:
            self.unchecked.append(f"MLflow run {run.info.run_id} has no tag model_hash: an earlier version made it")
            return
        with self.reading(), packaged(run, self.uri):
            self.held += 1


def differing(expected: Mapping[str, float], has: Mapping[str, float]) -> list[str]:
    """The names of the finite figures that `has` lacks, or has with other values."""
    return [name for name, value in expected.items() if math.isfinite(value) and not same(value, has.get(name))]


def same(value: Any, other: Any) -> bool:
    """Whether two values are equal; numbers up to the last digits, which a table may have rounded."""
    if isinstance(value, float) and isinstance(other, int | float):
        return math.isclose(value, other, rel_tol=1e-9)
    return bool(value == other)


def _files(links: Links) -> None:
    """Every stage's outputs, and what it ran with."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            status = repo.status()
            stages = {one.addressing: ([*map(str, one.outs)], [*map(str, one.deps)]) for one in repo.index.stages}
    except NotDvcRepoError:
        links.unchecked.append("this folder is no DVC project: its files are compared with no dvc.lock")
        return
    except DvcException as error:
        reason = " ".join(str(error).split())
        links.broken.append(f"DVC can't compare the files with dvc.lock ({reason}): `dvc status` says more")
        return
    unmade = [name for name, (outs, _) in stages.items() if not any(Path(out).exists() for out in outs)]
    if unmade:
        links.unchecked.append(f"nothing is here of {', '.join(unmade)}: `dvc repro` or `dvc pull` brings it")
    ran_with: dict[str, list[str]] = {}
    outputs = set()
    for name in stages.keys() - set(unmade):
        changes = [*_changes(status.get(name, []))]
        links.held += sum(map(len, stages[name])) - len(changes)
        for kind, path, word in changes:
            if kind == "changed outs":
                outputs.add(path)
                wrong, remedy = CHANGED.get(word, (f"is {word}", "`dvc repro`"))
                links.broken.append(f"{path} {wrong} (stage {name}): {remedy.format(path)}")
            else:
                ran_with.setdefault(path, []).append(name)
    for path, names in ran_with.items():
        if path not in outputs:
            links.broken.append(f"{path} differs from what {', '.join(sorted(names))} ran with (dvc.lock): `dvc repro`")


def _changes(status: list[Any]) -> Iterator[tuple[str, str, str]]:
    """Kind, path and DVC's word of each change of a stage; a key of params.yaml counts as a path."""
    for entry in status:
        if not isinstance(entry, dict):
            yield "changed deps", "dvc.yaml", str(entry)
            continue
        for kind, paths in entry.items():
            for path, word in paths.items():
                for key, one in word.items() if isinstance(word, dict) else [("", word)]:
                    yield kind, f"{path}: {key}" if key else path, one


def _training(links: Links) -> None:
    from pipeline.base.params import digest
    from pipeline.stages.saved import load_pointer, params_of

    data = sha256(PREPARED) if PREPARED.exists() else None
    if CURVE.exists() and data:
        repro = f"{CURVE} was trained on other data than {PREPARED}: `dvc repro curve`"
        links.hold(params_of(CURVE, "curve").get("data") == data, repro)
    if not (RUN.exists() or MODEL.exists()):
        links.unchecked.append("no model was trained here yet: `dvc repro train`")
        return
    pointer, params = load_pointer(RUN), params_of(MODEL)
    hashes = pointer.get("hashes", {})
    back = "`dvc checkout --force models data` brings back what dvc.lock names"
    links.hold(digest(params) == hashes.get("params"), f"{MODEL} has other params than {RUN} says: {back}")
    if data:
        links.hold(data == hashes.get("data"), f"{PREPARED} is not the data that {RUN} says: {back}")
    run_id = pointer["run_id"]
    run = links.run(run_id, pointer.get("run_key", ""), str(RUN))
    if run is None:
        return
    where, tags = f"MLflow run {run.info.run_id}", run.data.tags
    unfinished = f"{where} of {RUN} is {run.info.status}: `cvae sync`, or `dvc repro train`"
    links.hold(run.info.status == "FINISHED", unfinished)
    own = {"data": (RUN, hashes.get("data")), "params": (RUN, hashes.get("params")), "model": (MODEL, sha256(MODEL))}
    for name, (path, value) in own.items():
        tag = tags.get(f"{name}_hash", value if name == "params" else None)  # a trial has no hash of params
        if tag is not None:
            remedy = f"{back}, `cvae restore {run.info.run_id}` what the run used"
            links.hold(tag == value, f"{where} has {name}_hash {tag}, {path} has {value}: {remedy}")
    links.weights(run)
    _code(links, tags, where)
    _evaluation(links, run, where)


def _code(links: Links, tags: Mapping[str, str], where: str) -> None:
    commit = tags.get("mlflow.source.git.commit", "")
    if not commit:
        links.unchecked.append(f"{where} names no commit of its code: it was trained outside of git")
        return
    equal = same_code(commit)
    if equal is None:
        links.broken.append(f"{where} names commit {commit}, which git does not have: `git fetch --all`")
    elif not equal and tags.get("git_dirty") == "true":
        links.unchecked.append(f"{where} was trained with changes that were not committed, on {commit}")
    else:
        remedy = f"`git diff {commit} -- pipeline` shows how, `dvc repro train` trains with today's"
        links.hold(equal, f"{where} was trained by other code, of commit {commit}: {remedy}")


def same_code(commit: str) -> bool | None:
    """Whether today's code of the stage `train` is that of a commit; None where git does not have the commit."""
    from pipeline.base.params import read

    code = [path for path in read("dvc.yaml")["stages"]["train"]["deps"] if path.startswith("pipeline/")]
    status = subprocess.run(["git", "diff", "--quiet", commit, "--", *code], capture_output=True).returncode
    return status == 0 if status in (0, 1) else None


def _evaluation(links: Links, run: Any, where: str) -> None:
    """The figures in reports/ against those of the run, or of an evaluation below it that measured in another way."""
    from pipeline.cli.handing import flattened
    from pipeline.measure.evaluator import with_split
    from pipeline.stages.saved import REMEDY, load_json, load_table
    from pipeline.tracking.local import below

    last = load_table(HISTORY, REMEDY["cvae"]).iloc[-1].drop(["epoch", "step"])
    history = {str(name): float(value) for name, value in last.items()}
    is_trial = run.data.tags.get("kind") == "trial"
    if not is_trial:  # whose last figures are means over its seeds
        links.figures(HISTORY, history, where, run.data.metrics, "`dvc checkout --force` of it, or `cvae sync`")
    runs = [] if is_trial else [run]
    runs += [one for one in below(links.uri, run) if one.data.tags.get("kind") == "evaluation"]
    for split, path in (("validation", VALIDATION), ("test", METRICS)):
        if not path.exists():
            links.unchecked.append(f"{path} is not here: `dvc repro evaluate` measures the model")
            continue
        with links.reading(path, "`dvc repro evaluate`"):
            named = with_split(split, flattened(load_json(path, "run `dvc repro evaluate`", "protocol")))
            expected = {name: value for name, value in named.items() if name not in history}
            first, *_ = [*runs, run]
            best = next((one for one in runs if not differing(expected, one.data.metrics)), first)
            back = f"`dvc checkout --force {path}` takes back a change of it"
            remedy = f"{back}, `dvc repro --force evaluate` measures anew"
            links.figures(path, expected, f"MLflow run {best.info.run_id}", best.data.metrics, remedy)


def _study(links: Links) -> None:
    import pandas as pd

    from pipeline.stages.saved import load_json
    from pipeline.study.queue import read_study

    if not BEST.exists():
        links.unchecked.append("no study was run here yet, so that there are no trials: `dvc repro tune`")
        return
    remedy = "`dvc checkout --force reports/study` brings back what dvc.lock names"
    best = load_json(BEST, remedy, "study", "trial", "values", "run", "uses", "params")
    study = read_study(best["study"], Path())
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    where = f"Optuna's study {study.study_name}"
    with links.reading(TRIALS, remedy):
        table = pd.read_csv(TRIALS).set_index("trial")
        for number in table.index:
            lacks = f"{TRIALS} has trial {number}, which {where} lacks: `dvc repro --force tune`"
            if links.hold(number in trials, lacks):
                _trial(links, table.loc[number].dropna().to_dict(), trials[number], where, remedy)
        with links.reading(BEST, remedy):
            links.run("", best["run"]["run_key"], str(BEST))
            row = table.loc[best["trial"]].to_dict() | {"trial": best["trial"]}
            links.figures(BEST, best["values"], str(TRIALS), row, remedy)
            other = f"{BEST} names another run of trial {best['trial']} than {TRIALS}: {remedy}"
            links.hold(best["run_id"] == row["run_id"], other)
            promoted = study.user_attrs.get("promoted")
            if promoted is None:
                links.unchecked.append("no trial was promoted yet: `cvae promote`")
            else:
                _promoted(links, best, table.loc[promoted]["kl_weight"], promoted)


def _trial(links: Links, row: Mapping[Any, Any], trial: Any, where: str, remedy: str) -> None:
    """A row of trials.csv against Optuna's trial and MLflow's run. row: without what is blank."""
    from pipeline.study.found import means, of_seeds, state

    name = f"trial {trial.number} of {where}"
    has = {"state": state(trial), **trial.params, "run_id": trial.user_attrs.get("run_id")}
    wrong = [key for key, value in has.items() if key in row and not same(row[key], value)]
    links.hold(not wrong, f"{TRIALS} has another {', '.join(wrong)} than {name}: {remedy}")
    measured = {key: one for key, one in row.items() if key.startswith("validation/") and not key.endswith("_error")}
    links.figures(TRIALS, measured, name, means(of_seeds(trial.user_attrs)), remedy)
    if has["state"] == "COMPLETE":
        run = links.run(row.get("run_id", ""), trial.user_attrs.get("run_key", ""), f"{TRIALS}, trial {trial.number},")
        if run is not None:
            again = "`dvc repro --force tune` records it again"
            links.figures(TRIALS, measured, f"MLflow run {run.info.run_id}", run.data.metrics, again)
            if run.outputs and run.outputs.model_outputs:
                links.weights(run)


def _promoted(links: Links, best: Mapping[str, Any], tried: float, number: int) -> None:
    """The weight in params.yaml against what the study answers: the trial that was promoted, or a use's interval."""
    from pipeline.base.params import read

    weight = read()["objective"]["kl_weight"]
    intervals = [best["interval"], *(use["interval"] for use in best["uses"].values())]
    answered = same(float(weight), tried) or any(low <= weight <= high for low, high in intervals)
    none = f"params.yaml: objective.kl_weight {weight:g} is none that {BEST} answers"
    links.hold(answered, f"{none}, and not that of trial {number}, which was promoted: `cvae promote` writes one")


def _registry(links: Links) -> None:
    from pipeline.tracking.registry import NAME, aliases

    found = aliases(links.uri)
    if not found:
        links.unchecked.append("no model was promoted yet, so that MLflow has no champion: `cvae promote`")
    for alias, (number, version) in found.items():
        where = f"models:/{NAME}@{alias}"
        there = f"{where} is version {number}, which MLflow does not have: `cvae promote` registers one"
        if links.hold(version is not None, there):
            run = links.run(version.run_id, "", f"{where}, version {number},")
            if run is not None:
                links.weights(run)
                made = [f"models:/{one.model_id}" for one in run.outputs.model_outputs] if run.outputs else []
                other = f"{where}, version {number}, is no model of its run {version.run_id}: `cvae promote`"
                links.hold(version.source in made, other)


def _outbox(links: Links) -> None:
    from pipeline.tracking.journal import OUTBOX, waiting

    found = waiting()
    for store, count in found.items():
        links.broken.append(f"{count} records in {OUTBOX} wait for MLflow at {store}: `cvae sync` sends them")
    links.held += not found
