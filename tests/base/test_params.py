"""Params: what is right is read as its type; what is wrong gives one line with file, key, rule and value."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from settings import OBJECTIVE

from pipeline.base import params
from pipeline.base.errors import UserError
from pipeline.base.params import Range
from pipeline.completion.model import CompletionParams, EvaluateCompletionParams
from pipeline.data.download import DataParams
from pipeline.measure.evaluator import EvaluateParams
from pipeline.measure.judge import JudgeParams
from pipeline.model.cvae import ModelParams
from pipeline.model.density import SampleParams
from pipeline.training.fit import TrainParams
from pipeline.training.objective import ObjectiveParams

OURS = Path(__file__).parents[2] / "params.yaml"
OWNERS: list[tuple[str, type]] = [
    ("data", DataParams),
    ("model", ModelParams),
    ("objective", ObjectiveParams),
    ("train", TrainParams),
    ("sample", SampleParams),
    ("evaluate", EvaluateParams),
    ("judge", JudgeParams),
    ("completion", CompletionParams),
    ("evaluate_completion", EvaluateCompletionParams),
]
RECIPES = sorted((OURS.parent / "recipes").glob("*.yaml"))


@dataclass(frozen=True)
class Settings:
    """One field of every kind that a section may hold."""

    count: Annotated[int, Range(least=1, most=10)]
    rate: Annotated[float, Range(above=0, below=1)]
    name: str
    fast: bool
    colour: Literal["grey", "binary"]
    sizes: tuple[Annotated[int, Range(least=1)], ...]
    limit: Annotated[int, Range(least=1)] | None


GOOD: dict[str, Any] = {
    "count": 3, "rate": 0.5, "name": "a", "fast": True, "colour": "grey", "sizes": [4, 5], "limit": None,
}  # fmt: skip


def parse(**changes: Any) -> Settings:
    return params.parse(Settings, GOOD | changes, "p.yaml: train")


def complaint(content: str | bytes, folder: Path) -> str:
    """What a user reads who loads Settings from a file with this content: one line that starts with its path."""
    path = folder / "p.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        params.load(Settings, "train", path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_good_values_are_read_as_they_are() -> None:
    assert parse() == Settings(3, 0.5, "a", True, "grey", (4, 5), None)


def test_comments_and_order_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "# first\ntrain:\n  limit: 7 # seven\n  sizes: []\n  colour: binary\n  fast: false\n  name: b\n"
        "  rate: 0.25\n  count: 10\n",
        encoding="utf-8",
    )
    assert params.load(Settings, "train", path) == Settings(10, 0.25, "b", False, "binary", (), 7)


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "'1e-5'", "0.00001", ".00001"])
def test_a_small_number_may_be_written_in_any_way(text: str, tmp_path: Path) -> None:
    """DVC writes 1e-5 without a point, which YAML 1.1 takes for a text."""
    path = tmp_path / "p.yaml"
    rest = ", ".join(f"{key}: {value or 0}" for key, value in OBJECTIVE.items() if key != "kl_weight")
    path.write_text(f"objective: {{kl_weight: {text}, {rest}}}", encoding="utf-8")
    assert params.load(ObjectiveParams, "objective", path).kl_weight == 1e-5


def test_a_whole_number_will_do_for_a_number() -> None:
    value = params.parse(ObjectiveParams, OBJECTIVE | {"kl_weight": 1}, "o").kl_weight
    assert (value, type(value)) == (1.0, float)


@pytest.mark.parametrize("value", [1, 10])
def test_a_range_holds_its_own_bounds(value: int) -> None:
    assert parse(count=value).count == value


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("count", 0, "at least 1 and at most 10"),
        ("count", 11, "at least 1 and at most 10"),
        ("count", True, "a whole number"),
        ("count", 3.0, "a whole number"),
        ("count", "3", "a whole number"),
        ("count", None, "a whole number"),
        ("rate", 0, "above 0 and below 1"),
        ("rate", 1.0, "above 0 and below 1"),
        ("rate", float("nan"), "above 0 and below 1"),
        ("rate", "nan", "above 0 and below 1"),
        ("rate", float("inf"), "above 0 and below 1"),
        ("rate", "fast", "a number"),
        ("rate", "", "a number"),
        ("rate", False, "a number"),
        ("rate", [0.5], "a number"),
        ("rate", None, "a number"),
        ("name", 5, "a text"),
        ("name", None, "a text"),
        ("fast", 1, "true or false"),
        ("fast", "yes", "true or false"),
        ("fast", None, "true or false"),
        ("colour", "gery", "one of grey, binary"),
        ("colour", None, "one of grey, binary"),
        ("colour", ["grey"], "one of grey, binary"),
        ("sizes", 4, "a list"),
        ("sizes", "45", "a list"),
        ("sizes", None, "a list"),
        ("limit", 0, "at least 1"),
        ("limit", "none", "a whole number"),
    ],
)
def test_a_broken_rule_is_named_with_its_key_and_the_value(key: str, value: Any, rule: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(**{key: value})
    message = str(caught.value)
    assert message.startswith(f"p.yaml: train.{key} ")
    assert rule in message
    assert f"not {'nan' if str(value) == 'nan' else repr(value)}" in message
    assert "\n" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_range_without_bounds_still_wants_a_finite_number(value: float) -> None:
    with pytest.raises(UserError, match="x must be finite"):
        params.parse(dataclasses.make_dataclass("Free", [("x", Annotated[float, Range()])]), {"x": value}, "p")


def test_a_bad_item_of_a_list_is_named_by_its_place() -> None:
    with pytest.raises(UserError, match=r"p\.yaml: train\.sizes\[1\] must be at least 1, not 0"):
        parse(sizes=[4, 0])


def test_null_is_allowed_where_the_owner_says_so_and_a_value_is_then_held_to_its_rule() -> None:
    assert parse(limit=None).limit is None
    assert parse(limit=5).limit == 5


def test_a_misspelt_value_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'grey'"):
        parse(colour="gray")


def test_a_misspelt_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"train\.colur: unknown key; did you mean 'colour'"):
        parse(colur="grey")


def test_a_word_like_no_other_gets_no_guess() -> None:
    with pytest.raises(UserError, match=r"train\.zzzz: unknown key$"):
        parse(zzzz=1)


def test_a_key_that_is_no_text_is_unknown_too(tmp_path: Path) -> None:
    assert complaint("train: {1: 2}", tmp_path) == ": train.1: unknown key"


@pytest.mark.parametrize("key", GOOD)
def test_no_key_has_a_default(key: str) -> None:
    with pytest.raises(UserError, match=rf"p\.yaml: train\.{key} is missing"):
        params.parse(Settings, {name: value for name, value in GOOD.items() if name != key}, "p.yaml: train")


def test_a_misspelt_section_is_answered_with_the_nearest(tmp_path: Path) -> None:
    assert complaint("trian: {}", tmp_path) == ": unknown section 'trian'; did you mean 'train'?"


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    assert complaint("model: {}", tmp_path) == ": section 'train' is missing"


@pytest.mark.parametrize("content", ["train:", "train: 5", "train: [epochs]", "train: text"])
def test_a_section_must_be_a_mapping(content: str, tmp_path: Path) -> None:
    assert "train must be a mapping of keys to values" in complaint(content, tmp_path)


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "just words", "- a\n- b", "7"])
def test_a_file_must_hold_sections(content: str, tmp_path: Path) -> None:
    assert "must hold sections (data, judge, model" in complaint(content, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "train: [",
        "train: {epochs: 1",
        "train:\n\tepochs: 1",
        "train:\n  epochs: 1\n epochs: 2",
        "train: {epochs: 1, epochs: 2}",
        "train: *nobody",
        "train: {}\n---\ntrain: {}",
        "train: !!python/object:os.system {}",
        b"\xff\xfe\x00",
    ],
)
def test_broken_yaml_is_reported_in_one_line(content: str | bytes, tmp_path: Path) -> None:
    assert complaint(content, tmp_path).startswith(" is no valid YAML: ")


def test_a_missing_file_names_the_folder_to_run_in(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"p\.yaml not found: run this in the project's folder"):
        params.load(Settings, "train", tmp_path / "p.yaml")


def test_a_folder_in_place_of_the_file_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        params.read(tmp_path)


@pytest.mark.parametrize(("section", "owner"), OWNERS)
def test_our_own_params_load_into_their_owner(section: str, owner: type) -> None:
    assert isinstance(params.load(owner, section, OURS), owner)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_changes_what_there_is_to_values_that_are_allowed(recipe: Path) -> None:
    ours, owners = params.read(OURS), dict(OWNERS)
    for section, changes in params.read(recipe).items():
        assert all(ours[section][key] != value for key, value in changes.items())
        params.parse(owners[section], ours[section] | changes, section)


@pytest.mark.parametrize(("section", "owner"), OWNERS)
def test_every_key_of_our_params_has_an_owner_without_defaults(section: str, owner: type) -> None:
    fields = dataclasses.fields(owner)
    assert set(params.read(OURS)[section]) == {field.name for field in fields}
    assert all(field.default is field.default_factory is dataclasses.MISSING for field in fields)


@pytest.mark.parametrize(("section", "owner"), OWNERS)
def test_plain_params_are_read_back_as_they_were(section: str, owner: type) -> None:
    loaded: Any = params.load(owner, section, OURS)
    assert params.parse(owner, params.plain(loaded), section) == loaded


def test_one_key_of_another_section_is_held_to_the_same_rule(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("train: {device: 5, seed: 3}", encoding="utf-8")
    assert params.load_key(int, "train", "seed", path) == 3
    with pytest.raises(UserError, match=r"p\.yaml: train\.device must be a text, not 5"):
        params.load_key(str, "train", "device", path)


@pytest.mark.parametrize("content", ["model: {}", "train:", "train: {seed: 1}"])
def test_one_key_that_is_not_there_is_missing(content: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.device is missing"):
        params.load_key(str, "train", "device", path)


def test_flat_names_every_value_by_section_and_key() -> None:
    named = params.flat({"train": parse(), "sample": SampleParams("prior", 3, "mean")})
    assert named["train.sizes"] == [4, 5]
    assert named["sample.components"] == 3
    assert len(named) == len(GOOD) + 3


def test_a_digest_tells_values_apart_and_forgets_the_order_of_keys() -> None:
    assert params.digest({"a": 1, "b": 2}) == params.digest({"b": 2, "a": 1})
    assert params.digest({"a": 1}) != params.digest({"a": 2})
    assert params.digest(1, 2) != params.digest([1, 2], [])


@pytest.mark.parametrize("value", ["auto", 3])
def test_a_word_may_stand_in_place_of_a_number(value: Any) -> None:
    @dataclass(frozen=True)
    class Sized:
        size: Literal["auto"] | Annotated[int, Range(least=1)]

    assert params.parse(Sized, {"size": value}, "p.yaml: tune").size == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "p.yaml: tune.size must be at least 1, not 0; or auto"),
        ("many", "p.yaml: tune.size must be a whole number, not 'many'; or auto"),
        (None, "p.yaml: tune.size must be a whole number, not None; or auto"),
    ],
)
def test_neither_the_word_nor_a_number_is_said_so(value: Any, message: str) -> None:
    @dataclass(frozen=True)
    class Sized:
        size: Literal["auto"] | Annotated[int, Range(least=1)]

    with pytest.raises(UserError) as caught:
        params.parse(Sized, {"size": value}, "p.yaml: tune")
    assert str(caught.value) == message


# Writing

TEXT = """\
# What matters

