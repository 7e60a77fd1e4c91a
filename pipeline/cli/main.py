"""The `cvae` command. Nothing heavy is imported before it is needed: `cvae --help` answers at once."""

import argparse
import difflib
import importlib
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.cli import doctor as examine
from pipeline.cli import draw as gallery
from pipeline.cli import reproduce

STAGES = {
    "download": "bring the four MNIST files to data/raw, checked by SHA-256",
    "prepare": "split them into train, validation and test tensors",
    "judge": "train the classifier that measures samples",
    "train": "train the CVAE of params.yaml into models/cvae.safetensors",
    "evaluate": "measure it on test: reports/metrics.json, tables and figures",
    "train_completion": "train what completes pictures, into models/completer.safetensors",
    "evaluate_completion": "measure completions on test: reports/completion.json and a figure",
    "tune": "bring the study of KL weights to its number of trials: reports/study",
}
EXAMPLES = """\
examples:
  dvc repro                                        the whole pipeline; what is up to date is left alone
  dvc exp run -S objective.kl_weight=1             the same with another KL weight
  cvae report                                      the headline figures of the last evaluation
  cvae doctor                                      what is wrong with the model, and what to change
  cvae sample 0-9 --count 12 --seed 1              digits, on the terminal or into a PNG
  cvae interpolate 3 8 --out way.gif               also: traverse, morph
  cvae complete INPUT.png --mask top               what the hidden half could be
  cvae weight --article 1e-5 --batch-size 128      what the source article's weight means here
  cvae study                                       the study's trials; `cvae promote` takes its best weight over
  cvae reproduce article                           the collapse that the source article tunes away
  cvae ui                                          compare runs in the browser
"""


