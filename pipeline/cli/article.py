"""The article's experiment, from training to the table, the picture, and sentences that follow from the figures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.files import replacing, write_json
from pipeline.base.params import load, load_key, plain
from pipeline.base.paths import ARTICLE, JUDGE, PREPARED
from pipeline.data.splits import Split
from pipeline.measure.evaluator import QUICK_TRAIN, Evaluator
from pipeline.model.density import Components
from pipeline.model.samples import rows_of_digits, sample, sheet
from pipeline.show.model import sampler_grids
from pipeline.stages.saved import load_judge, load_splits
from pipeline.training.fit import TrainParams
from pipeline.weight import article
from pipeline.weight.article import AIM, BATCH_SIZE, CONTRAST, LEARNING_RATE, TUNED, Member, Result, find

COLUMNS = 10
GREYS = 32  # grey levels of the picture: digits look the same, and the file is a third as large
SHOWN = ("class_accuracy", "diversity")
MATTERS = 0.1  # difference of two class_accuracies that counts: one sample in ten


def run(epochs: int) -> None:
    """Trains and measures all members, writes the table, the picture and the conclusions, and prints what they say."""
    changes: dict[str, Any] = {"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE}
    params = replace(load(TrainParams, "train"), epochs=epochs, ema=None, augment=0.0, **changes)
    components, device = load_key(Components, "sample", "components"), pick_device(params.device)
    train, validation = load_splits(PREPARED, "train", "validation", device=device)
    evaluator = Evaluator(load_judge(JUDGE, device).read, validation, train[:QUICK_TRAIN], AIM.pixels, params.seed)
    real = evaluator.ceiling()
    began = time.perf_counter()
    results, sheets = train_all(train, evaluator, params, components)
    protocol = {
        "split": "validation",
        "images": len(validation),
        "likelihood": AIM.likelihood,
        "pixels": AIM.pixels,
        "components": components,
        "train": plain(params),
        "seconds": round(time.perf_counter() - began, 1),
    }
    sentences = claims(results)
    write_json(ARTICLE / "article.json", {"claims": sentences, "real": real, "protocol": protocol})
    with replacing(ARTICLE / "results.csv") as part:
        pd.DataFrame([result.row() for result in results]).to_csv(part, index=False, float_format="%.6g")
    with replacing(ARTICLE / "grids.png") as part:
        save_grids(results, sheets, part)
    title = f"The article's model (★) and other shapes, {epochs} epochs, on {len(validation):,} validation images"
    show_table(title, results, real)
    for number, claim in enumerate(sentences, 1):
        print(f"{number}. {claim}")
    print(f"\n{ARTICLE}/ written: results.csv, article.json, grids.png")


def train_all(
    train: Split, evaluator: Evaluator, params: TrainParams, components: int
) -> tuple[list[Result], dict[float, np.ndarray]]:
    """The results of all members, and a sheet of samples of the article's own model at each weight of CONTRAST."""
    results, sheets, device = [], {}, train.images.device
    stacks = article.stacks()
    with console.bar("reproduce", len(stacks) * params.epochs) as progress:
        for index, stack in enumerate(stacks):
            members = article.start(stack, params, device)
            for _ in article.fit(stack, members, train, evaluator.split, params):
                progress(index * params.epochs + members.epoch, f"{len(stack)} weights, {_shape(stack[0])}")
            for row, member in enumerate(stack):
                model = members.model(row)
                results.append(article.measure(member, model, evaluator, components))
                if member.is_articles and member.weight in CONTRAST:
                    images = sample(model, None, rows_of_digits(COLUMNS).to(device), "prior", params.seed)
                    sheets[member.weight] = sheet(images, COLUMNS)
    return results, sheets


def save_grids(results: Sequence[Result], sheets: Mapping[float, np.ndarray], path: Any) -> None:
    """The samples of the article's own model at the weights of CONTRAST, side by side."""
    titled, notes = {}, {}
    for weight in CONTRAST:
        found = find(results, member := Member(weight)).figures
        title = f"w = {_w(weight)},  β = {console.number(round(member.kl_weight, 2))}"
        titled[title] = sheets[weight]
        shares = "   ".join(f"{name} {found[f'prior/{name}']:.2f}" for name in SHOWN)
        notes[title] = f"active {found['active_units']}   {shares}"
    sampler_grids(titled, notes).savefig(path, format="png")
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(GREYS)
    small.save(path, format="PNG", optimize=True)


