"""What `cvae reproduce article` concludes: sentences that follow from the figures, whatever these turn out to be."""

from collections.abc import Sequence

from pipeline.weight.article import BATCH_SIZE, TUNED, Result, find

MATTERS = 0.1  # difference of two shares that counts: one sample in ten


def claims(results: Sequence[Result]) -> list[str]:
    """On units, on the evidence lower bound, on the price of diversity, and on the encoder's label."""
    return [_of_units(results), _of_the_bound(results), _of_the_price(results), _of_the_label(results)]


def named(weight: float) -> str:
    """A weight as people write it: 1e-5, not 1e-05."""
    return f"{weight:g}".replace("e-0", "e-")


def _of_units(results: Sequence[Result]) -> str:
    one, tuned = find(results, 1.0), find(results, TUNED)
    size = one.member.architecture.latent_size
    weights = (
        f"The article's w = 1 is β = {one.member.kl_weight:,.0f}, and its w = {named(TUNED)} is β = "
        f"{tuned.member.kl_weight:.2f}, {one.member.kl_weight / tuned.member.kl_weight:,.0f} times less. "
    )
    found = [
        f"{result.figures['active_units']:.0f} of {size} units are active, kl is {result.figures['kl']:.3g} nats and "
        f"diversity is {result.figures['prior/diversity']:.2f}"
        for result in (one, tuned)
    ]
    end = "the weight alone does not decide whether this model collapses."
    if one.figures["active_units"] == 0 < tuned.figures["active_units"]:
        end = "the collapse is a matter of units."
    return f"{weights}At the first, {found[0]}. At the second, {found[1]}. So {end}"


def _of_the_bound(results: Sequence[Result]) -> str:
    own = sorted((one for one in results if one.member.is_articles), key=_elbo, reverse=True)
    tuned = find(results, TUNED)
    bound = (
        f"w = {named(TUNED)} at batch size {BATCH_SIZE} is the evidence lower bound to within "
        f"{abs(tuned.member.kl_weight - 1):.2%} of its KL"
    )
    best, next_best = own[:2]
    if best is tuned:
        return (
            f"{bound}. Of the {len(own)} weights trained it reaches the highest elbo: {_elbo(best):.1f} nats, against "
            f"{_elbo(next_best):.1f} at the next best, w = {named(next_best.member.weight)}."
        )
    return (
        f"{bound}. But of the {len(own)} weights trained w = {named(best.member.weight)} reaches the highest elbo: "
        f"{_elbo(best):.1f} nats, against {_elbo(tuned):.1f}."
    )


def _of_the_price(results: Sequence[Result]) -> str:
    one, tuned = find(results, 1.0).figures, find(results, TUNED).figures
    diversity, accuracy = ((one[name], tuned[name]) for name in ("prior/diversity", "prior/class_accuracy"))
    moved = (
        f"From w = 1 to {named(TUNED)}, diversity of samples from the prior goes from {diversity[0]:.2f} to "
        f"{diversity[1]:.2f}, and class_accuracy from {accuracy[0]:.2f} to {accuracy[1]:.2f}"
    )
    if not (diversity[0] < diversity[1] and accuracy[0] > accuracy[1]):
        return f"{moved}: here diversity does not cost accuracy."
    return (
        f"{moved}: diversity costs accuracy. The latent encodes the digit (a linear discriminant reads "
        f"{tuned['digit_in_latent']:.0%} of the digits from it), and the prior does not know which digit was asked for."
    )


def _of_the_label(results: Sequence[Result]) -> str:
    blind, seeing = find(results, TUNED), find(results, TUNED, encoder_sees_label=True)
    freed = blind.figures["digit_in_latent"] - seeing.figures["digit_in_latent"] >= MATTERS
    helped = _accuracy(seeing) - _accuracy(blind) >= MATTERS
    outcome = {
        (True, True): "the latent no longer has to encode the digit",
        (True, False): "the latent encodes the digit less, but samples are no better",
        (False, True): "samples are better, although the latent encodes the digit as before",
        (False, False): "this alone changes little",
    }[freed, helped]
    best = max((one for one in results if one.member.weight == TUNED), key=_accuracy)
    encoder = "sees the label" if best.member.encoder_sees_label else "does not see it"
    return (
        f"If the article's encoder sees the label, {seeing.figures['digit_in_latent']:.0%} of the digits can be read "
        f"from the latents, and class_accuracy is {_accuracy(seeing):.2f}: {outcome}. Of all shapes at w = "
        f"{named(TUNED)}, the highest class_accuracy is {_accuracy(best):.2f}, with {best.member.conditioning} and an "
        f"encoder that {encoder}."
    )


def _elbo(result: Result) -> float:
    return result.figures["elbo"]


def _accuracy(result: Result) -> float:
    return result.figures["prior/class_accuracy"]