class Parser(argparse.ArgumentParser):
    """Argparse with errors in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see `{self.prog} --help`", file=sys.stderr)
        sys.exit(2)


def parser() -> Parser:
    """Every command with its arguments."""
    top = Parser(
        prog="cvae",
        description="Train a conditional VAE on MNIST and find out which KL weight, and why.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name, words in STAGES.items():
        stage_parser = commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        stage_parser.set_defaults(act=lambda _, name=name: stage(name))

    gallery.add_commands(commands)

    add = commands.add_parser(
        "weight",
        help="convert the source article's KL weight to β and back",
        description="Convert between the source article's KL weight (pixel-mean BCE, batch-summed KL) and β.",
        epilog="examples:\n  cvae weight --article 1e-5 --batch-size 128\n  cvae weight --beta 0.3 --batch-size 128",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = add.add_mutually_exclusive_group(required=True)
    which.add_argument("--article", type=float, metavar="W", help="a weight as the article writes it")
    which.add_argument("--beta", type=float, metavar="B", help="objective.kl_weight of params.yaml")
    add.add_argument("--batch-size", type=int, default=128, metavar="N", help="the batch size it is used with (128)")
    add.set_defaults(act=weight)

    add = commands.add_parser("report", help="the headline figures of the last evaluation, and what to look at next")
    add.set_defaults(act=report)

    add = commands.add_parser("study", help="the trials of the study that params.yaml describes, the best first")
    add.set_defaults(act=study)

    add = commands.add_parser(
        "promote",
        help="write the study's best KL weight into params.yaml",
        description="Write the study's best KL weight, and what else was open, into params.yaml; nothing else there "
        "changes. `dvc repro` then trains with it.",
        epilog="examples:\n  cvae promote\n  cvae promote --trial 7",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add.add_argument("--trial", type=int, metavar="N", help="another complete trial than the best (see `cvae study`)")
    add.set_defaults(act=promote)

    examine.add_command(commands)
    reproduce.add_command(commands)

    add = commands.add_parser("ui", help="compare runs in MLflow's page, on the right database")
    add.add_argument("--port", type=int, default=5000, metavar="N", help="the first port to try (5000)")
    add.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    add.set_defaults(act=ui)
    return top


def stage(name: str) -> None:
    """Runs a stage in this process, as DVC would in its own."""
    importlib.import_module(f"pipeline.stages.{name}").main()


def weight(arguments: argparse.Namespace) -> None:
    """Prints β for an article weight, or the reverse, and why."""
    from pipeline.training.objective import from_article_weight, to_article_weight

    size = arguments.batch_size
    if size < 1:
        raise UserError(f"--batch-size must be at least 1, not {size}")
    given = arguments.article if arguments.article is not None else arguments.beta
    if not 0 <= given < float("inf"):
        raise UserError(f"a weight must be a finite number of at least 0, not {given}")
    if arguments.article is not None:
        beta, article = from_article_weight(given, size), given
        print(f"β = {_weight(beta)}   (objective.kl_weight)")
    else:
        beta, article = given, to_article_weight(given, size)
        print(f"w = {article:.6g}   (the source article's weight)")
    print(
        f"The article averages the reconstruction over 784 pixels × {size} images but sums the KL over the batch: its "
        f"w = {article:.4g} weighs the KL as β = w · 784 · {size} = {_weight(beta)} does in nats per image, where "
        "β = 1 is the evidence lower bound."
    )


def _weight(beta: float) -> str:
    return f"{beta:,.2f}" if beta >= 0.1 else f"{beta:.4g}"


def report(_: argparse.Namespace) -> None:
    """Prints the headline figures and what to look at next."""
    path = Path("reports/metrics.json")
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        protocol = figures["protocol"]
    except FileNotFoundError:
        raise UserError(f"{path} not found: run `dvc repro` first") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no evaluation of this project: run `dvc repro evaluate`") from None
    names = ("class_accuracy", "diversity", "frechet", "coverage")
    console.table(
        f"Samples, measured on {protocol['images']:,} {protocol['split']} images",
        ("sampler", *names),
        [(name, *(figures[name][column] for column in names)) for name in ("prior", "fitted", "real")],
        note="real: training images taken as if they were samples, the ceiling",
    )
    fit: tuple[str, ...] = ("reconstruction", "kl", "elbo", "nll", "active_units")
    if "bits_per_dimension" in figures:
        fit = (*fit, "bits_per_dimension")
    console.table(
        f"Fit, nats per image ({protocol['pixels']} pixels, nll with k = {protocol['nll_draws']})",
        ("β", *fit),
        [(f"{protocol['kl_weight']:g}", *(figures[name] for name in fit))],
    )
    if figures["collapsed"]:
        print("COLLAPSED: the latent code carries nothing, or samples of a class are all alike. Lower the KL weight.\n")
    with suppress(OSError, ValueError, KeyError, TypeError):
        verdict = json.loads(Path("reports/doctor.json").read_text(encoding="utf-8"))["verdict"]
        print(f"Doctor     {verdict}: `cvae doctor` says from which figures, and what to change")
    with suppress(OSError, ValueError, KeyError, TypeError):
        best = json.loads(Path("reports/study/best.json").read_text(encoding="utf-8"))
        found = f"β = {best['kl_weight']:.3g} is best, with {console.figures(best['values'])} on validation"
        print(f"Study      {found} (reports/study/; `cvae promote` takes it over)")
    print(
        "Look at    reports/figures/samplers.png, samples of every digit from both samplers beside real ones\n"
        "Compare    make ui, every run with its curves, figures and samples\n"
        "Try        dvc exp run -S objective.kl_weight=1, then dvc metrics diff"
    )


def study(_: argparse.Namespace) -> None:
    """Prints the study's trials, the best first."""
    from pipeline.base.paths import TRIALS
    from pipeline.measure.metrics import LOWER_IS_BETTER
    from pipeline.stages.tune import exported, read_setting
    from pipeline.study.search import NoStudy, open_study

    setting = read_setting()
    try:
        found = open_study(setting, Path(), create=False)
    except NoStudy:
        kept = exported(setting.name())
        if kept is None:
            raise
        front, table, promoted = set(kept[0]["front"]), kept[1], None
        where = f"from {TRIALS}, its database is not here"
    else:
        front, table, promoted = {trial.number for trial in found.front()}, found.table(), found.note("promoted")
        where = f"{found.done()} of {setting.tune.trials} trials"
    objectives, sampler = setting.tune.objectives, setting.tune.sampler_of_latents
    values = [f"value_{name}" for name in objectives]
    beside = [f"validation/{sampler}/{name}" for name in ("class_accuracy", "diversity") if name not in objectives]
    columns = [*setting.space(), *values, *(name for name in beside if name in table)]
    table["open"], table["poor"] = table["state"] != "COMPLETE", table["feasible"].eq(other=False)
    table = table.sort_values(["open", "poor", values[0]], ascending=[True, True, objectives[0] in LOWER_IS_BETTER])
    rows = []
    for cells in table.astype(object).where(table.notna(), "").to_dict("records"):
        star = " ★" if cells["trial"] in front else ""
        rows.append((f"{cells['trial']}{star}", cells["state"].lower(), *(cells[name] for name in columns)))
    titles = [name.removeprefix("value_").removeprefix(f"validation/{sampler}/") for name in columns]
    note = f"★ best{', the front' if len(objectives) > 1 else ''}; measured on validation, {sampler} sampler"
    if promoted is not None:
        note += f"; trial {promoted} was promoted"
    title = f"Study {setting.name()}: {where}"
    console.table(title, ("trial", "state", *titles), rows, note=note)


