"""Completions: a condition tells no more than is visible, the bound is below the exact likelihood, scores are right."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from latents import black_and_white, source
from settings import train_params
from torch import Tensor
from torch.distributions import Normal

from pipeline.completion import measure
from pipeline.completion import model as completion
from pipeline.completion.masks import draw_masks, named_masks
from pipeline.completion.model import AIM, Completer, build, log_likelihood
from pipeline.completion.views import condition, published_view, shares, training_view
from pipeline.data.splits import Split
from pipeline.measure import judge
from pipeline.measure.bound import importance_weighted
from pipeline.training.fit import fit, start
from pipeline.training.objective import terms

COUNT = 6
IMAGES = black_and_white(COUNT)
PARAMS = train_params(epochs=6, learning_rate=3e-3)


def shown(data: Split, number: int = 1, label: bool = False) -> tuple[Tensor, Tensor]:
    return published_view(data, "thresholded", number, label, seed=0)


def whole_bound(model: Completer, images: Tensor, given: Tensor, k: int, source: torch.Generator) -> Tensor:
    """The bound with all pixels decoded, in the plain form."""
    return importance_weighted(model, images, given, k, source, AIM.kl_weight).log_likelihood


def model(latent_size: int = 1) -> Completer:
    """A model whose hidden pixels depend strongly on z, whose prior depends on the condition, and whose q is bad."""
    random = build(latent_size, 16, 1)
    with torch.no_grad():
        random.pixels.weight *= 3
        if latent_size:
            random.prior_latents.weight *= 3
            random.decoder_latents.weight *= 3
            for weight in random.encoder.parameters():
                weight.mul_(1.5)
    return random.requires_grad_(requires_grad=False)


def exact(model: Completer, images: Tensor, given: Tensor) -> Tensor:
    """log ∫ p(hidden∣z,seen) p(z∣seen) dz by the trapezoid rule on a fine grid, (N,) nats, from plain formulas."""
    z = torch.linspace(-30, 30, 6001)
    context = model.context(given)
    mu, log_var = model.prior_parameters(context)
    logits = model.decode(z[:, None, None].expand(-1, len(images), 1), context)
    hidden = (given[:, :784] == 0).double()
    cost = F.binary_cross_entropy_with_logits(
        logits.double(), images.flatten(1).double().expand_as(logits), reduction="none"
    )
    log_p_z = Normal(mu.double(), (log_var.double() / 2).exp()).log_prob(z.double()[:, None, None]).squeeze(-1)
    return torch.logsumexp(log_p_z - (cost * hidden).sum(-1), 0) + math.log(60 / 6000)


def test_labels_and_drawn_pixels_have_their_shares_of_the_images() -> None:
    grey = Split(torch.full((2000, 1, 28, 28), 102, dtype=torch.uint8), torch.arange(2000) % 10)
    images, given = training_view(drawn=0.3, label_shown=0.3)(grey, source())
    labels = given[:, 784:794]
    known, drawn = labels.any(1), given[:, 794] == 1
    assert known.float().mean() == pytest.approx(0.3, abs=0.05)
    assert drawn.float().mean() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(labels[known], F.one_hot(grey.labels[known], 10).float())
    assert set(images.unique().tolist()) <= {0, 1}
    assert not images[~drawn].any()  # 102 / 255 = 0.4
    assert images[drawn].mean() == pytest.approx(0.4, abs=0.01)
    _, given = training_view(drawn=0.0, label_shown=0.0)(grey, source())
    assert not given[:, 784:].any()


def test_a_condition_tells_nothing_of_hidden_pixels() -> None:
    images, flags = torch.rand(2, 1, 28, 28, generator=source()).round(), torch.zeros(2, dtype=torch.bool)
    visible = draw_masks(2, source())
    other = torch.where(visible.view(-1, 1, 28, 28), images, 1 - images)
    labels = torch.tensor([3, 4])
    first, second = (condition(x, visible, labels, flags, flags) for x in (images, other))
    assert torch.equal(first, second)
    assert torch.equal(first[:, :784][visible], 2 * images.flatten(1)[visible] - 1)
    assert torch.equal(condition(images, visible, labels.flip(0), flags, flags), first)


@pytest.mark.slow
def test_the_bound_tightens_with_more_draws_to_the_exact_conditional_log_likelihood() -> None:
    images, given = shown(IMAGES, number=2)
    truth, many = exact(model(), images, given), torch.arange(COUNT).repeat(100)
    bounds = [float(whole_bound(model(), images[many], given[many], k, source()).mean()) for k in (1, 5, 50)]
    assert bounds[0] + 0.1 < bounds[1]
    assert bounds[1] + 0.05 < bounds[2] <= float(truth.mean()) + 0.05
    assert (whole_bound(model(), images, given, 4000, source()) - truth).abs().max() < 0.5


def test_the_networks_likelihood_is_exact_for_any_k() -> None:
    images, given = shown(IMAGES)
    network = model(0)
    with torch.no_grad():
        both = terms(network, images, given, torch.empty(COUNT, 0))
    assert not both.kl.any()
    for k in (1, 7):
        assert torch.allclose(whole_bound(network, images, given, k, source()), -both.reconstruction, rtol=1e-5)
    nll = measure.negative_log_likelihood(network, IMAGES, "thresholded", 1, label=False, draws=9, seed=0)
    assert nll.mean == pytest.approx(float(both.reconstruction.mean()), rel=1e-5)
    assert nll.error == pytest.approx(float(both.reconstruction.std()) / math.sqrt(COUNT), rel=1e-5)


@pytest.mark.parametrize("latent_size", [0, 3])
def test_hidden_pixels_alone_give_the_bound_of_all_pixels(latent_size: int) -> None:
    """The fast form against the plain one, with the same noise, over more than one chunk of images."""
    images, given = shown(black_and_white(60), number=2)
    plain = whole_bound(model(latent_size), images, given, 100, source())
    fast = log_likelihood(model(latent_size), images, given, 100, source()).log_likelihood
    assert torch.allclose(fast, plain, rtol=1e-5, atol=1e-3)


def test_fewer_images_keep_the_share_of_each_class() -> None:
    data = Split(torch.arange(1000).view(-1, 1, 1, 1), torch.arange(1000).square() % 10)  # classes of 100 and of 200
    some = shares(data, 200)
    assert torch.equal(some.labels.bincount(), data.labels.bincount() // 5)
    assert len(some.images.unique()) == 200
    assert torch.equal(some.labels, some.images.flatten().square() % 10)
    assert shares(data, None) is shares(data, 2000) is data


def test_the_prior_depends_on_the_condition_and_q_is_a_change_of_it() -> None:
    ours, (images, given) = model(3), shown(IMAGES)
    context = ours.context(given)
    p = ours.prior_parameters(context)
    assert torch.pdist(p.mu).min() > 0
    for weight in ours.encoder[-1].parameters():
        weight.zero_()
    for mine, its in zip(ours.encode(images, context), p, strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("latent_size", [0, 2])
def test_fit_trains_it(latent_size: int) -> None:
    data, model = black_and_white(120), build(latent_size, 16, 0)
    data.images[:, :, :14] = 255  # something to learn
    early, *_, last = fit(start(model, PARAMS, torch.device("cpu")), data, data, PARAMS, AIM, training_view(0.25, 0.5))
    assert last.figures["train/loss"] < 0.95 * early.figures["train/loss"]
    assert last.figures["validation/elbo"] > early.figures["validation/elbo"]
    assert (last.figures["train/kl"] > 0) == bool(latent_size)


def test_completions_keep_what_is_visible_come_in_order_and_depend_on_digit_and_seed() -> None:
    image = torch.rand(28, 28, generator=source()).round()

    def complete(digit: int | None = None, seed: int = 0) -> completion.Completions:
        return completion.complete(model(3), image, named_masks()["top"], digit, 20, seed)

    found = complete()
    assert found.images.shape == (20, 28, 28)
    assert torch.equal(found.images[:, 14:], image[14:].expand(20, -1, -1))
    assert found.log_likelihood.tolist() == sorted(found.log_likelihood.tolist(), reverse=True)
    assert torch.pdist(found.images.flatten(1)).min() > 0
    assert torch.equal(found.images, complete().images)
    assert not torch.equal(found.images, complete(seed=1).images)
    assert not torch.equal(complete(digit=3).images, complete(digit=0).images)


def reader(answer: Callable[[Tensor], Tensor]) -> judge.Reader:
    return lambda images: judge.Reading(torch.empty(0), answer(images))


def test_the_best_of_ten_beats_one_and_the_network_has_one_answer() -> None:
    errors = measure.squared_errors(model(3), model(0), black_and_white(20), 1, seed=0)
    assert errors.keys() == {"network", "cvae", "best_of_10"}
    assert 0 < errors["best_of_10"] < errors["cvae"] <= 588
    alike = completion.sample(model(0), shown(IMAGES)[1], 3, source())
    assert torch.equal(alike[0], alike[1])
    images, given = shown(black_and_white(20))
    alone = (completion.sample(model(0), given, 1, source())[0] - images.flatten(1)).square().sum(1).mean()
    assert errors["network"] == pytest.approx(float(alone), rel=1e-5)


def test_diversity_counts_digits_and_is_nothing_where_all_agree() -> None:
    one = reader(lambda images: torch.full((len(images),), 7))
    each = reader(lambda images: torch.arange(10).repeat_interleave(len(images) // 10))
    agreeing = measure.diversity(model(0), one, black_and_white(20), 1, seed=0)
    assert agreeing["distance"] == pytest.approx(0, abs=1e-6)
    assert agreeing["digits"] == 1
    assert measure.diversity(model(0), each, black_and_white(20), 1, seed=0)["digits"] == 10
    assert measure.diversity(model(3), one, black_and_white(20), 1, seed=0)["distance"] > 0.001


def test_every_condition_is_measured_and_fewer_hidden_pixels_cost_less() -> None:
    one, told = reader(lambda images: torch.zeros(len(images), dtype=torch.int64)), list[str]()
    params = measure.EvaluateCompletionParams(images=10, draws=7, seed=0)
    found = measure.evaluate(model(2), model(0), one, black_and_white(12), params, lambda name, _: told.append(name))
    assert len(set(told)) == len(told) == 2 * 3 * 3
    assert all(0 < found[f"standard_error/{name}"] < found[name] for name in told)
    effective = {name: value for name, value in found.items() if name.startswith("effective_samples/")}
    assert effective.keys() == {f"effective_samples/{name}" for name in told if not name.endswith("/network")}
    assert all(1 <= value <= 7 for value in effective.values())
    for pixels in ("thresholded", "drawn"):
        falling = [found[f"{pixels}/{number}/network"] for number in (1, 2, 3)]
        assert falling == sorted(falling, reverse=True)


def test_examples_show_the_first_image_of_each_digit() -> None:
    data = black_and_white(20)
    rows = measure.examples(model(2), model(0), data, 2, several=3, seed=0).view(10, 6, 28, 28)
    assert torch.equal(rows[:, 5], (data.images[:10, 0] > 0).float())
    assert torch.equal(rows[:, :, :, :14], rows[:, 5:, :, :14].expand(-1, 6, -1, -1))
    assert (rows[:, 0, :, 14:] == 0.2).all()