def show_table(title: str, results: Sequence[Result], real: Mapping[str, float]) -> None:
    """Prints a row per member, the highest weight first."""
    rows = []
    for member, found in sorted(((one.member, one.figures) for one in results), key=lambda pair: -pair[0].weight):
        both = (" ".join(f"{found[f'{sampler}/{name}']:.3f}" for sampler in ("prior", "fitted")) for name in SHOWN)
        fit = (found["active_units"], f"{found['kl']:.2f}", f"{found['elbo']:.1f}", f"{found['digit_in_latent']:.3f}")
        rows.append((f"w = {_w(member.weight)}", _shape(member) + " ★" * member.is_articles, *fit, *both))
    console.table(
        title,
        ("weight", "conditioning, encoder", "active", "kl", "elbo", "digit in latent", *SHOWN),
        rows,
        note="the last two: prior sampler, then fitted; of real images: "
        + ", ".join(f"{name} {real[name]:.3f}" for name in SHOWN),
    )


def claims(results: Sequence[Result]) -> list[str]:
    """On units, on the evidence lower bound, on the price of diversity, and on the encoder's label."""
    members = (Member(1.0), Member(TUNED), Member(TUNED, encoder_sees_label=True))
    one, tuned, seeing = (find(results, member) for member in members)
    size, w = one.member.architecture.latent_size, _w(TUNED)
    ratio = one.member.kl_weight / tuned.member.kl_weight

    def pair(name: str, form: str) -> str:
        return f"{one.figures[name]:{form}} and {tuned.figures[name]:{form}}"

    collapses = one.figures["active_units"] == 0 < tuned.figures["active_units"]
    best, runner_up = sorted((each for each in results if each.member.is_articles), key=_elbo, reverse=True)[:2]
    gains = one.figures["prior/diversity"] < tuned.figures["prior/diversity"]
    costs = gains and _accuracy(one) > _accuracy(tuned)
    helps = _accuracy(seeing) - _accuracy(tuned) >= MATTERS
    top = max((each for each in results if each.member.weight == TUNED), key=_accuracy)
    return [
        f"The article's w = 1 is β = {one.member.kl_weight:,.0f}, and its w = {w} is β = {tuned.member.kl_weight:.2f}, "
        f"{ratio:,.0f} times less. {pair('active_units', '.0f')} of {size} units are active, and kl is "
        f"{pair('kl', '.3g')} nats. So "
        + ("the collapse is a matter of units." if collapses else "the weight alone does not decide the collapse."),
        f"w = {w} at batch size {BATCH_SIZE} is the evidence lower bound to within "
        f"{abs(tuned.member.kl_weight - 1):.2%} of its KL. Of all weights, w = {_w(best.member.weight)} reaches "
        f"the highest elbo: {_elbo(best):.1f} nats, against {_elbo(runner_up):.1f} at the next best, "
        f"w = {_w(runner_up.member.weight)}.",
        f"At w = 1 and {w}, the diversity of samples from the prior is {pair('prior/diversity', '.2f')}, and their "
        f"class_accuracy is {pair('prior/class_accuracy', '.2f')}: diversity {'costs' if costs else 'does not cost'} "
        f"accuracy. At w = {w}, a linear discriminant reads {tuned.figures['digit_in_latent']:.0%} of the digits from "
        "the latent, and the prior does not know which digit was asked for.",
        f"If the article's encoder sees the label, {seeing.figures['digit_in_latent']:.0%} of the digits can be read "
        f"from the latent, and class_accuracy is {_accuracy(seeing):.2f}: "
        f"{'samples are better' if helps else 'this alone changes little'}. Of all shapes at w = {w}, the highest "
        f"class_accuracy is {_accuracy(top):.2f}, with {top.member.conditioning} and an encoder that "
        f"{'sees the label' if top.member.encoder_sees_label else 'does not see it'}.",
    ]


def _w(weight: float) -> str:
    """A weight as people write it: 1e-5, not 1e-05."""
    return f"{weight:g}".replace("e-0", "e-")


def _shape(member: Member) -> str:
    return f"{member.conditioning}, {'sees label' if member.encoder_sees_label else 'blind'}"


def _elbo(result: Result) -> float:
    return result.figures["elbo"]


def _accuracy(result: Result) -> float:
    return result.figures["prior/class_accuracy"]