def promote(arguments: argparse.Namespace) -> None:
    """Takes a trial's values over into params.yaml."""
    from pipeline.base import params
    from pipeline.stages.tune import exported_best, read_setting
    from pipeline.study.search import NoStudy, open_study
    from pipeline.tracking import runs as tracking
    from pipeline.tracking.local import tracking_uri

    setting, found = read_setting(), None
    try:
        found = open_study(setting, Path(), create=False)
        chosen = found.choose(arguments.trial)
    except NoStudy:
        best = exported_best(setting.name())
        if best is None or arguments.trial not in (None, best.number):
            raise
        chosen = best
    if not chosen.feasible and arguments.trial is None:
        raise UserError(
            f"no complete trial of study {setting.name()} reaches tune.least_class_accuracy: "
            f"`cvae promote --trial {chosen.number}` takes the best of them all the same"
        )
    before = params.write(chosen.sets)
    for (section, key), value in chosen.sets.items():
        old, new = json.dumps(before[section, key]), json.dumps(value)
        print(f"params.yaml: {section}.{key} {old} → {new}{'  (as it was)' if old == new else ''}")
    # Optuna takes no tag on a trial that has ended: the study says which one it was.
    if found is not None:
        found.remember("promoted", chosen.number)
    if chosen.run_id and chosen.tracking_uri:
        stores = dict.fromkeys([tracking_uri(Path()), chosen.tracking_uri])  # the folder may have moved
        tracking.tag(chosen.run_id, {"promoted": "true"}, list(stores), console.warn)
    print(f"trial {chosen.number}, {console.figures(chosen.values)} on validation. `dvc repro` trains with it.")


def ui(arguments: argparse.Namespace) -> None:
    """Serves MLflow's page until Ctrl-C."""
    from pipeline.base.params import load
    from pipeline.tracking import runs as tracking
    from pipeline.tracking import server

    experiment = load(tracking.TrackingParams, "tracking").experiment
    server.ui(Path(), arguments.port, not arguments.no_browser, experiment)


def main() -> None:
    """The console command."""
    console.run(_act)


def _act() -> None:
    words = sys.argv[1:]
    top = parser()
    known = next(action.choices for action in top._actions if isinstance(action, argparse._SubParsersAction))
    if words and not words[0].startswith("-") and words[0] not in known:
        close = difflib.get_close_matches(words[0], known, n=1)
        top.error(f"no command {words[0]!r}" + (f", did you mean {close[0]!r}?" if close else ""))
    arguments = top.parse_args(words)
    arguments.act(arguments)


if __name__ == "__main__":
    main()