model:
  latent_size: null    # the preset's
  conditioning: sum
objective:
  kl_weight: 0.3         # β; 1 is the bound
  'pixels': "grey"  # quoted
train:
  learning_rate: 1e-3
"""


def write(text: str, changes: dict[tuple[str, str], Any], folder: Path) -> str:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    sections = ("model", "objective", "train")
    assert set(params.write(changes, path)) == set(changes)
    assert all(params.read(path)[section][key] == value for (section, key), value in changes.items())
    assert set(params.read(path)) == set(sections)
    return path.read_text(encoding="utf-8")


def test_a_value_is_written_in_place_and_its_comment_stays_where_it_was(tmp_path: Path) -> None:
    changed = write(TEXT, {("objective", "kl_weight"): 0.1234}, tmp_path)
    assert changed == TEXT.replace("kl_weight: 0.3         #", "kl_weight: 0.1234      #")


@pytest.mark.parametrize(
    ("key", "value", "old", "new"),
    [
        (("objective", "kl_weight"), 2, "0.3         #", "2           #"),
        (("objective", "kl_weight"), 0.2837465123456789, "0.3         #", "0.2837465123456789 #"),
        (("objective", "pixels"), "binary", '"grey"  #', '"binary" #'),
        (("model", "latent_size"), 8, "null    #", "8       #"),
        (("model", "conditioning"), "concat", "sum\n", '"concat"\n'),
        (("train", "learning_rate"), 5e-4, "1e-3\n", "0.0005\n"),
    ],
)
def test_whatever_the_value_the_rest_stays(
    key: tuple[str, str], value: Any, old: str, new: str, tmp_path: Path
) -> None:
    assert write(TEXT, {key: value}, tmp_path) == TEXT.replace(old, new)


def test_line_ends_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    params.write({("objective", "kl_weight"): 0.1234, ("train", "learning_rate"): 0.1}, path)
    changed = path.read_bytes()
    assert changed.count(b"\n") == changed.count(b"\r\n") == TEXT.count("\n")
    assert params.read(path)["train"] == {"learning_rate": 0.1}


def test_several_values_are_written_at_once_and_the_old_ones_told(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT, encoding="utf-8")
    before = params.write({("objective", "kl_weight"): 1.0, ("train", "learning_rate"): 0.01}, path)
    assert before == {("objective", "kl_weight"): 0.3, ("train", "learning_rate"): 1e-3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.replace("kl_weight", "weight"), "objective.kl_weight is missing"),
        ("objective: {kl_weight: 0.3, pixels: grey}\n", "can't be changed in place: write each on a line of its own"),
        ("objective:\n  kl_weight:\n    0.3\n  other: 1\n", None),
    ],
)
def test_a_file_that_cannot_be_changed_is_left_as_it_is(text: str, message: str | None, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    if message is None:
        params.write({("objective", "kl_weight"): 0.5}, path)
        assert params.read(path)["objective"] == {"kl_weight": 0.5, "other": 1}
        return
    with pytest.raises(UserError, match=message):
        params.write({("objective", "kl_weight"): 0.5}, path)
    assert path.read_text(encoding="utf-8") == text


def test_the_repositorys_own_params_can_be_promoted_into(tmp_path: Path) -> None:
    text = OURS.read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    keys = [("objective", "kl_weight"), ("train", "learning_rate"), ("model", "latent_size"), ("model", "conditioning")]
    params.write(dict(zip(keys, [0.5, 0.001, 8, "sum"], strict=True)), path)
    changed = path.read_text(encoding="utf-8").splitlines()
    assert sum(old != new for old, new in zip(text.splitlines(), changed, strict=True)) == 4


def test_a_key_that_came_later_leaves_hashes_as_they_were() -> None:
    before, after = parse(), parse(limit=4)
    assert "limit" not in params.hashed(before, limit=None)
    assert params.hashed(after, limit=None) == params.plain(after)
    assert params.hashed(before) == params.plain(before)
