"""The article's experiment, from training to the table, the picture, and sentences that follow from the figures."""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.base import console
from pipeline.base.device import pick_device
from pipeline.base.files import write_json, write_table
from pipeline.base.params import load, load_key, plain
from pipeline.base.paths import ARTICLE, JUDGE, PREPARED
from pipeline.data.splits import Split
from pipeline.measure.evaluator import QUICK_TRAIN, Evaluator
from pipeline.model.density import Components
from pipeline.model.samples import rows_of_digits, sample, sheet
from pipeline.show.model import sampler_grids
from pipeline.show.style import save
from pipeline.stages.saved import load_judges, load_splits
from pipeline.training.fit import TrainParams
from pipeline.weight import article
from pipeline.weight.article import AIM, BATCH_SIZE, CONTRAST, LEARNING_RATE, TUNED, Member

COLUMNS = 10
SHOWN = ("class_accuracy", "diversity")
Results = Mapping[Member, Mapping[str, float]]  # the figures of each member
MATTERS = 0.1  # difference of two class_accuracies that counts: one sample in ten


def run(epochs: int) -> None:
    """Trains and measures all members, writes the table, the picture and the conclusions, and prints what they say."""
    changes: dict[str, Any] = {"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE}
    params = replace(load(TrainParams, "train"), epochs=epochs, ema=None, augment=0.0, **changes)
    components, device = load_key(Components, "sample", "components"), pick_device(params.device)
    train, validation = load_splits(PREPARED, "train", "validation", device=device)
    evaluator = Evaluator(load_judges(JUDGE, device), validation, train[:QUICK_TRAIN], AIM.pixels, params.seed)
    real = evaluator.ceiling.figures
    began = time.perf_counter()
    results, sheets = train_all(train, evaluator, params, components)
    protocol = {
        "split": "validation", "images": len(validation), "likelihood": AIM.likelihood, "pixels": AIM.pixels,
        "components": components, "train": plain(params), "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    sentences = claims(results)
    write_json(ARTICLE / "article.json", {"claims": sentences, "real": real, "protocol": protocol})
    table = pd.DataFrame([asdict(member) | {"kl_weight": member.kl_weight} | results[member] for member in results])
    write_table(ARTICLE / "results.csv", table.rename(columns={"weight": "article_weight"}), float_format="%.6g")
    save_grids(results, sheets, ARTICLE / "grids.png")
    title = f"The article's model (★) and other shapes, {epochs} epochs, on {len(validation):,} validation images"
    show_table(title, results, real)
    for number, claim in enumerate(sentences, 1):
        print(f"{number}. {claim}")
    print(f"\n{ARTICLE}/ written: results.csv, article.json, grids.png")


def train_all(
    train: Split, evaluator: Evaluator, params: TrainParams, components: int
) -> tuple[dict[Member, dict[str, float]], dict[Member, np.ndarray]]:
    """The results of all members, and a sheet of samples of the article's own model at each weight of CONTRAST."""
    results, sheets, device = {}, {}, train.images.device
    stacks = article.stacks()
    with console.bar("reproduce", len(stacks) * params.epochs) as progress:
        for index, stack in enumerate(stacks):
            members = article.start(stack, params, device)
            for _ in article.fit(stack, members, train, evaluator.split, params):
                progress(index * params.epochs + members.epoch, f"{len(stack)} weights, {_shape(stack[0])}")
            for row, member in enumerate(stack):
                model = members.model(row)
                results[member] = article.measure(model, evaluator, components)
                if member.is_articles and member.weight in CONTRAST:
                    images = sample(model, None, rows_of_digits(COLUMNS).to(device), "prior", params.seed)
                    sheets[member] = sheet(images, COLUMNS)
    return results, sheets


def save_grids(results: Results, sheets: Mapping[Member, np.ndarray], path: Path) -> None:
    """The samples of the article's own model at the weights of CONTRAST, side by side."""
    titled, notes = {}, {}
    for member, samples in sheets.items():
        title = f"w = {_w(member)},  β = {console.number(round(member.kl_weight, 2))}"
        titled[title] = samples
        shares = "   ".join(f"{name} {results[member][f'prior/{name}']:.2f}" for name in SHOWN)
        notes[title] = f"active {results[member]['active_units']}   {shares}"
    save(sampler_grids(titled, notes), path)


def show_table(title: str, results: Results, real: Mapping[str, float]) -> None:
    """Prints a row per member, the highest weight first."""
    rows = []
    for member, found in sorted(results.items(), key=lambda pair: -pair[0].weight):
        both = (" ".join(f"{found[f'{sampler}/{name}']:.3f}" for sampler in ("prior", "fitted")) for name in SHOWN)
        fit = (found["active_units"], f"{found['kl']:.2f}", f"{found['elbo']:.1f}", f"{found['digit_in_latent']:.3f}")
        rows.append((f"w = {_w(member)}", _shape(member) + " ★" * member.is_articles, *fit, *both))
    columns = ("weight", "conditioning, encoder", "active", "kl", "elbo", "digit in latent", *SHOWN)
    of_real = ", ".join(f"{name} {real[name]:.3f}" for name in SHOWN)
    console.table(title, columns, rows, f"the last two: prior sampler, then fitted; of real images: {of_real}")


def claims(results: Results) -> list[str]:
    """On units, on the evidence lower bound, on the price of diversity, and on the encoder's label."""
    one, tuned, seeing = Member(1.0), Member(TUNED), Member(TUNED, encoder_sees_label=True)
    size, w, ratio = one.architecture.latent_size, _w(tuned), one.kl_weight / tuned.kl_weight

    def of(name: str, *members: Member, form: str = ".2f") -> str:
        return " and ".join(f"{results[member][name]:{form}}" for member in members)

    def gain(name: str, first: Member, last: Member) -> float:
        return results[last][name] - results[first][name]

    units = results[one]["active_units"] == 0 < results[tuned]["active_units"]
    costs = gain("prior/diversity", one, tuned) > 0 > gain("prior/class_accuracy", one, tuned)
    helps = gain("prior/class_accuracy", tuned, seeing) >= MATTERS
    best, second = sorted((each for each in results if each.is_articles), key=lambda each: -results[each]["elbo"])[:2]
    at_tuned = [each for each in results if each.weight == TUNED]
    top = max(at_tuned, key=lambda each: results[each]["prior/class_accuracy"])
    return [
        f"The article's w = 1 is β = {one.kl_weight:,.0f}, and its w = {w} is β = {tuned.kl_weight:.2f}, {ratio:,.0f} "
        f"times less. {of('active_units', one, tuned, form='.0f')} of {size} units are active, and kl is "
        f"{of('kl', one, tuned, form='.3g')} nats. So "
        + ("the collapse is a matter of units." if units else "the weight alone does not decide the collapse."),
        f"w = {w} at batch size {BATCH_SIZE} is the evidence lower bound to within {abs(tuned.kl_weight - 1):.2%} of "
        f"its KL. Of all weights, w = {_w(best)} reaches the highest elbo: {of('elbo', best, form='.1f')} nats, "
        f"against {of('elbo', second, form='.1f')} at the next best, w = {_w(second)}.",
        f"At w = 1 and {w}, the diversity of samples from the prior is {of('prior/diversity', one, tuned)}, and their "
        f"class_accuracy is {of('prior/class_accuracy', one, tuned)}: diversity "
        f"{'costs' if costs else 'does not cost'} accuracy. At w = {w}, a linear discriminant reads "
        f"{of('digit_in_latent', tuned, form='.0%')} of the digits from the latent, and the prior does not know which "
        "digit was asked for.",
        f"If the article's encoder sees the label, {of('digit_in_latent', seeing, form='.0%')} of the digits can be "
        f"read from the latent, and class_accuracy is {of('prior/class_accuracy', seeing)}: "
        f"{'samples are better' if helps else 'this alone changes little'}. Of all shapes at w = {w}, the highest "
        f"class_accuracy is {of('prior/class_accuracy', top)}, with {top.conditioning} and an encoder that "
        f"{'sees the label' if top.encoder_sees_label else 'does not see it'}.",
    ]


def _w(member: Member) -> str:
    """A weight as people write it: 1e-5, not 1e-05."""
    return f"{member.weight:g}".replace("e-0", "e-")


def _shape(member: Member) -> str:
    return f"{member.conditioning}, {'sees label' if member.encoder_sees_label else 'blind'}"
