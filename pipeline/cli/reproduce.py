"""`cvae reproduce`: the source article's experiment, its figures in reports/article/, and what they say.

19 trainings of 3 epochs: docs/article.md says how long they took where they were timed.
"""

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.base.errors import UserError
from pipeline.base.paths import ARTICLE, JUDGE, PREPARED

if TYPE_CHECKING:
    from pipeline.weight.article import Result

EPOCHS = 3
MOST_EPOCHS = 1000
COLUMNS = 10
GREYS = 32  # of the picture: digits look alike in them, and it takes a third of the space
SHOWN = ("class_accuracy", "diversity")


def reproduce(
    what: Annotated[Literal["article"], typer.Argument(help="article: the collapse and its remedy")],  # noqa: ARG001
    epochs: Annotated[int, typer.Option(min=1, max=MOST_EPOCHS, metavar="N", help="of each training")] = EPOCHS,
) -> None:
    """Train the source article's model at its KL weights.

    Also with every conditioning, with and without the label in its encoder. The figures, on validation, go to
    reports/article.

    \b
    cvae reproduce article
    cvae reproduce article --epochs 20
    """
    for path, command in ((PREPARED, "prepare"), (JUDGE, "judge")):
        if not path.exists():
            raise UserError(f"{path} not found: run `dvc repro {command}` first")

    from dataclasses import replace
    from functools import partial

    from pipeline.base import console
    from pipeline.base.device import pick_device
    from pipeline.base.params import load, load_key, plain
    from pipeline.measure import evaluator as evaluation
    from pipeline.measure import judge
    from pipeline.model import samples
    from pipeline.model.density import Components
    from pipeline.stages.saved import load_judge, load_splits
    from pipeline.training.fit import TrainParams
    from pipeline.weight import article

    params = replace(
        load(TrainParams, "train"),
        epochs=epochs,
        batch_size=article.BATCH_SIZE,
        learning_rate=article.LEARNING_RATE,
        ema=None,
        augment=0,
    )
    components, device = load_key(Components, "sample", "components"), pick_device(params.device)
    train, validation = load_splits(PREPARED, "train", "validation", device=device)
    reader = partial(judge.read, load_judge(JUDGE, device))
    quick = train[: evaluation.QUICK_TRAIN]
    evaluator = evaluation.Evaluator(reader, validation, quick, article.AIM.pixels, params.seed)
    real = evaluator.ceiling()

    began, results, sheets = time.perf_counter(), [], {}
    stacks = article.stacks()
    with console.bar("reproduce", len(stacks) * params.epochs) as bar:
        for index, stack in enumerate(stacks):
            members = article.start(stack, params, device)
            shape = f"{stack[0].conditioning}, {_encoder(sees=stack[0].encoder_sees_label)}"
            for _ in article.fit(stack, members, train, validation, params):
                bar.show(index * params.epochs + members.epoch, f"{len(stack)} weights, {shape}")
            for row, member in enumerate(stack):
                model = members.model(row)
                results.append(article.measure(member, model, evaluator, components))
                if member.is_articles and member.weight in article.CONTRAST:
                    labels = samples.rows_of_digits(COLUMNS).to(device)
                    images = samples.sample(model, None, labels, "prior", params.seed)
                    sheets[_weight(member.weight)] = samples.sheet(images, COLUMNS)
    protocol = {
        "split": "validation",
        "images": len(validation),
        "likelihood": article.AIM.likelihood,
        "pixels": article.AIM.pixels,
        "components": components,
        "train": plain(params),
        "seconds": round(time.perf_counter() - began, 1),
    }
    write(results, sheets, real, protocol)
    say(results, real, protocol)


def write(results: "list[Result]", sheets: dict[str, Any], real: dict[str, float], protocol: dict[str, Any]) -> None:
    """The table, the sentences and the picture as files."""
    import pandas as pd
    from PIL import Image

    from pipeline.base.files import replacing, write_json
    from pipeline.show import plots as figures
    from pipeline.weight import article

    with replacing(ARTICLE / "results.csv") as part:
        pd.DataFrame([result.row() for result in results]).to_csv(part, index=False, float_format="%.6g")
    write_json(ARTICLE / "article.json", {"claims": article.claims(results), "real": real, "protocol": protocol})
    own = {_weight(weight): article.find(results, weight) for weight in article.CONTRAST}
    titles = {name: f"{name},  β = {_beta(result.member.kl_weight)}" for name, result in own.items()}
    notes = {titles[name]: _note(result) for name, result in own.items()}
    figure = figures.sampler_grids({titles[name]: sheets[name] for name in own}, notes)
    with replacing(ARTICLE / "grids.png") as part:
        figure.savefig(part, format="png")
        with Image.open(part) as image:
            small = image.convert("RGB").quantize(GREYS)
        small.save(part, format="PNG", optimize=True)


def say(results: "list[Result]", real: dict[str, float], protocol: dict[str, Any]) -> None:
    """Both tables, the sentences, and where to look."""
    from pipeline.base import console
    from pipeline.weight import article

    own = [result for result in results if result.member.is_articles]
    console.table(
        f"The article's model, {protocol['train']['epochs']} epochs, on {protocol['images']:,} validation images",
        ("weight", "β", "active", "kl", "elbo", "accuracy", "diversity"),
        [
            (
                _weight(result.member.weight),
                _beta(result.member.kl_weight),
                result.active_units,
                f"{result.kl:.2f}",
                f"{result.elbo:.1f}",
                *(f"{result.samples['prior'][name]:.3f}" for name in SHOWN),
            )
            for result in own
        ],
        note=f"samples from the prior; of real images: {', '.join(f'{name} {real[name]:.3f}' for name in SHOWN)}",
    )
    for weight in article.CONTRAST:
        rows = [result for result in results if result.member.weight == weight]
        console.table(
            f"Every shape at {_weight(weight)}",
            ("conditioning, encoder", "active", "digit in code", "accuracy", "diversity"),
            [
                (_shape(one), one.active_units, f"{one.digit_in_code:.3f}", *(_both(one, name) for name in SHOWN))
                for one in rows
            ],
            note="★ the article's own; the last two: prior sampler, then fitted",
        )
    for number, claim in enumerate(article.claims(results), 1):
        print(f"{number}. {claim}")
    print(f"\n{ARTICLE}/ written: results.csv, article.json, grids.png")


def _weight(weight: float) -> str:
    from pipeline.weight.article import named

    return f"w = {named(weight)}"


def _beta(kl_weight: float) -> str:
    return f"{kl_weight:,.0f}" if kl_weight >= 1000 else f"{kl_weight:.2f}"


def _shape(result: "Result") -> str:
    member = result.member
    own = " ★" if member.is_articles else ""
    return f"{member.conditioning}, {_encoder(sees=member.encoder_sees_label)}{own}"


def _both(result: "Result", metric: str) -> str:
    return " ".join(f"{result.samples[sampler][metric]:.3f}" for sampler in result.samples)


def _encoder(*, sees: bool) -> str:
    return "sees label" if sees else "blind"


def _note(result: "Result") -> str:
    prior = result.samples["prior"]
    return f"active {result.active_units}   accuracy {prior['class_accuracy']:.2f}   diversity {prior['diversity']:.2f}"
