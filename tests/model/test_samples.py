"""Samples: latents from the sampler that was asked for, and pictures where they belong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from latents import LABELS, density, model, source

from pipeline.data.splits import to_unit
from pipeline.model import prior, samples
from pipeline.model.cvae import CVAE, Architecture, build
from pipeline.model.samples import SAMPLERS, Sampler, decode, latents, sample

SMALL = Architecture(2, (16,), (16,), "concat", encoder_sees_label=True)


def learned(name: prior.Name) -> CVAE:
    """A model with a learned prior that differs by label; of `class`, mean y and variance 1 + y."""
    ours = build(replace(SMALL, prior=name, prior_components=3), 0)
    with torch.no_grad():
        for key, weight in ours.prior_weights.named_parameters():
            values = LABELS.log1p() if key == "log_var" else LABELS
            weight.add_(values.view(10, *[1] * (weight.ndim - 1)))
    return ours


def test_latents_are_samples_of_the_prior_or_of_the_density_which_must_be_given() -> None:
    z = latents(learned("class"), None, LABELS, "prior", seed=5)
    assert torch.equal(z, learned("class").prior().sample(LABELS, source(5)).detach())
    assert not z.requires_grad
    assert torch.equal(latents(model(), density(), LABELS, "fitted", 5), density().sample(LABELS, source(5)))
    with pytest.raises(ValueError, match="needs a density"):
        latents(model(), None, LABELS, "fitted", 5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_repeat_with_the_seed_and_leave_the_global_generator(sampler: Sampler) -> None:
    torch.manual_seed(0)
    before, first = torch.random.get_rng_state(), sample(model(), density(), LABELS, sampler, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(sample(model(), density(), LABELS, sampler, seed=5), first)
    assert not torch.equal(sample(model(), density(), LABELS, sampler, seed=6), first)


def test_any_number_of_latents_is_decoded_row_by_row_to_the_likelihood_s_mean() -> None:
    """A mixture of labels may take the place of a label."""
    count = 2001
    z, labels = torch.randn(count, 2, generator=source()), torch.arange(count) % 10
    images = decode(model(), z, labels)
    assert images.shape == (count, 1, 28, 28)
    assert torch.equal(decode(model(), z, torch.eye(10)[labels]), images)
    with torch.no_grad():
        assert torch.allclose(images.flatten(1), model().decode(z, labels).sigmoid(), atol=1e-6)


def test_a_sample_may_be_shown_with_sampled_pixels_whose_mean_is_the_usual_image() -> None:
    shown = sample(model(), density(), LABELS, "fitted", seed=4, shown="draw")
    assert set(shown.unique().tolist()) == {0, 1}
    assert torch.equal(sample(model(), density(), LABELS, "fitted", seed=4, shown="draw"), shown)
    many = decode(model(), torch.zeros(3000, 2), torch.zeros(3000, dtype=torch.int64), seed=1)
    assert torch.allclose(many.mean(0), decode(model(), torch.zeros(1, 2), LABELS[:1])[0], atol=0.05)


def test_a_sheet_shows_each_image_whole_at_its_place_dark_on_white() -> None:
    images = torch.randint(0, 256, (6, 1, 28, 28), generator=source(), dtype=torch.uint8)
    expected = np.full((2 * 28 + 2, 3 * 28 + 2 * 2), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // 3) * 30, (index % 3) * 30
        expected[top : top + 28, left : left + 28] = 255 - image[0].numpy()
    assert np.array_equal(samples.sheet(to_unit(images), columns=3, gap=2), expected)


@pytest.mark.parametrize("name", prior.PRIORS)
def test_a_traversal_moves_one_dimension_from_the_prior_s_mean(name: prior.Name) -> None:
    ours, values = learned(name), torch.tensor([-3.0, 0.0, 3.0])
    z = torch.stack([ours.prior().mean(torch.full((3,), 4)).detach()[:, 0], values], 1)
    assert torch.equal(samples.traverse(ours, 4, 1, values), decode(ours, z, torch.full((3,), 4)))


def test_an_interpolation_begins_and_ends_at_its_latents_and_digits() -> None:
    first, last = torch.randn(2, 4, 2, generator=source())
    images = samples.interpolate(model(), first, last, (3, 8), 7)
    assert images.shape == (4, 7, 28, 28)
    for end, z, digit in ((0, first, 3), (-1, last, 8)):
        assert torch.allclose(images[:, end], decode(model(), z, torch.full((4,), digit)).squeeze(1), atol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 0.3, 3.0])
def test_latents_turn_evenly_and_keep_their_length(angle: float) -> None:
    first = torch.tensor([2.0, 0.0])
    last = 2 * torch.tensor([angle, angle + torch.pi / 2]).cos() * torch.tensor([1.0, -1.0])
    path = samples._turn(first, last, torch.linspace(0, 1, 9)[:, None])
    steps = (path[1:] - path[:-1]).norm(dim=1)
    assert torch.allclose(path.norm(dim=1), torch.full((9,), 2.0), atol=1e-5)
    assert torch.allclose(steps, steps[:1].expand(8), atol=1e-5)
    assert torch.allclose(path[[0, -1]], torch.stack([first, last]), atol=1e-5)


def test_a_style_has_the_same_noise_in_the_prior_of_each_label() -> None:
    same = samples.styles(model(), density(), 3, "prior", seed=1)
    assert torch.equal(same, same[:, :1].expand(-1, 10, -1))
    z = samples.styles(learned("class"), density(), 3, "prior", seed=1)
    noise = (z - LABELS[:, None]) / (1 + LABELS[:, None]).sqrt()
    assert torch.allclose(noise, same, atol=1e-5)
    assert torch.pdist(noise[:, 0]).min() > 0


def test_a_fitted_style_has_the_same_place_in_the_gaussian_of_each_class() -> None:
    z = samples.styles(model(), density(), 20_000, "fitted", seed=1)
    mean, covariance = density().moments()
    assert torch.allclose(z[:, 3].mean(0), mean[3], atol=0.1)
    assert torch.allclose(torch.cov(z[:, 3].T), covariance[3], atol=0.2)
    noise = (z[:, 0] - mean[0]) / covariance[0].diagonal().sqrt()  # the covariance of class 0 is round
    assert torch.corrcoef(torch.cat([noise, z[:, 3]], 1).T)[:2, 2:].diagonal().min() > 0.6
    assert torch.allclose((z[:, 7] - mean[7]), (z[:, 0] - mean[0]), atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_morph_passes_each_digit_s_latents_under_its_label(steps: int) -> None:
    z = torch.randn(3, 10, 2, generator=source())
    images = samples.morph(model(), z, steps)
    assert images.shape == (3, 10 * steps, 28, 28)
    for row, own in zip(images, z, strict=True):
        assert torch.allclose(row[::steps], decode(model(), own, LABELS).squeeze(1), atol=1e-6)
