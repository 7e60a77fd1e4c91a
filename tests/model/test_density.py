"""Samples: codes from the density they are said to come from, and pictures where they belong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.splits import Split, to_unit
from pipeline.model import density as sample
from pipeline.model import likelihood, prior
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.model.density import Density, posteriors

SMALL = Architecture(2, (16,), (16,), "concat", encoder_sees_label=True)
LABELS = torch.arange(10)


def split(*counts: int) -> Split:
    """That many images of each class, each class lit in columns of its own."""
    labels = torch.repeat_interleave(LABELS, torch.tensor(counts))
    images = torch.randint(0, 100, (len(labels), 1, 28, 28), generator=torch.Generator().manual_seed(0))
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, :, 2 * label : 2 * label + 4] += 150
    return Split(images.byte(), labels)


def model(**changes: float) -> CVAE:
    """A small CVAE whose codes spread by class."""
    random = build(SMALL, 0)
    with torch.no_grad():
        random.mu.weight *= 20
        random.log_var.weight.zero_()
        random.log_var.bias.fill_(changes.get("log_var", -4.0))
    return random


def density(size: int = 2) -> Density:
    """Class 3 is a known mixture of two Gaussians; the others lie at their own digit."""
    weights = torch.tensor([1.0, 0.0]).repeat(10, 1)
    means = LABELS.float()[:, None, None].expand(10, 2, size).clone()
    roots = (0.01 * torch.eye(size)).expand(10, 2, size, size).clone()
    weights[3] = torch.tensor([0.25, 0.75])
    means[3] = torch.tensor([[-4.0, 0.0], [4.0, 2.0]])
    roots[3] = torch.tensor([[[1.0, 0.0], [0.5, 2.0]], [[0.5, 0.0], [-1.0, 0.3]]])
    return Density(weights, means, roots)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_draws_have_the_mean_and_covariance_of_the_mixture() -> None:
    mixture, count = density(), 100_000
    z = mixture.sample(torch.full((count,), 3), source())
    weights, means, roots = mixture.weights[3], mixture.means[3], mixture.roots[3]
    mean = (weights[:, None] * means).sum(0)
    second = roots @ roots.mT + means[:, :, None] * means[:, None, :]
    covariance = (weights[:, None, None] * second).sum(0) - mean[:, None] * mean[None, :]
    assert torch.allclose(z.mean(0), mean, atol=0.05)
    assert torch.allclose(torch.cov(z.T), covariance, atol=0.15)


def test_components_are_drawn_by_their_weights() -> None:
    z = density().sample(torch.full((20_000,), 3), source())
    assert (z[:, 0] > 0).float().mean() == pytest.approx(0.75, abs=0.02)


def test_log_prob_is_that_of_torch_s_own_mixture() -> None:
    z, labels = torch.randn(400, 2, generator=source()) * 3, LABELS.repeat(40)
    found = density().log_prob(z, labels)
    for digit in range(10):
        weights, means, roots = (part[digit].double() for part in density().tensors().values())
        mixture = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(weights), torch.distributions.MultivariateNormal(means, scale_tril=roots)
        )
        assert torch.allclose(found[labels == digit], mixture.log_prob(z[labels == digit].double()))
    assert found.isfinite().all()


def test_each_row_is_drawn_from_its_own_label() -> None:
    labels = torch.tensor([7, 0, 9, 5])
    assert torch.allclose(density().sample(labels, source()), labels[:, None].float().expand(4, 2), atol=0.1)


def test_every_row_has_noise_of_its_own() -> None:
    assert torch.pdist(density().sample(torch.zeros(50, dtype=torch.int64), source())).min() > 0


def test_the_weights_of_a_fitted_class_sum_to_one() -> None:
    fitted = sample.fit_density(model(), split(*[30] * 10), "grey", components=3, seed=0)
    assert torch.allclose(fitted.weights.sum(1), torch.ones(10))
    assert fitted.weights.min() >= 0


def test_the_fitted_density_follows_each_class_s_latents() -> None:
    data, aggregate = split(*[200] * 10), 20_000
    mu, log_var = posteriors(model(), data, "grey")
    fitted = sample.fit_density(model(), data, "grey", components=2, seed=0)
    for digit in range(10):
        rows = mu[data.labels == digit]
        spread = torch.cov(rows.T) + log_var[0].exp().diag()  # of the means, and of q(z∣x) around each
        drawn = fitted.sample(torch.full((aggregate,), digit), source())
        tolerance = 0.2 * spread.trace()
        assert torch.allclose(drawn.mean(0), rows.mean(0), atol=float(tolerance.sqrt()))
        assert torch.allclose(torch.cov(drawn.T), spread, atol=float(tolerance))
    centres = torch.stack([mu[data.labels == digit].mean(0) for digit in range(10)])
    assert torch.pdist(centres).max() > 1  # or else any density would have passed


def test_the_fitted_density_has_the_posteriors_own_width() -> None:
    """Where all means are one point, the aggregate posterior is the posterior: N(m, σ²), not a point."""
    wide = model(log_var=1.0)
    nn.init.zeros_(wide.mu.weight)
    fitted = sample.fit_density(wide, split(*[400] * 10), "grey", components=1, seed=0)
    covariances = fitted.roots[:, 0] @ fitted.roots[:, 0].mT
    assert torch.allclose(covariances.mean(0), torch.e * torch.eye(2), atol=0.3)


def test_classes_with_hardly_any_images_can_be_sampled() -> None:
    fitted = sample.fit_density(model(), split(0, 1, 2, 3, 4, 5, 40, 40, 40, 40), "grey", components=10, seed=0)
    assert torch.allclose(fitted.weights.sum(1), torch.ones(10))
    assert fitted.sample(LABELS.repeat(100), source()).isfinite().all()


def test_a_class_without_images_is_drawn_from_the_standard_normal() -> None:
    fitted = sample.fit_density(model(), split(0, *[20] * 9), "grey", components=2, seed=0)
    z = fitted.sample(torch.zeros(20_000, dtype=torch.int64), source())
    assert torch.allclose(z.mean(0), torch.zeros(2), atol=0.03)
    assert torch.allclose(torch.cov(z.T), torch.eye(2), atol=0.05)


def test_a_collapsed_code_can_be_fitted() -> None:
    flat = model(log_var=-60.0)
    nn.init.zeros_(flat.mu.weight)
    fitted = sample.fit_density(flat, split(*[20] * 10), "grey", components=5, seed=0)
    assert torch.allclose(fitted.sample(LABELS, source()), flat.mu.bias.expand(10, 2), atol=0.1)


def test_the_same_seed_fits_the_same_density() -> None:
    first, again = (sample.fit_density(model(), split(*[30] * 10), "binary", 3, seed=1).tensors() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_density_is_whole_in_its_tensors() -> None:
    back = Density(**density().tensors())
    assert torch.equal(back.sample(LABELS, source()), density().sample(LABELS, source()))


def test_fitting_leaves_the_global_generators_alone() -> None:
    before, before_numpy = torch.random.get_rng_state(), repr(np.random.get_state())
    sample.fit_density(model(), split(*[20] * 10), "binary", 2, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert repr(np.random.get_state()) == before_numpy


def test_the_prior_s_codes_are_standard_normal() -> None:
    z = sample.prior_codes(model(), torch.zeros(50_000, dtype=torch.int64), seed=0)
    assert torch.allclose(z.mean(0), torch.zeros(2), atol=0.02)
    assert torch.allclose(torch.cov(z.T), torch.eye(2), atol=0.03)


def test_the_prior_s_codes_come_from_what_the_model_says() -> None:
    """A prior that differs by label: mean y, variance e⁻⁶."""
    ours = build(replace(SMALL, prior="class"), 0)
    with torch.no_grad():
        ours.prior_weights.mu.copy_(LABELS[:, None])
        ours.prior_weights.log_var.fill_(-6.0)
    z = sample.prior_codes(ours, LABELS.repeat(500), seed=0).view(500, 10, 2)
    assert torch.allclose(z.mean(0), LABELS[:, None].float().expand(10, 2), atol=0.02)
    assert z.std(0).mean().item() == pytest.approx(np.exp(-3), rel=0.05)


@pytest.mark.parametrize("sampler", sample.SAMPLERS)
def test_the_same_seed_draws_the_same_images_and_another_others(sampler: sample.Sampler) -> None:
    torch.manual_seed(0)
    first = sample.draw(model(), density(), LABELS, sampler, seed=5)
    torch.manual_seed(1)
    assert torch.equal(sample.draw(model(), density(), LABELS, sampler, seed=5), first)
    assert not torch.equal(sample.draw(model(), density(), LABELS, sampler, seed=6), first)


@pytest.mark.parametrize("sampler", sample.SAMPLERS)
def test_drawing_leaves_the_global_generator_alone(sampler: sample.Sampler) -> None:
    before = torch.random.get_rng_state()
    sample.draw(model(), density(), LABELS, sampler, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_samplers_draw_where_they_are_named_after() -> None:
    labels = torch.full((50,), 9)
    fitted, prior = (sample.draw(model(), density(), labels, sampler, seed=0) for sampler in ("fitted", "prior"))
    at_nine = sample.decode(model(), torch.full((1, 2), 9.0), labels[:1])
    assert (fitted - at_nine).abs().mean() < 0.01
    assert (prior - at_nine).abs().mean() > 0.02


@pytest.mark.parametrize("count", [1, 999, 1000, 2001])
def test_any_number_of_codes_is_decoded_row_by_row(count: int) -> None:
    z, labels = torch.randn(count, 2, generator=source()), torch.arange(count) % 10
    images = sample.decode(model(), z, labels)
    assert images.shape == (count, 1, 28, 28)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    last = sample.decode(model(), z[-1:], labels[-1:])
    assert torch.allclose(images[-1:], last, atol=1e-6)


def test_an_image_is_the_likelihood_s_mean() -> None:
    z = torch.randn(10, 2, generator=source())
    with torch.no_grad():
        expected = model().decode(z, LABELS).sigmoid()
    assert torch.allclose(sample.decode(model(), z, LABELS).flatten(1), expected)


@pytest.mark.parametrize("sampler", sample.SAMPLERS)
def test_a_sample_may_be_shown_as_a_draw_of_its_pixels(sampler: sample.Sampler) -> None:
    """Of the same codes: many draws have the image shown else as their mean."""
    means = sample.draw(model(), density(), LABELS, sampler, seed=4)
    drawn = sample.draw(model(), density(), LABELS, sampler, seed=4, shown="draw")
    assert set(drawn.unique().tolist()) == {0, 1}
    assert torch.equal(sample.draw(model(), density(), LABELS, sampler, seed=4, shown="draw"), drawn)
    many = sample.decode(model(), torch.zeros(3000, 2), torch.zeros(3000, dtype=torch.int64), seed=1)
    assert torch.allclose(many.mean(0), sample.decode(model(), torch.zeros(1, 2), LABELS[:1])[0], atol=0.05)
    assert abs(drawn.mean() - means.mean()) < 0.02


@pytest.mark.parametrize("name", likelihood.LIKELIHOODS)
def test_an_image_of_any_likelihood_lies_between_black_and_white(name: likelihood.Name) -> None:
    ours, z = build(SMALL, 0, name, sigma=2.0), torch.randn(10, 2, generator=source())
    for seed in (None, 0):
        images = sample.decode(ours, z, LABELS, seed)
        assert images.shape == (10, 1, 28, 28)
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1


@pytest.mark.parametrize("name", ["class", "mixture"])
def test_a_learned_prior_is_drawn_from_and_walked_through(name: prior.Name) -> None:
    ours = build(replace(SMALL, prior=name, prior_components=3), 0)
    with torch.no_grad():
        for weight in ours.prior_weights.parameters():
            weight.add_(3 * torch.rand(weight.shape, generator=source()))
    z = sample.prior_codes(ours, LABELS, seed=0)
    assert torch.equal(z, ours.prior().sample(LABELS, source()).detach())
    assert not z.requires_grad
    (mean,) = ours.prior().mean(LABELS[4:5]).detach()
    middle = sample.traverse(ours, 4, 1, mean[1:])
    assert torch.allclose(middle, sample.decode(ours, mean[None], LABELS[4:5]))


def test_a_sheet_s_rows_are_the_digits() -> None:
    assert sample.rows_of_digits(2).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9]


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_a_sheet_shows_each_image_whole_at_its_place(gap: int) -> None:
    images = to_unit(torch.randint(0, 256, (6, 1, 28, 28), generator=source(), dtype=torch.uint8))
    picture = sample.sheet(images, columns=3, gap=gap)
    assert picture.shape == (2 * 28 + gap, 3 * 28 + 2 * gap)
    assert picture.dtype == np.uint8
    for index, image in enumerate(images):
        top, left = (index // 3) * (28 + gap), (index % 3) * (28 + gap)
        shown = picture[top : top + 28, left : left + 28]
        assert np.array_equal(shown, 255 - (image[0] * 255).round().byte().numpy())


def test_a_sheet_is_dark_ink_on_white_with_white_between() -> None:
    picture = sample.sheet(torch.ones(4, 1, 28, 28), columns=2)
    assert (picture == 0).sum() == 4 * 784
    assert (picture[28:30] == 255).all()
    assert (picture[:, 28:30] == 255).all()
    assert (sample.sheet(torch.zeros(1, 1, 28, 28), columns=1) == 255).all()


def test_a_traversal_moves_one_dimension_from_the_prior_s_mean() -> None:
    values = torch.tensor([-3.0, 0.0, 3.0])
    z = torch.tensor([[0.0, -3.0], [0.0, 0.0], [0.0, 3.0]])
    expected = sample.decode(model(), z, torch.full((3,), 4))
    assert torch.equal(sample.traverse(model(), 4, 1, values), expected)


def test_a_mixed_label_may_stand_where_a_label_does() -> None:
    z = torch.randn(10, 2, generator=source())
    assert torch.equal(sample.decode(model(), z, torch.eye(10)), sample.decode(model(), z, LABELS))


def test_an_interpolation_begins_and_ends_at_its_codes_and_digits() -> None:
    first, last = torch.randn(2, 4, 2, generator=source())
    images = sample.interpolate(model(), first, last, (3, 8), 7)
    assert images.shape == (4, 7, 28, 28)
    for end, z, digit in ((0, first, 3), (-1, last, 8)):
        expected = sample.decode(model(), z, torch.full((4,), digit)).squeeze(1)
        assert torch.allclose(images[:, end], expected, atol=1e-5)


@pytest.mark.parametrize("angle", [0.3, 1.5, 3.0])
def test_codes_turn_evenly_and_keep_their_length(angle: float) -> None:
    first = torch.tensor([2.0, 0.0])
    last = 2 * torch.tensor([angle, angle + torch.pi / 2]).cos() * torch.tensor([1.0, -1.0])
    way = sample._turn(first, last, torch.linspace(0, 1, 9)[:, None])
    assert torch.allclose(way.norm(dim=1), torch.full((9,), 2.0), atol=1e-5)
    steps = (way[1:] - way[:-1]).norm(dim=1)
    assert torch.allclose(steps, steps[:1].expand(8), atol=1e-5)
    assert torch.allclose(way[[0, -1]], torch.stack([first, last]), atol=1e-5)


@pytest.mark.parametrize("first", [[1.0, 2.0], [3.0, 6.0], [-1.0, -2.0]])
def test_codes_in_one_line_go_straight(first: list[float]) -> None:
    a, b = torch.tensor(first), torch.tensor([1.0, 2.0])
    way = sample._turn(a, b, torch.linspace(0, 1, 3)[:, None])
    assert torch.allclose(way, torch.stack([a, (a + b) / 2, b]), atol=1e-6)


def test_a_class_s_moments_are_those_of_its_draws() -> None:
    mean, covariance = density().moments()
    z = density().sample(torch.full((100_000,), 3), source())
    assert torch.allclose(mean[3], z.mean(0), atol=0.05)
    assert torch.allclose(covariance[3], torch.cov(z.T), atol=0.15)


def test_a_style_of_the_prior_is_one_code_for_all_digits() -> None:
    z = sample.styles(model(), density(), 3, "prior", seed=1)
    assert z.shape == (3, 10, 2)
    assert torch.equal(z, z[:, :1].expand(-1, 10, -1))
    assert torch.pdist(z[:, 0]).min() > 0


def test_a_style_has_the_same_place_in_the_prior_of_each_label() -> None:
    ours = build(replace(SMALL, prior="class"), seed=0)
    ours.prior_weights.mu.data += torch.arange(10.0)[:, None]
    ours.prior_weights.log_var.data += LABELS[:, None].log1p()
    z = sample.styles(ours, density(), 3, "prior", seed=1)
    place = (z - LABELS[:, None]) / (1 + LABELS[:, None]).sqrt()
    assert torch.allclose(place, place[:, :1].expand(-1, 10, -1), atol=1e-5)
    assert torch.pdist(place[:, 0]).min() > 0


def test_a_fitted_style_has_the_same_place_in_every_class() -> None:
    z = sample.styles(model(), density(), 20_000, "fitted", seed=1)
    mean, covariance = density().moments()
    for digit in (0, 3):
        assert torch.allclose(z[:, digit].mean(0), mean[digit], atol=0.1)
        assert torch.allclose(torch.cov(z[:, digit].T), covariance[digit], atol=0.2)
    place = (z[:, 0] - mean[0]) / covariance[0].diagonal().sqrt()  # class 0 is round: its own coordinates
    assert torch.corrcoef(torch.cat([place, z[:, 3]], 1).T)[:2, 2:].diagonal().min() > 0.6
    assert torch.allclose((z[:, 7] - mean[7]), (z[:, 0] - mean[0]), atol=1e-4)


def test_a_morph_shows_each_digit_s_code_under_its_label() -> None:
    z = torch.randn(3, 10, 2, generator=source())
    images = sample.morph(model(), z)
    assert images.shape == (3, 10, 28, 28)
    for row in range(3):
        assert torch.allclose(images[row], sample.decode(model(), z[row], LABELS).squeeze(1), atol=1e-6)


def test_a_slow_morph_passes_the_digits_on_its_way() -> None:
    z = torch.randn(1, 10, 2, generator=source())
    assert torch.allclose(sample.morph(model(), z, 4)[:, ::4], sample.morph(model(), z), atol=1e-6)
