"""Params: right values are read; a wrong one gives one line with file, key, rule and value."""

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from pipeline.base import params
from pipeline.base.errors import UserError
from pipeline.base.params import Neutral, Number

OURS = Path(__file__).parents[2] / "params.yaml"


@params.params
class Settings:
    count: Annotated[int, Field(ge=1, le=10)]
    rate: Annotated[Number, Field(gt=0, lt=1)]
    name: str
    fast: bool
    colour: Literal["grey", "binary"]
    sizes: tuple[Annotated[int, Field(ge=1)], ...]
    limit: Annotated[int | None, Field(ge=1), Neutral(2)]
    size: Literal["auto"] | Annotated[int, Field(ge=1)]

    def __post_init__(self) -> None:
        if self.fast and self.count == 9:
            raise ValueError(f"count must be below 9 where fast is true, not {self.count}")


GOOD: dict[str, Any] = {
    "count": 3, "rate": 0.5, "name": "a", "fast": True, "colour": "grey", "sizes": [4, 5], "limit": None,
    "size": "auto",
}  # fmt: skip


def parse(**changes: Any) -> Settings:
    return params.parse(Settings, GOOD | changes, "p.yaml: train")


def test_good_values_are_read_as_they_are() -> None:
    expected = parse()
    assert (expected.rate, expected.sizes, expected.limit) == (0.5, (4, 5), None)
    assert params.parse(Settings, params.plain(expected), "p") == expected
    assert params.flat({"train": expected})["train.sizes"] == [4, 5]


@pytest.mark.parametrize("text", ["1e-5", "'1e-5'", ".00001"])
def test_a_small_number_may_be_written_in_any_way(text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"train: {{value: {text}}}", encoding="utf-8")
    assert params.load_key(Number, "train", "value", path) == 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": True}, "count must be a valid integer, not True"),
        ({"rate": "nan"}, "rate must be a finite number, not nan"),
        ({"sizes": [4, 0, 0]}, "sizes[1] must be greater than or equal to 1, not 0"),
        ({"size": "many"}, "size must be 'auto' or a valid integer, not 'many'"),
        ({"colour": "gray"}, "colour must be 'grey' or 'binary', not 'gray'; did you mean 'grey'?"),
        ({"colur": "grey"}, "colur: unknown key; did you mean 'colour'?"),
        ({"count": 9}, "count must be below 9 where fast is true, not 9"),
    ],
)
def test_an_error_names_place_rule_and_value_and_what_was_meant(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(**changes)
    assert str(caught.value) == f"p.yaml: train.{message}"


def test_no_key_has_a_default() -> None:
    for key in GOOD:
        with pytest.raises(UserError, match=rf"^p: {key} is missing$|^p\.{key} is missing$"):
            params.parse(Settings, {name: value for name, value in GOOD.items() if name != key}, "p")


BOMB = "".join(f"a{n}: &a{n} [0, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 21))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: {1: 2}", ": train.1: unknown key"),
        ("model: {}", ": train must hold keys with values, not None"),
        ("- a", " must hold sections, such as train"),
        ("train: !!python/object:os.system {}", " is not valid YAML: "),
        ("train: {count: " + "1" * 5000 + "}", " is not valid YAML: "),
        ("train: " + "[" * 600 + "]" * 600, " is not valid YAML: "),
        ("train: &a [*a]", " has more than 1e+05 values"),
        ("a0: &a0 []\n" + BOMB + "train: *a20", " has more than 1e+05 values"),
    ],
)
def test_a_broken_file_is_reported_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        params.load(Settings, "train", path)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


def test_one_key_of_another_section_is_held_to_the_same_rule(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("train: {device: 5, seed: 3}", encoding="utf-8")
    assert params.load_key(int, "train", "seed", path) == 3
    with pytest.raises(UserError, match=r"p\.yaml: train\.device must be a valid string, not 5"):
        params.load_key(str, "train", "device", path)
    with pytest.raises(UserError, match=r"model\.seed is missing"):
        params.load_key(int, "model", "seed", path)
    with pytest.raises(UserError, match=r"not found: run this in the project's folder"):
        params.load_key(int, "train", "seed", tmp_path / "none.yaml")


def test_a_hash_leaves_out_a_key_that_changes_nothing_and_forgets_the_order_of_keys() -> None:
    assert "limit" not in params.hashed(parse(limit=2))
    assert params.hashed(parse(limit=3)) == params.plain(parse(limit=3))
    assert params.digest({"a": 1, "b": 2}) == params.digest({"b": 2, "a": 1})
    assert params.digest(1, 2) != params.digest([1, 2], [])


# Writing


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A copy of the project's params.yaml."""
    return Path(shutil.copy(OURS, tmp_path))


def changed(path: Path) -> list[list[str]]:
    """The words before the comments of the lines in which a file differs from the project's; the comments are kept."""
    pairs = zip(OURS.read_text(encoding="utf-8").split("\n"), path.read_text(encoding="utf-8").split("\n"), strict=True)
    halves = [(old.partition("#"), new.partition("#")) for old, new in pairs if old != new]
    assert all(old[2] == new[2] for old, new in halves)
    return [new[0].split() for _, new in halves]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("objective", "kl_weight", 0.2837465123456789), ("model", "latent_size", 8), ("train", "device", None)],
)
def test_a_value_is_written_in_place_and_the_rest_stays(section: str, key: str, value: Any, ours: Path) -> None:
    before = params.write({(section, key): value}, ours)
    assert changed(ours) == [[f"{key}:", *([] if value is None else [str(value)])]]
    assert params.read(ours)[section][key] == value
    assert params.write(before, ours) == {(section, key): value}
    assert params.read(ours) == params.read(OURS)


def test_a_missing_key_cannot_be_written(ours: Path) -> None:
    with pytest.raises(UserError, match=r"train\.epoch is missing"):
        params.write({("objective", "kl_weight"): 0.5, ("train", "epoch"): 5}, ours)
    assert changed(ours) == []


def test_what_dvc_sets_changes_one_line_of_our_params(ours: Path) -> None:
    """`dvc exp run -S` writes the whole file in its own style, which is therefore ours; `write` then works on it."""
    pytest.importorskip("dvc.utils.hydra").apply_overrides(ours, ["objective.kl_weight=1e-5"])
    params.write({("model", "latent_size"): 8}, ours)
    assert changed(ours) == [["latent_size:", "8"], ["kl_weight:", "1e-05"]]
    assert params.read(ours)["objective"]["kl_weight"] == 1e-5
