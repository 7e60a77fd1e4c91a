"""Completions: masks, a condition that tells no more than is seen, a bound held to the exact likelihood."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from settings import train_params
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from pipeline.completion import model as completion
from pipeline.completion.model import AIM, Completer, build, condition, draw_masks, masked
from pipeline.data.splits import Split
from pipeline.measure import judge
from pipeline.measure.bound import importance_weighted
from pipeline.stages.saved import resume_training, save_training
from pipeline.training.fit import fit, start
from pipeline.training.objective import terms

COUNT = 6
PARAMS = train_params(epochs=6, learning_rate=3e-3)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def split(count: int = COUNT, seed: int = 0) -> Split:
    """Images of black and white alone: drawn and thresholded pixels are the same."""
    images = 255 * torch.randint(0, 2, (count, 1, 28, 28), generator=source(seed)).byte()
    return Split(images, torch.arange(count) % 10)


def shown(data: Split, number: int = 1, label: bool = False) -> tuple[Tensor, Tensor]:
    return completion.published_view(data, "thresholded", number, label, seed=0)


def model(latent_size: int = 1) -> Completer:
    """The hidden pixels depend on z by several nats, the prior on what is seen, and q is far from the best."""
    random = build(latent_size, 16, 1)
    with torch.no_grad():
        random.pixels.weight *= 3
        if latent_size:
            random.prior_code.weight *= 3
            random.decoder_code.weight *= 3
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


# Masks


def test_masks_show_something_and_hide_something() -> None:
    masks = draw_masks(2000, source())
    assert masks.shape == (2000, 784)
    assert masks.dtype == torch.bool
    share = masks.float().mean(1)
    assert ((share > 0) & (share < 1)).float().mean() > 0.99
    each = masks.float().mean(0)
    assert 0.4 < each.min() <= each.max() < 0.6


def test_the_same_generator_draws_the_same_masks() -> None:
    assert torch.equal(draw_masks(50, source(1)), draw_masks(50, source(1)))
    assert not torch.equal(draw_masks(50, source(1)), draw_masks(50, source(2)))


def test_every_published_mask_and_every_half_is_trained_on() -> None:
    drawn = {mask.numpy().tobytes() for mask in draw_masks(2000, source())}
    wanted = [completion.quadrants_shown(number) for number in (1, 2, 3)]
    wanted += [mask.flatten() for mask in completion.named_masks().values()]
    assert all(mask.numpy().tobytes() in drawn for mask in wanted)


def test_quadrants_are_one_two_or_three_whole_ones() -> None:
    masks = completion._quadrants(3000, source()).view(-1, 2, 14, 2, 14)
    assert (masks == masks[:, :, :1, :, :1]).all()
    number = masks[:, :, 0, :, 0].flatten(1).sum(1)
    assert set(number.tolist()) == {1, 2, 3}
    assert torch.bincount(number)[1:].float().div(3000).allclose(torch.full((3,), 1 / 3), atol=0.04)


def test_a_block_is_a_rectangle_hidden_or_alone_visible() -> None:
    for mask in [*completion._blocks(200, source()), *map(completion.random_block, range(20))]:
        inside = mask if not mask[[0, 0, -1, -1], [0, -1, 0, -1]].any() else ~mask
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns)
        assert 5 <= min(rows.sum(), columns.sum()) <= max(rows.sum(), columns.sum()) <= 24


def test_cells_are_squares_of_one_side_an_image() -> None:
    for mask in completion._cells(60, source()):
        sides = [side for side in (7, 4, 2, 1) if (mask[::side, ::side].repeat_interleave(side, 0)
                 .repeat_interleave(side, 1) == mask).all()]  # fmt: skip
        assert sides


def test_the_published_masks_are_nested_and_start_at_the_bottom_left() -> None:
    one, two, three = (completion.quadrants_shown(number).view(28, 28) for number in (1, 2, 3))
    assert [int(mask.sum()) for mask in (one, two, three)] == [196, 392, 588]
    assert (one <= two).all()
    assert (two <= three).all()
    assert one[27, 0]
    assert two[:, :14].all()
    assert not three[14:, 14:].any()


def test_a_mask_is_named_by_what_it_hides() -> None:
    masks = completion.named_masks()
    assert not masks["top"][:14].any()
    assert masks["top"][14:].all()
    assert torch.equal(masks["left"], ~masks["right"])
    assert torch.equal(masks["top-left"], ~masks["all-but-top-left"])
    assert torch.equal(masks["all-but-bottom-left"].flatten(), completion.quadrants_shown(1))
    assert len({mask.numpy().tobytes() for mask in masks.values()}) == len(masks) == 12


# Conditions


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_labels_are_told_to_that_share_of_images_and_are_right(share: float) -> None:
    data = split(2000)
    _, given = masked(drawn=0.5, label_shown=share)(data, source())
    told = given[:, 784:794]
    known = told.any(1)
    assert known.float().mean() == pytest.approx(share, abs=0.05)
    assert torch.equal(told[known].argmax(1), data.labels[known])
    assert torch.equal(told[known].sum(1), torch.ones(int(known.sum())))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_pixels_are_drawn_in_that_share_of_images_and_the_model_is_told(share: float) -> None:
    grey = Split(torch.full((2000, 1, 28, 28), 102, dtype=torch.uint8), torch.zeros(2000, dtype=torch.int64))
    images, given = masked(drawn=share, label_shown=0.5)(grey, source())
    drawn = given[:, 794] == 1
    assert drawn.float().mean() == pytest.approx(share, abs=0.05)
    assert set(images.unique().tolist()) <= {0, 1}
    assert not images[~drawn].any()  # 102 / 255 = 0.4
    if share:
        assert images[drawn].mean() == pytest.approx(0.4, abs=0.01)


def test_a_condition_tells_nothing_of_hidden_pixels() -> None:
    images, flags = torch.rand(2, 1, 28, 28, generator=source()).round(), torch.zeros(2, dtype=torch.bool)
    visible = draw_masks(2, source())
    other = torch.where(visible.view(-1, 1, 28, 28), images, 1 - images)
    labels = torch.tensor([3, 4])
    first, second = (condition(x, visible, labels, flags, flags) for x in (images, other))
    assert torch.equal(first, second)
    assert torch.equal(first[:, :784][visible], 2 * images.flatten(1)[visible] - 1)
    assert torch.equal(condition(images, visible, labels.flip(0), flags, flags), first)


def test_a_label_that_is_told_is_heard_and_one_that_is_not_told_is_not() -> None:
    data = split()
    flipped = dataclasses.replace(data, labels=data.labels.flip(0))
    for label in (False, True):
        one, other = (shown(part, label=label)[1] for part in (data, flipped))
        outputs = [model().decode(torch.zeros(COUNT, 1), model().context(given)) for given in (one, other)]
        assert torch.equal(*outputs) != label


# The bound


@pytest.mark.parametrize("latent_size", [0, 3])
def test_visible_pixels_cost_nothing_and_stay_as_they_are(latent_size: int) -> None:
    images, given = shown(split(), number=2)
    small = model(latent_size)
    context = small.context(given)
    logits = small.decode(torch.zeros(4, COUNT, latent_size), context)
    hidden = given[:, :784] == 0
    cost = F.binary_cross_entropy_with_logits(logits, images.flatten(1).expand_as(logits), reduction="none")
    expected = -(cost * hidden).sum(-1)
    assert torch.allclose(small.likelihood.log_prob(logits, images.flatten(1)), expected, rtol=1e-5)
    seen = small.likelihood.mean(logits)[:, ~hidden]
    assert torch.equal(seen, images.flatten(1)[~hidden].expand(4, -1))


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.slow
def test_the_bound_with_many_draws_is_the_exact_conditional_log_likelihood(number: int) -> None:
    images, given = shown(split(), number)
    estimate = importance_weighted(model(), images, given, 4000, source())
    assert (estimate - exact(model(), images, given)).abs().max() < 0.2


@pytest.mark.slow
def test_the_bound_tightens_with_more_draws_and_stays_below_the_truth() -> None:
    images, given = shown(split())
    truth = float(exact(model(), images, given).mean())
    many = torch.arange(COUNT).repeat(200)
    bounds = [float(importance_weighted(model(), images[many], given[many], k, source()).mean()) for k in (1, 5, 50)]
    assert bounds[0] + 0.1 < bounds[1]
    assert bounds[1] + 0.05 < bounds[2] <= truth + 0.05


def test_one_draw_is_the_evidence_lower_bound_that_is_trained() -> None:
    images, given = shown(split())
    many = torch.arange(COUNT).repeat(500)
    one = importance_weighted(model(3), images[many], given[many], 1, source()).mean()
    with torch.no_grad():
        noise = torch.randn(len(many), 3, generator=source(1))
        both = terms(model(3), images[many], given[many], noise)
    assert float(one) == pytest.approx(-float((both.reconstruction + both.kl).mean()), rel=0.01)


def test_the_network_s_likelihood_is_exact_and_needs_one_draw() -> None:
    images, given = shown(split())
    network = model(0)
    with torch.no_grad():
        both = terms(network, images, given, torch.empty(COUNT, 0))
    assert not both.kl.any()
    for k in (1, 7):
        assert torch.allclose(importance_weighted(network, images, given, k, source()), -both.reconstruction, rtol=1e-5)
    nll = completion.negative_log_likelihood(network, split(), "thresholded", 1, label=False, draws=9, seed=0)
    assert nll.mean == pytest.approx(float(both.reconstruction.mean()), rel=1e-5)
    assert nll.error == pytest.approx(float(both.reconstruction.std()) / math.sqrt(COUNT), rel=1e-5)


@pytest.mark.parametrize("latent_size", [0, 3])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_hidden_pixels_alone_give_the_bound_of_all_pixels(latent_size: int, number: int) -> None:
    """The fast way held to the plain one: the same draws, image by image, over more than one chunk of images."""
    images, given = shown(split(60), number)
    plain = importance_weighted(model(latent_size), images, given, 100, source())
    fast = completion.log_likelihood(model(latent_size), images, given, 100, source())
    assert torch.allclose(fast, plain, rtol=1e-5, atol=1e-3)


def test_fewer_images_are_the_same_ones_and_keep_every_class_s_share() -> None:
    data = Split(torch.arange(1000).view(-1, 1, 1, 1), torch.arange(1000).square() % 10)  # classes of 100 and of 200
    some = completion.shares(data, 200)
    assert len(some) == 200
    assert torch.equal(some.labels.bincount(), data.labels.bincount() // 5)
    assert len(some.images.unique()) == 200
    assert torch.equal(some.labels, some.images.flatten().square() % 10)
    assert torch.equal(some.images, completion.shares(data, 200).images)
    for number in (None, 1000, 2000):
        assert completion.shares(data, number) is data


def test_the_prior_is_a_gaussian_of_what_is_seen() -> None:
    """Its density, divergence, mean and draws are those of its parameters, a row for each condition."""
    ours, (images, given) = model(2), shown(split())
    context, prior = ours.context(given), ours.prior()
    mu, log_var = ours.prior_parameters(context)
    before = Independent(Normal(mu, (log_var / 2).exp()), 1)
    q_mu, q_log_var = ours.encode(images, context)
    q = Independent(Normal(q_mu, (q_log_var / 2).exp()), 1)
    z = q.sample()
    assert torch.pdist(mu).min() > 0
    assert torch.allclose(prior.log_prob(z, context), before.log_prob(z), rtol=1e-4)
    assert torch.allclose(
        prior.kl(ours.encode(images, context), z, context).sum(-1), kl_divergence(q, before), rtol=1e-4
    )
    assert torch.equal(prior.mean(context), mu)
    generator = source()
    draws = torch.stack([prior.sample(context, generator) for _ in range(4000)])
    assert torch.allclose((draws.mean(0) - mu) / before.stddev, torch.zeros(()), atol=0.1)
    assert torch.allclose(draws.std(0) / before.stddev, torch.ones(()), atol=0.1)


def test_the_posterior_begins_at_the_prior_s_scale() -> None:
    """q is told as what x changes in p(z∣seen): with a silent encoder it is the prior, and the KL is 0."""
    silent = model(3)
    with torch.no_grad():
        for weight in silent.encoder[-1].parameters():
            weight.zero_()
    images, given = shown(split())
    context = silent.context(given)
    for q, p in zip(silent.encode(images, context), silent.prior_parameters(context), strict=True):
        assert torch.equal(q, p)


# Training, files


@pytest.mark.parametrize("latent_size", [0, 2])
def test_fit_trains_it_as_it_trains_the_cvae(latent_size: int) -> None:
    """The same loop on another view: the loss falls, a resumed run ends at the same weights."""
    data, view = split(120), masked(0.25, 0.5)
    data.images[:, :, :14] = 255  # something to learn
    whole = start(build(latent_size, 16, 0), PARAMS, torch.device("cpu"))
    records = list(fit(whole, data, data, PARAMS, AIM, view))
    assert records[-1].figures["train/loss"] < 0.95 * records[0].figures["train/loss"]
    assert records[-1].figures["validation/elbo"] > records[0].figures["validation/elbo"]
    assert (records[-1].figures["train/kl"] > 0) == bool(latent_size)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own libraries warn as they like
@pytest.mark.parametrize("latent_size", [0, 2])
def test_compiled_it_learns_as_the_plain_code(latent_size: int) -> None:
    data, view = split(60), masked(0.25, 0.5)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    runs = []
    for choice in ("never", "always"):
        run = start(build(latent_size, 16, 0), train_params(epochs=2, compile=choice), torch.device("cpu"))
        runs.append(
            [
                record.figures["train/loss"]
                for record in fit(run, data, data, train_params(epochs=2, compile=choice), AIM, view)
            ]
        )
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    data, view, path = split(60), masked(0.25, 0.5), tmp_path / "unfinished.safetensors"
    whole, first, second = (start(build(2, 8, seed), PARAMS, torch.device("cpu")) for seed in (0, 0, 5))
    list(fit(whole, data, data, PARAMS, AIM, view))
    for _ in fit(first, data, data, PARAMS, AIM, view):
        save_training(path, first, {})
        if first.epoch == 2:
            break
    resume_training(path, second)
    list(fit(second, data, data, PARAMS, AIM, view))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], weight)


# Completions


def complete(digit: int | None = None, count: int = 5, seed: int = 0) -> completion.Completions:
    image = torch.rand(28, 28, generator=source()).round()
    return completion.complete(model(3), image, completion.named_masks()["top"], digit, count, seed)


def test_completions_keep_what_is_seen_and_come_likeliest_first() -> None:
    image = torch.rand(28, 28, generator=source()).round()
    found = complete(count=20)
    assert found.images.shape == (20, 28, 28)
    assert torch.equal(found.images[:, 14:], image[14:].expand(20, -1, -1))
    assert found.log_likelihood.tolist() == sorted(found.log_likelihood.tolist(), reverse=True)
    assert torch.pdist(found.images.flatten(1)).min() > 0
    assert 0 <= found.images.min() <= found.images.max() <= 1


@pytest.mark.slow
def test_a_score_is_a_bound_on_the_exact_likelihood() -> None:
    image = torch.rand(28, 28, generator=source()).round()
    top = completion.named_masks()["top"]
    found = completion.complete(model(1), image, top, None, 8, seed=0)
    no = torch.zeros(8, dtype=torch.bool)
    given = condition(image.expand(8, 1, 28, 28), top.view(1, -1), torch.zeros(8, dtype=torch.int64), no, no)
    truth = exact(model(1), (found.images >= 0.5).float().unsqueeze(1), given)
    assert (found.log_likelihood < truth + 1).all()  # its mean is below the truth, one estimate need not be
    assert torch.corrcoef(torch.stack([found.log_likelihood, truth]))[0, 1] > 0.9


def test_a_digit_insisted_on_changes_completions_and_a_seed_repeats_them() -> None:
    assert torch.equal(complete().images, complete().images)
    assert not torch.equal(complete().images, complete(seed=1).images)
    assert not torch.equal(complete().images, complete(digit=0).images)
    assert not torch.equal(complete(digit=3).images, complete(digit=0).images)


def reader(answer: Callable[[Tensor], Tensor]) -> completion.Reader:
    return lambda images: judge.Reading(torch.empty(0), answer(images))


def test_the_best_of_ten_beats_one_and_the_network_says_one_thing() -> None:
    errors = completion.squared_errors(model(3), model(0), split(20), 1, seed=0)
    assert errors.keys() == {"network", "cvae", "best_of_10"}
    assert 0 < errors["best_of_10"] < errors["cvae"] <= 588
    alike = completion.guesses(model(0), shown(split())[1], 3, source())
    assert torch.equal(alike[0], alike[1])
    images, given = shown(split(20))
    alone = (completion.guesses(model(0), given, 1, source())[0] - images.flatten(1)).square().sum(1).mean()
    assert errors["network"] == pytest.approx(float(alone), rel=1e-5)


def test_diversity_counts_digits_and_is_nothing_where_all_agree() -> None:
    one = reader(lambda images: torch.full((len(images),), 7))
    each = reader(lambda images: torch.arange(10).repeat_interleave(len(images) // 10))
    agreeing = completion.diversity(model(0), one, split(20), 1, seed=0)
    assert agreeing["distance"] == pytest.approx(0, abs=1e-6)
    assert agreeing["digits"] == 1
    assert completion.diversity(model(0), each, split(20), 1, seed=0)["digits"] == 10
    assert completion.diversity(model(3), one, split(20), 1, seed=0)["distance"] > 0.001


def test_the_report_has_the_form_that_others_read() -> None:
    one, heard = reader(lambda images: torch.zeros(len(images), dtype=torch.int64)), list[str]()
    params = completion.EvaluateCompletionParams(images=10, draws=7, seed=0)
    result = completion.evaluate(model(2), model(0), one, split(12), params, heard.append)
    for pixels in ("thresholded", "drawn"):
        assert list(result[pixels]) == ["1", "2", "3"]
        for figures in result[pixels].values():
            assert list(figures) == ["cvae", "cvae_label", "network"]
            assert all(value > 0 for value in figures.values())
        for number, errors in result["standard_error"][pixels].items():
            assert errors.keys() == result[pixels][number].keys()
            assert all(0 < error < result[pixels][number][name] for name, error in errors.items())
        falling = [result[pixels][number]["network"] for number in "123"]
        assert falling == sorted(falling, reverse=True)  # fewer hidden pixels cost less
    assert len(heard) == 6
    protocol = result["protocol"]
    assert (protocol["images"], protocol["of"], protocol["draws"]) == (10, 12, 7)
    assert "k = 7" in protocol["cvae"]


def test_drawn_pixels_are_one_fixed_draw() -> None:
    grey = Split(torch.full((5, 1, 28, 28), 128, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64))
    first, again, other = (completion.published_view(grey, "drawn", 1, False, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.4 < first.mean() < 0.6
