"""The model: the article's shapes, labels known where they should be and nowhere else, weights by seed."""

import itertools
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from latents import LABELS, source
from settings import MODEL, model_params
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.base.params import parse
from pipeline.model.cvae import (
    PRESETS,
    Architecture,
    Condition,
    Conditioning,
    ModelParams,
    build,
    resolve,
    skip_idle_units,
)
from pipeline.model.networks import one_hot

SMALL = Architecture(4, (16,), (16,), "concat", encoder_sees_label=True)
SHAPES: list[dict[str, Any]] = [
    {},
    {"architecture": "conv", "channels": (8,)},
    {"architecture": "resnet", "channels": (6, 8), "blocks": 2},
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=source(seed))


def images(count: int) -> Tensor:
    return normal(count, 1, 28, 28).sigmoid()


def layers(*modules: nn.Module) -> list[tuple[int, int]]:
    parts = nn.ModuleList(modules).modules()
    return [(part.in_features, part.out_features) for part in parts if isinstance(part, nn.Linear)]


def condition(kind: Conditioning) -> Condition:
    return build(replace(SMALL, conditioning=kind), 0).condition


def test_the_presets_have_their_layers_and_a_value_changes_that_value_alone() -> None:
    article, strong = (build(PRESETS[name], 0) for name in ("article", "strong"))
    assert layers(article.encoder, article.mu, article.log_var) == [(784, 256), (256, 8), (8, 8), (8, 8)]
    assert layers(article.condition, article.decoder, article.pixels) == [(10, 8), (8, 256), (256, 784)]
    assert layers(strong.encoder) == [(794, 512), (512, 512)]
    assert layers(strong.decoder, strong.pixels) == [(26, 512), (512, 512), (512, 784)]
    for name, architecture in PRESETS.items():
        assert resolve(model_params(preset=name)) == architecture
        assert resolve(model_params(preset=name, latent_size=3)) == replace(architecture, latent_size=3)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"blocks": 2}, "blocks must be null where architecture is mlp, not 2"),
        ({"architecture": "resnet", "channels": [8, 8, 8]}, r"channels must be one or two sizes .*, not \[8, 8, 8\]"),
    ],
)
def test_values_that_do_not_go_together_are_refused_in_one_line(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rf"^p\.yaml: model\.{rule}") as caught:
        parse(ModelParams, MODEL | change, "p.yaml: model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", SHAPES)
def test_any_architecture_encodes_decodes_and_trains_every_weight(shape: dict[str, Any]) -> None:
    for kind, (sees, hidden) in itertools.product(get_args(Conditioning), ((False, ()), (True, (8, 6)))):
        model = build(Architecture(3, hidden, hidden, kind, sees, **shape), 0)
        q = model.encode(images(10), LABELS)
        assert q.mu.shape == q.log_var.shape == (10, 3)
        assert model.decode(normal(2, 7, 10, 3), LABELS).shape == (2, 7, 10, 784)
        (q.log_var.sum() + model.decode(q.mu, LABELS).square().sum()).backward()
        assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())
        z = 0.3 * normal(70, 3)
        for label in LABELS[:3].split(1):  # latents of one image decode as among others
            assert torch.allclose(model.decode_one_image(z, label), model.decode(z, label.expand(70)), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_do_not_depend_on_each_other(shape: dict[str, Any]) -> None:
    model, x = build(replace(SMALL, **shape), 0).double().train(), images(10).double()
    assert torch.allclose(model.encode(x, LABELS).mu[3:4], model.encode(x[3:4], LABELS[3:4]).mu)
    z = normal(6, 10, 4).double()
    together = model.decode(z, LABELS)
    assert torch.allclose(together[2], model.decode(z[2], LABELS))
    assert torch.allclose(together[:, 3:4], model.decode(z[:, 3:4], LABELS[3:4]))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_encoder_reads_the_image_and_the_label_only_where_it_sees_it(shape: dict[str, Any]) -> None:
    for sees in (False, True):
        model, x = build(replace(SMALL, encoder_sees_label=sees, **shape), 0), images(10)
        for one, other in zip(model.encode(x, LABELS), model.encode(x, LABELS.flip(0)), strict=True):
            assert torch.equal(one, other) != sees
        assert not torch.allclose(model.encode(x, LABELS).mu, model.encode(1 - x, LABELS).mu)


def test_conditions_combine_latents_and_label_as_they_are_named() -> None:
    hot, z = one_hot(LABELS, torch.float32), normal(3, 10, 4)
    label = condition("sum").project(hot)  # type: ignore[misc]
    assert label.min() == 0  # Linear + ReLU, as in the article
    assert label.any()
    assert torch.equal(condition("sum")(z, hot), z + label)
    assert torch.equal(condition("mean")(z, hot), (z + label) / 2)
    assert torch.equal(condition("product")(z, hot), z * label)
    assert torch.equal(condition("concat")(z, hot), torch.cat([z, torch.eye(10).expand(3, 10, 10)], -1))


def test_weights_depend_on_the_seed_alone_and_building_leaves_the_global_generator() -> None:
    def weights(seed: int) -> Tensor:
        return nn.utils.parameters_to_vector(build(SMALL, seed).parameters())

    torch.manual_seed(5)
    before, first = torch.random.get_rng_state(), weights(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(weights(3), first)
    assert not torch.equal(weights(4), first)


@pytest.mark.parametrize("shape", SHAPES)
def test_he_weights_keep_the_size_of_activations_torch_s_let_it_shrink_and_dark_ones_make_dark_pictures(
    shape: dict[str, Any],
) -> None:
    """By how far logits differ between latents of one label that differ by about 1 in each dimension."""
    sizes = replace(SMALL, encoder_hidden=(256, 256), decoder_hidden=(256, 256), **shape)
    with torch.no_grad():
        he, plain, dark = (
            build(replace(sizes, init=init), 0).decode(normal(200, 1, 4), LABELS[:1])
            for init in ("he", "torch", "dark")
        )
    assert 0.2 < he.std(0).mean() < 2
    assert plain.std(0).mean() < 0.1
    assert dark.sigmoid().mean().item() == pytest.approx(0.13, abs=0.03)
    assert 0 < dark.std(0).mean() < he.std(0).mean()


def test_skipping_idle_units_hides_no_nan() -> None:
    linears = [nn.Linear(*pair) for pair in itertools.pairwise((2, 60, 50, 9))]
    nn.init.constant_(linears[0].weight[-1], torch.nan)
    assert skip_idle_units(linears, normal(20, 2)).isnan().all()
