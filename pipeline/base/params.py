"""Strict reading of params.yaml.

Each section belongs to one module, which declares it as a class with the decorator `params`. Such a class has no
defaults: the file alone holds the values. A field's annotation is its rule. The text below a field is the comment of
its key in the file.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
import sys
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

import pydantic.dataclasses
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pipeline.base.errors import UserError
from pipeline.base.files import replacing

FILE = "params.yaml"
MOST = 100_000  # values in a file
LARGEST = 2**63 - 1
RULES = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def params(owner: type[T]) -> type[T]:
    """Makes a class of annotated fields a section of params.yaml: a frozen dataclass that checks its values."""
    return cast("type[T]", pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=RULES)(owner))


def _from_text(value: Any) -> Any:
    """YAML 1.1 takes 1e-5, without a point, for a text, and so do some editors."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Number = Annotated[float, BeforeValidator(_from_text)]


@dataclasses.dataclass(frozen=True)
class Neutral:
    """In a field's annotation: the value with which this key changes nothing.

    `hashed` leaves the key out at this value, so that a key that came later does not change the hashes of what was
    measured before.
    """

    value: Any


def read(path: Path | str = FILE) -> dict[str, Any]:
    """The whole file as plain dictionaries. Raises UserError where it is missing or not valid YAML."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = Path(path)
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} not found: run this in the project's folder, where params.yaml is") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold sections, such as train")
    if _size(content, {}) > MOST:
        raise UserError(f"{path} has more than {MOST:.0e} values, with all that `*` repeats: give fewer")
    for section, values in content.items():
        for key, value in values.items() if isinstance(values, dict) else ():
            numbers = value if isinstance(value, list) else [value]
            if any(isinstance(one, int) and abs(one) > LARGEST for one in numbers):
                raise UserError(f"{path}: {section}.{key} is beyond {LARGEST:.0e}: give a smaller number")
    return content


def _size(value: Any, known: dict[int, float]) -> float:
    """How many values it holds, each as often as it is repeated; a list in itself holds infinitely many."""
    if not isinstance(value, list | dict):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        known[id(value)] = sum(_size(one, known) for one in (value.values() if isinstance(value, dict) else value))
    return known[id(value)]


def load(owner: type[T], section: str, path: Path | str = FILE) -> T:
    """One section of the file as its owner's class. Raises UserError at the first broken rule."""
    return parse(owner, read(path).get(section), f"{path}: {section}")


def load_key(rule: Any, section: str, key: str, path: Path | str = FILE) -> Any:
    """One key of a section, held to `rule` (an annotation), for a reader that depends on that key alone."""
    values = read(path).get(section)
    if not isinstance(values, Mapping) or key not in values:
        raise UserError(f"{path}: {section}.{key} is missing")
    try:
        return _checked(rule, values[key])
    except ValidationError as error:
        raise UserError(f"{path}: {section}.{key}{_said(error.errors())}") from None


def parse(owner: type[T], values: Any, where: str) -> T:
    """`values` (a mapping) as the class `owner`; an error names the place as `where`."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must hold keys with values, not {values!r}")
    try:
        return _checked(owner, values)
    except ValidationError as error:
        errors = error.errors()
    if errors[0]["type"] == "json_invalid":  # what JSON can't hold, such as a list nested a thousand times
        raise UserError(f"{where} can't be read: {errors[0]['msg']}")
    for one in errors:  # before what is missing: a misspelt key is both
        if one["type"] == "unexpected_keyword_argument":
            key = one["loc"][0]
            raise UserError(f"{where}.{key}: unknown key{did_you_mean(key, typing.get_type_hints(owner))}")
    if errors[0]["type"] == "value_error":  # a rule on several keys, whose message begins with one of them
        raise UserError(f"{where}.{errors[0]['ctx']['error']}")
    key = errors[0]["loc"][0]
    of_key = [one for one in errors if one["loc"][0] == key]
    raise UserError(f"{where}.{key}{_said(of_key)}")


def _checked(rule: Any, value: Any) -> Any:
    """By the rules for JSON, which has lists and no tuples. What YAML alone knows, such as dates, becomes a text."""
    return TypeAdapter(rule).validate_json(json.dumps(value, default=str), strict=True)


def _said(errors: list[ErrorDetails]) -> str:
    """What is wrong with one value, after its key: the place in a list, each alternative's rule, and the value."""
    if errors[0]["type"] == "missing":
        return " is missing"
    places = ["".join(f"[{part}]" for part in one["loc"] if isinstance(part, int)) for one in errors]
    place, value = places[0], errors[0]["input"]
    said = [one["msg"].removeprefix("Input should be ").replace("a valid array", "a list") for one in errors]
    rules = [rule for rule, at in zip(said, places, strict=True) if at == place]
    words = [word for rule in rules for word in re.findall("'(.*?)'", rule)]
    return f"{place} must be {' or '.join(rules)}, not {value!r}{did_you_mean(value, words)}"


def write(changes: Mapping[tuple[str, str], Any], path: Path | str = FILE) -> dict[tuple[str, str], Any]:
    """Sets (section, key) values in the file; comments and layout stay. Returns the values before.

    Raises UserError where the file has no such key.
    """
    from ruamel.yaml import YAML

    content, path, before = read(path), Path(path), {}
    yaml = YAML()
    yaml.width = sys.maxsize
    marked = yaml.load(path.read_text(encoding="utf-8"))
    for (section, key), value in changes.items():
        if key not in content.get(section, {}):
            raise UserError(f"{path}: {section}.{key} is missing")
        before[section, key] = content[section][key]
        marked[section][key] = value
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        yaml.dump(marked, file)
    return before


def plain(params: Any) -> dict[str, Any]:
    """A params class, another dataclass or a dictionary as what JSON and YAML can hold; `parse` reads it back."""
    values = params if isinstance(params, dict) else dataclasses.asdict(params)
    result: dict[str, Any] = json.loads(json.dumps(values))
    return result


def hashed(params: Any) -> dict[str, Any]:
    """`plain` for hashes: without the keys that have their `Neutral` value."""
    values = plain(params)
    for key, rule in typing.get_type_hints(type(params), include_extras=True).items():
        if any(isinstance(note, Neutral) and values[key] == note.value for note in getattr(rule, "__metadata__", ())):
            del values[key]
    return values


def flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """`{"train": TrainParams(epochs=20)}` as `{"train.epochs": 20}`."""
    return {f"{name}.{key}": value for name, params in sections.items() for key, value in plain(params).items()}


def digest(*parts: Any) -> str:
    """A short hash of plain values, the same on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def did_you_mean(word: object, choices: Iterable[str]) -> str:
    """`; did you mean 'train'?` where a choice is close to the word, else nothing."""
    close = difflib.get_close_matches(str(word), choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
