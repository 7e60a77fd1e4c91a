"""`cvae reproduce`: the source article's experiment, with its figures in reports/article/ and what they say.

It trains 19 models for 3 epochs. docs/article.md says how long that takes.
"""

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.base.errors import UserError
from pipeline.base.paths import ARTICLE, JUDGE, PREPARED

if TYPE_CHECKING:
    from pipeline.weight.article import Member, Result

EPOCHS = 3
MOST_EPOCHS = 1000
COLUMNS = 10
GREYS = 32  # grey levels of the picture: digits look the same, and the file is a third as large
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

    from pipeline.base.device import pick_device
    from pipeline.base.params import load, load_key, plain
    from pipeline.measure.evaluator import QUICK_TRAIN, Evaluator
    from pipeline.model.density import Components
    from pipeline.stages.saved import load_judge, load_splits
    from pipeline.training.fit import TrainParams
    from pipeline.weight import article

    changes: dict[str, Any] = {"batch_size": article.BATCH_SIZE, "learning_rate": article.LEARNING_RATE}
    params = replace(load(TrainParams, "train"), epochs=epochs, ema=None, augment=0.0, **changes)
    components, device = load_key(Components, "sample", "components"), pick_device(params.device)
    train, validation = load_splits(PREPARED, "train", "validation", device=device)
    reader = load_judge(JUDGE, device).read
    evaluator = Evaluator(reader, validation, train[:QUICK_TRAIN], article.AIM.pixels, params.seed)
    real = evaluator.ceiling()

    began = time.perf_counter()
    results, sheets = _train_all(train, evaluator, params, components)
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
    show(results, real, protocol)


def _train_all(train: Any, evaluator: Any, params: Any, components: int) -> "tuple[list[Result], dict[str, Any]]":
    """The results of all members, and sheets of the article's own model's samples by weight."""
    from pipeline.base import console
    from pipeline.model.samples import rows_of_digits, sample, sheet
    from pipeline.weight import article

    results, sheets, device = [], {}, train.images.device
    stacks = article.stacks()
    with console.bar("reproduce", len(stacks) * params.epochs) as bar:
        for index, stack in enumerate(stacks):
            members = article.start(stack, params, device)
            for _ in article.fit(stack, members, train, evaluator.split, params):
                bar.show(index * params.epochs + members.epoch, f"{len(stack)} weights, {_shape(stack[0])}")
            for row, member in enumerate(stack):
                model = members.model(row)
                results.append(article.measure(member, model, evaluator, components))
                if member.is_articles and member.weight in article.CONTRAST:
                    images = sample(model, None, rows_of_digits(COLUMNS).to(device), "prior", params.seed)
                    sheets[_weight(member.weight)] = sheet(images, COLUMNS)
    return results, sheets


def write(results: "list[Result]", sheets: dict[str, Any], real: dict[str, float], protocol: dict[str, Any]) -> None:
    """Writes the table, the conclusions and the picture."""
    import pandas as pd
    from PIL import Image

    from pipeline.base.files import replacing, write_json
    from pipeline.cli.claims import claims
    from pipeline.show.model import sampler_grids
    from pipeline.weight import article

    with replacing(ARTICLE / "results.csv") as part:
        pd.DataFrame([result.row() for result in results]).to_csv(part, index=False, float_format="%.6g")
    write_json(ARTICLE / "article.json", {"claims": claims(results), "real": real, "protocol": protocol})
    own = {_weight(weight): article.find(results, weight) for weight in article.CONTRAST}
    titles = {name: f"{name},  β = {_beta(result.member.kl_weight)}" for name, result in own.items()}
    notes = {titles[name]: _note(result) for name, result in own.items()}
    figure = sampler_grids({titles[name]: sheets[name] for name in own}, notes)
    with replacing(ARTICLE / "grids.png") as part:
        figure.savefig(part, format="png")
        with Image.open(part) as image:
            small = image.convert("RGB").quantize(GREYS)
        small.save(part, format="PNG", optimize=True)


def show(results: "list[Result]", real: dict[str, float], protocol: dict[str, Any]) -> None:
    """Prints the table, the conclusions, and where the files are."""
    from pipeline.base import console
    from pipeline.cli.claims import claims

    rows = []
    for result in sorted(results, key=lambda result: -result.member.weight):
        member, found = result.member, result.figures
        both = (" ".join(f"{found[f'{sampler}/{name}']:.3f}" for sampler in ("prior", "fitted")) for name in SHOWN)
        shape = f"{_shape(member)}{' ★' if member.is_articles else ''}"
        fit = (found["active_units"], f"{found['kl']:.2f}", f"{found['elbo']:.1f}", f"{found['digit_in_latent']:.3f}")
        rows.append((_weight(member.weight), shape, *fit, *both))
    console.table(
        f"The article's model (★) and other shapes, {protocol['train']['epochs']} epochs, on {protocol['images']:,} "
        "validation images",
        ("weight", "conditioning, encoder", "active", "kl", "elbo", "digit in latent", *SHOWN),
        rows,
        note="the last two: prior sampler, then fitted; of real images: "
        + ", ".join(f"{name} {real[name]:.3f}" for name in SHOWN),
    )
    for number, claim in enumerate(claims(results), 1):
        print(f"{number}. {claim}")
    print(f"\n{ARTICLE}/ written: results.csv, article.json, grids.png")


def _weight(weight: float) -> str:
    from pipeline.cli.claims import named

    return f"w = {named(weight)}"


def _beta(kl_weight: float) -> str:
    return f"{kl_weight:,.0f}" if kl_weight >= 1000 else f"{kl_weight:.2f}"


def _shape(member: "Member") -> str:
    return f"{member.conditioning}, {'sees label' if member.encoder_sees_label else 'blind'}"


def _note(result: "Result") -> str:
    found = result.figures
    accuracy, diversity = found["prior/class_accuracy"], found["prior/diversity"]
    return f"active {found['active_units']}   accuracy {accuracy:.2f}   diversity {diversity:.2f}"
