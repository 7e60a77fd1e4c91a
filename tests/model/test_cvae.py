"""The model: the article's shapes, labels heard where they should be and nowhere else, weights by seed."""

import itertools
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from settings import MODEL, model_params
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.base.params import parse
from pipeline.model.cvae import (
    CVAE,
    PRESETS,
    Architecture,
    Condition,
    Conditioning,
    Convolutions,
    Init,
    ModelParams,
    Neighbours,
    build,
    initialise,
    one_hot,
    resolve,
    scale_down,
)

KINDS: tuple[Conditioning, ...] = ("sum", "mean", "product", "concat")
SMALL = Architecture(4, (16,), (16,), "concat", encoder_sees_label=True)
LABELS = torch.arange(10)
CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"architecture": "conv", "channels": (8,)},
    {"architecture": "resnet", "channels": (6, 8), "blocks": 2},
]


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(count: int) -> Tensor:
    return draws(count, 1, 28, 28).sigmoid()


def layers(module: nn.Module) -> list[tuple[int, int]]:
    return [(part.in_features, part.out_features) for part in module.modules() if isinstance(part, nn.Linear)]


def weights(model: CVAE) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def condition(kind: Conditioning, latent_size: int = 4) -> Condition:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Condition(kind, latent_size)


def test_the_article_preset_has_the_article_s_layers() -> None:
    model = build(PRESETS["article"], 0)
    assert layers(model.encoder) == [(784, 256), (256, 8)]
    assert (layers(model.mu), layers(model.log_var)) == ([(8, 8)], [(8, 8)])
    assert layers(model.condition) == [(10, 8)]
    assert layers(model.decoder) + layers(model.pixels) == [(8, 256), (256, 784)]


def test_the_article_preset_sums_the_label_onto_the_code_and_hides_it_from_the_encoder() -> None:
    assert (PRESETS["article"].conditioning, PRESETS["article"].encoder_sees_label) == ("sum", False)


def test_the_strong_preset_shows_the_label_to_both_halves() -> None:
    model = build(PRESETS["strong"], 0)
    assert layers(model.encoder) == [(794, 512), (512, 512)]
    assert layers(model.decoder) + layers(model.pixels) == [(26, 512), (512, 512), (512, 784)]


def test_nulls_are_the_preset_s() -> None:
    for name, architecture in PRESETS.items():
        assert resolve(model_params(preset=name)) == architecture


@pytest.mark.parametrize(
    "change",
    [
        {"latent_size": 3},
        {"encoder_hidden": (7, 5)},
        {"encoder_hidden": ()},
        {"decoder_hidden": (9,)},
        {"conditioning": "product"},
        {"encoder_sees_label": False},
        {"init": "he"},
        {"init": "dark"},
    ],
)
def test_one_value_changes_that_value_alone(change: dict[str, object]) -> None:
    assert resolve(model_params(**change)) == replace(PRESETS["strong"], **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "sees", "encoder", "decoder"), list(itertools.product(KINDS, (False, True), ((), (8,)), ((), (8, 6))))
)
@pytest.mark.parametrize("convolutions", CONVOLUTIONS)
def test_any_architecture_encodes_and_decodes(
    kind: Conditioning, sees: bool, encoder: tuple[int, ...], decoder: tuple[int, ...], convolutions: dict[str, Any]
) -> None:
    model = build(Architecture(3, encoder, decoder, kind, sees, **convolutions), 0)
    mu, log_var = model.encode(images(5), LABELS[:5])
    assert mu.shape == log_var.shape == (5, 3)
    assert model.decode(mu, LABELS[:5]).shape == (5, 784)
    assert model.decode(draws(2, 7, 5, 3), LABELS[:5]).shape == (2, 7, 5, 784)


@pytest.mark.parametrize("convolutions", CONVOLUTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_many_codes_decode_as_each_would_alone(kind: Conditioning, convolutions: dict[str, Any]) -> None:
    model, z = build(replace(SMALL, conditioning=kind, **convolutions), 0), draws(6, 10, 4)
    together = model.decode(z, LABELS)
    for row in range(6):
        assert torch.allclose(together[row], model.decode(z[row], LABELS), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_hears_every_label(kind: Conditioning) -> None:
    model = build(Architecture(16, (8,), (16,), kind, encoder_sees_label=False), 0)
    outputs = model.decode(draws(1, 16).expand(10, 16), LABELS)
    assert torch.pdist(outputs).min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_hears_the_code(kind: Conditioning) -> None:
    model = build(replace(SMALL, conditioning=kind), 0)
    assert not torch.allclose(model.decode(draws(10, 4), LABELS), model.decode(draws(10, 4, seed=1), LABELS))


def test_the_mean_is_half_the_sum() -> None:
    hot, z = one_hot(LABELS, torch.float32), draws(10, 4)
    assert torch.allclose(condition("mean")(z, hot), condition("sum")(z, hot) / 2)


def test_the_sum_shifts_every_code_of_a_label_alike() -> None:
    hot, combine = one_hot(LABELS, torch.float32), condition("sum")
    first, second = draws(10, 4), draws(10, 4, seed=1)
    assert torch.allclose(combine(first, hot) - first, combine(second, hot) - second, atol=1e-6)


def test_the_product_scales_the_code() -> None:
    hot, combine, z = one_hot(LABELS, torch.float32), condition("product"), draws(10, 4)
    assert torch.allclose(combine(3 * z, hot), 3 * combine(z, hot))
    assert not combine(torch.zeros(10, 4), hot).any()


def test_a_product_with_a_zero_projection_silences_the_code() -> None:
    model = build(replace(SMALL, conditioning="product"), 0)
    assert model.condition.project is not None
    for parameter in model.condition.project.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(model.decode(draws(10, 4), LABELS), model.decode(draws(10, 4, seed=1), LABELS))


def test_a_concatenation_keeps_code_and_label_whole() -> None:
    z = draws(3, 10, 4)
    joined = condition("concat")(z, one_hot(LABELS, torch.float32))
    assert torch.equal(joined[..., :4], z)
    assert torch.equal(joined[..., 4:], torch.eye(10).expand(3, 10, 10))


@pytest.mark.parametrize("kind", ["sum", "mean", "product"])
def test_a_label_is_projected_to_nothing_negative(kind: Conditioning) -> None:
    """Linear + ReLU, as in the article: a sum never lowers the code, a product never turns its sign."""
    combined = condition(kind, 64)(torch.ones(10, 64), one_hot(LABELS, torch.float32))
    assert (combined - {"sum": 1, "mean": 0.5, "product": 0}[kind]).min() == 0


def test_convolutions_of_an_image_do_not_depend_on_its_neighbours() -> None:
    """No statistics of a batch: what is measured on one image is what is measured on many."""
    model = build(replace(SMALL, **CONVOLUTIONS[2]), 0).double().train()
    x = images(10).double()
    together, alone = model.encode(x, LABELS)[0], model.encode(x[3:4], LABELS[3:4])[0]
    assert torch.allclose(together[3:4], alone)
    assert torch.allclose(model.decode(together, LABELS)[3:4], model.decode(together[3:4], LABELS[3:4]))


def test_the_convolutional_presets_halve_the_picture_twice() -> None:
    for kind, blocks in (("conv", 0), ("resnet", 1)):
        architecture = resolve(model_params(architecture=kind))
        assert (architecture.channels, architecture.blocks) == ((32, 64), blocks)
        assert replace(architecture, architecture="mlp", channels=(), blocks=0) == replace(
            PRESETS["strong"], encoder_hidden=(256,), decoder_hidden=(256,), init="he"
        )
        assert build(architecture, 0).pixels.shape == (64, 7, 7)


@pytest.mark.parametrize("shape", [{}, *CONVOLUTIONS[1:]])
def test_he_weights_keep_the_size_of_what_passes_and_torch_s_let_it_fade(shape: dict[str, Any]) -> None:
    sizes = replace(SMALL, encoder_hidden=(256, 256), decoder_hidden=(256, 256), **shape)

    def loudness(init: Init) -> float:
        """How far logits differ between codes of one label that differ by about 1 in each dimension."""
        logits = build(replace(sizes, init=init), 0).decode(draws(200, 1, 4), LABELS[:1])
        return logits.std(0).mean().item()

    with torch.no_grad():
        assert 0.2 < loudness("he") < 2
        assert loudness("torch") < 0.1


@pytest.mark.parametrize("shape", [{}, *CONVOLUTIONS[1:]])
def test_he_weights_have_their_variance_and_no_bias(shape: dict[str, Any]) -> None:
    model = build(replace(SMALL, decoder_hidden=(400, 400), init="he", **shape), 0)
    middle = next(part for part in model.decoder.modules() if isinstance(part, nn.Linear) and part.in_features == 400)
    assert middle.weight.var().item() == pytest.approx(2 / 400, rel=0.02)
    biases = [value for name, value in model.encoder.named_parameters() if name.endswith("bias")]
    assert biases
    assert not any(bias.any() for bias in biases)


@pytest.mark.parametrize("shape", [{}, *CONVOLUTIONS[1:]])
def test_dark_networks_are_he_s_but_for_the_last_layer_and_draw_dark_pictures_that_differ_less(
    shape: dict[str, Any],
) -> None:
    he, dark = (build(replace(SMALL, init=init, **shape), 0) for init in ("he", "dark"))
    apart = {name for name, weight in he.state_dict().items() if not torch.equal(weight, dark.state_dict()[name])}
    assert len(apart) == 2
    assert all(name.startswith("pixels") for name in apart)
    with torch.no_grad():
        codes, labels = draws(200, 1, 4), LABELS[:1]
        loud, quiet = he.decode(codes, labels), dark.decode(codes, labels)
    assert torch.allclose(quiet + 2, loud / 3, atol=1e-5)
    assert quiet.sigmoid().mean().item() == pytest.approx(0.13, abs=0.03)


def test_each_pixel_of_a_transposed_convolution_reads_a_stride_th_of_the_kernel() -> None:
    """Inner pixels of the doubled picture come out as loud as He's rule has it: twice the mean square that went in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1)
        initialise(layer)
    with torch.no_grad():
        inner = layer(draws(50, 64, 7, 7))[..., 2:-2, 2:-2]
    assert inner.square().mean().item() == pytest.approx(2, rel=0.05)


def test_presets_keep_the_layers_own_first_weights_and_convolutions_have_he_s() -> None:
    assert PRESETS["article"].init == PRESETS["strong"].init == "torch"
    assert resolve(model_params(init="he")).init == resolve(model_params(architecture="conv")).init == "he"
    assert resolve(model_params(architecture="resnet", init="torch")).init == "torch"
    own, he = (build(replace(SMALL, init=init), 0) for init in ("torch", "he"))
    # The code's own layers, which no ReLU follows, are torch's in both.
    assert torch.allclose(own.mu.weight.std(), he.mu.weight.std(), rtol=0.3)
    assert he.mu.bias.any()


@pytest.mark.parametrize("blocks", [1, 4, 16])
@pytest.mark.slow
def test_deeper_residual_networks_start_no_louder(blocks: int) -> None:
    """On average: two networks of one depth may differ by more."""

    def network(blocks: int) -> Convolutions:
        found = Convolutions(0, (16, 16), blocks, ())
        scale_down(found)
        return found

    def spread(blocks: int) -> float:
        several = (network(blocks)(images(5), None) for _ in range(30))
        return statistics.mean(features.std().item() for features in several)

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert 0.5 < spread(blocks) / spread(1) < 2


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"channels": [8]}, r"channels must be null where architecture is mlp, not \[8\]"),
        ({"blocks": 2}, "blocks must be null where architecture is mlp, not 2"),
        ({"architecture": "conv", "blocks": 2}, r"blocks must be null or 0 \(resnet has blocks\), not 2"),
        ({"architecture": "resnet", "blocks": 0}, "blocks must be at least 1 where architecture is resnet, not 0"),
        ({"architecture": "conv", "channels": []}, r"channels must be one or two sizes .*, not \[\]"),
        ({"architecture": "resnet", "channels": [8, 8, 8]}, r"channels must be one or two sizes .*, not \[8, 8, 8\]"),
        ({"architecture": "cnn"}, "architecture must be 'mlp', 'conv' or 'resnet', not 'cnn'"),
        ({"prior": "vamp"}, "prior must be 'standard', 'class' or 'mixture', not 'vamp'"),
        ({"prior_components": 0}, "prior_components must be greater than or equal to 1"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused_in_one_line(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=rf"^p\.yaml: model\.{rule}") as caught:
        parse(ModelParams, MODEL | change, "p.yaml: model")
    assert "\n" not in str(caught.value)


def test_one_hot_marks_the_label() -> None:
    assert one_hot(torch.tensor([2, 0]), torch.float64).tolist() == [[0, 0, 1] + [0] * 7, [1] + [0] * 9]


@pytest.mark.parametrize("convolutions", CONVOLUTIONS)
@pytest.mark.parametrize("sees", [False, True])
def test_the_encoder_knows_the_label_only_where_it_is_shown(sees: bool, convolutions: dict[str, Any]) -> None:
    model, x = build(replace(SMALL, encoder_sees_label=sees, **convolutions), 0), images(10)
    first, second = model.encode(x, LABELS), model.encode(x, LABELS.flip(0))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other) != sees


def test_the_encoder_looks_at_the_image() -> None:
    model = build(SMALL, 0)
    assert not torch.allclose(model.encode(images(10), LABELS)[0], model.encode(1 - images(10), LABELS)[0])


def test_the_same_seed_gives_the_same_weights_and_another_others() -> None:
    torch.manual_seed(5)
    first = weights(build(SMALL, 3))
    torch.manual_seed(6)
    assert torch.equal(weights(build(SMALL, 3)), first)
    assert not torch.equal(weights(build(SMALL, 4)), first)


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    build(SMALL, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_weight_takes_part_in_the_loss() -> None:
    for kind, convolutions in itertools.product(KINDS, CONVOLUTIONS):
        model = build(Architecture(16, (16,), (16,), kind, encoder_sees_label=True, **convolutions), 0)
        mu, log_var = model.encode(images(10), LABELS)
        model.decode(mu + log_var, LABELS).sum().backward()
        assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())


def chain(*sizes: int, seed: int = 0) -> list[nn.Linear]:
    """Linear layers whose units turn, stay on and stay off, for inputs around `around`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [nn.Linear(before, after).double() for before, after in itertools.pairwise(sizes)]


def around(count: int, size: int, spread: float) -> Tensor:
    return (draws(1, size, seed=1) + spread * draws(count, size, seed=2)).double()


def one_after_another(linears: list[nn.Linear], x: Tensor) -> Tensor:
    for layer in linears[:-1]:
        x = layer(x).relu()
    return linears[-1](x)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("sizes", [(5, 7), (3, 40, 9), (3, 40, 50, 9), (30, 8, 60, 9), (2, 60, 50, 40, 9)])
@pytest.mark.parametrize("count", [1, 2, 200])
def test_the_decoder_of_neighbours_equals_the_layers_one_after_another(
    count: int, sizes: tuple[int, ...], spread: float
) -> None:
    """Whether its units are all on or off, or turn, and whether a layer reads through the one before or not."""
    linears, x = chain(*sizes), around(count, sizes[0], spread)
    assert torch.allclose(Neighbours(linears)(x), one_after_another(linears, x), rtol=1e-11, atol=1e-11)


def test_the_decoder_of_neighbours_multiplies_less_where_they_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted on the way: near one another, few units turn; far from one another, most do."""
    multiplications: list[int] = []
    addmm = torch.addmm

    def counting(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        multiplications.append(a.shape[0] * a.shape[1] * b.shape[1])
        return addmm(bias, a, b)

    monkeypatch.setattr(torch, "addmm", counting)
    spent = []
    for spread in (0.01, 100.0):
        multiplications.clear()
        Neighbours(chain(4, 200, 200, 300))(around(500, 4, spread))
        spent.append(sum(multiplications))
    assert spent[0] < 0.6 * spent[1]


def test_the_decoder_of_neighbours_hides_no_nan() -> None:
    linears, x = chain(3, 40, 50, 9), around(20, 3, 0.1)
    with torch.no_grad():
        linears[0].weight[7] = torch.nan
    assert Neighbours(linears)(x).isnan().all()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_codes_of_one_label_are_decoded_as_among_others(preset: str, kind: Conditioning) -> None:
    model = build(replace(PRESETS[preset], conditioning=kind), 0)
    near = model.decoder_of_neighbours()
    assert near is not None
    z = 0.3 * draws(70, model.latent_size)
    for label in LABELS.split(1):
        assert torch.allclose(near(z, label), model.decode(z, label.expand(70)), atol=1e-5)


@pytest.mark.parametrize("convolutions", CONVOLUTIONS[1:])
def test_convolutions_decode_codes_of_one_label_by_few_at_a_time(
    convolutions: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(replace(SMALL, **convolutions), 0)
    z, label, seen = draws(70, model.latent_size), LABELS[3:4], []
    plain = model.decode
    whole = plain(z, label.expand(70))

    def decode(codes: Tensor, labels: Tensor) -> Tensor:
        seen.append(len(codes))
        return plain(codes, labels)

    monkeypatch.setattr("pipeline.model.cvae.CACHED", 32)
    monkeypatch.setattr(model, "decode", decode)
    near = model.decoder_of_neighbours()
    assert near is not None
    assert torch.allclose(near(z, label), whole, atol=1e-5)
    assert seen == [32, 32, 6]
