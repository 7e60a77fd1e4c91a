"""Strict reading of params.yaml into frozen dataclasses.

Each section belongs to one module, which describes it by a dataclass without defaults: the file alone holds the
values. A field's annotation is its rule, `Annotated[float, Range(above=0)]`, `Literal["grey", "binary"]` or
`tuple[...]`; `load` checks every one of them and names file, key, rule and value where one is broken.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from pipeline.base.errors import UserError
from pipeline.base.files import replacing

FILE = "params.yaml"
SECTIONS = (
    "data", "judge", "model", "objective", "train", "sample", "evaluate", "tune", "completion", "evaluate_completion",
    "tracking",
)  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The numbers a field may hold. The bounds belong to the range, except `above` and `below`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        return (
            abs(value) < math.inf
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = [("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below)]
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None) or "finite"


def read(path: Path | str = FILE) -> dict[str, Any]:
    """The whole file as plain dictionaries. Raises UserError where it is missing, no YAML, or has unknown sections."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = Path(path)
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} not found: run this in the project's folder, where params.yaml is") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except (YAMLError, ValueError) as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold sections ({', '.join(SECTIONS)}), not {_kind(content)}")
    for section in content:
        if section not in SECTIONS:
            raise UserError(f"{path}: unknown section {section!r}{_did_you_mean(section, SECTIONS)}")
    return content


def load(owner: type[T], section: str, path: Path | str = FILE) -> T:
    """One section of the file as its owner's dataclass. Raises UserError at the first broken rule."""
    content = read(path)
    if section not in content:
        raise UserError(f"{path}: section {section!r} is missing")
    return parse(owner, content[section], f"{path}: {section}")


def load_key(rule: Any, section: str, key: str, path: Path | str = FILE) -> Any:
    """One key of a section, held to `rule` (an annotation), for a reader that depends on that key alone."""
    values = read(path).get(section)
    if not isinstance(values, Mapping) or key not in values:
        raise UserError(f"{path}: {section}.{key} is missing")
    return _checked(rule, values[key], f"{path}: {section}.{key}")


def parse(owner: type[T], values: Any, where: str) -> T:
    """`values` (a mapping) as the dataclass `owner`; `where` is how an error names the place."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must be a mapping of keys to values, not {_kind(values)}")
    rules = typing.get_type_hints(owner, include_extras=True)
    for key in values:
        if key not in rules:
            raise UserError(f"{where}.{key}: unknown key{_did_you_mean(key, rules)}")
    missing = [key for key in rules if key not in values]
    if missing:
        raise UserError(f"{where}.{missing[0]} is missing")
    checked = {key: _checked(rule, values[key], f"{where}.{key}") for key, rule in rules.items()}
    try:
        return owner(**checked)
    except ValueError as error:  # an owner's own rule, on keys that don't go together: its message begins with one
        raise UserError(f"{where}.{error}") from None


def write(changes: Mapping[tuple[str, str], Any], path: Path | str = FILE) -> dict[tuple[str, str], Any]:
    """Sets (section, key) values in the file, and nothing else: comments and layout stay. Returns the values before.

    Raises UserError where the file has no such key. Each value must stand on one line, as a scalar.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    content = read(path)
    path = Path(path)
    with open(path, encoding="utf-8", newline="") as file:  # line ends stay as they are
        text = file.read()
    marked = YAML().load(text)  # knows the line and column of each value
    lines, before = text.split("\n"), {}
    for (section, key), value in changes.items():
        if key not in content.get(section, {}):
            raise UserError(f"{path}: {section}.{key} is missing")
        before[section, key] = content[section][key]
        row, start = marked[section].lc.value(key)
        line = lines[row]
        comment = re.search(r"\s+#.*$|\s*$", line[start:])
        end = start + (comment.start() if comment else len(line[start:]))
        new = json.dumps(value)  # numbers, words, true, false and null are written alike in JSON and YAML
        # A comment keeps its column where the spaces before it can give way.
        rest = line[end:]
        spare = len(rest) - len(rest.lstrip(" "))
        room = max(spare - (len(new) - (end - start)), 1) if rest.strip() else 0
        lines[row] = line[:start] + new + " " * room + rest.lstrip(" ")
    changed = "\n".join(lines)
    expected = {name: dict(values) if isinstance(values, Mapping) else values for name, values in content.items()}
    for (section, key), value in changes.items():
        expected[section][key] = value
    try:
        written = YAML(typ="safe", pure=True).load(changed)
    except YAMLError:
        written = None
    if written != expected:
        raise UserError(
            f"{path}: its values can't be changed in place: write each on a line of its own, an empty one as null"
        )
    with replacing(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
        file.write(changed)
    return before


def plain(params: Any) -> dict[str, Any]:
    """A params dataclass as what JSON and YAML can hold; `parse` reads it back."""
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(params)))
    return result


def hashed(params: Any, **before: Any) -> dict[str, Any]:
    """`plain`, as hashes know it: without each key of `before` that has the value given there.

    A key that came later leaves the hashes of what was measured before it as they were.
    """
    values = plain(params)
    return {key: value for key, value in values.items() if key not in before or value != before[key]}


def flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """`{"train": TrainParams(epochs=20)}` as `{"train.epochs": 20}`."""
    return {f"{name}.{key}": value for name, params in sections.items() for key, value in plain(params).items()}


def digest(*parts: Any) -> str:
    """A short hash of plain values, the same on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _checked(rule: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(rule), typing.get_args(rule)
    if origin is typing.Annotated:
        kind, *ranges = arguments
        value = _checked(kind, value, where)
        for limits in ranges:
            if value is not None and not limits.holds(value):
                raise UserError(f"{where} must be {limits}, not {value!r}")
        return value
    if origin in (Union, types.UnionType):  # `X | None`, or a word in place of a value: `Literal["auto"] | X`
        if value is None and types.NoneType in arguments:
            return None
        rules = [argument for argument in arguments if argument is not types.NoneType]
        if len(rules) == 1:
            return _checked(rules[0], value, where)
        words, others = _apart(rules)
        if value in words:
            return value
        try:
            return _checked(others[0], value, where)
        except UserError as error:
            raise UserError(f"{error}; or {', '.join(words)}" if words else str(error)) from None
    if origin is Literal:
        if value not in arguments:
            hint = _did_you_mean(value, arguments) if isinstance(value, str) else ""
            raise UserError(f"{where} must be one of {', '.join(map(str, arguments))}, not {value!r}{hint}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where} must be a list, not {value!r}")
        return tuple(_checked(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    return _scalar(rule, value, where)


def _apart(rules: list[Any]) -> tuple[list[str], list[Any]]:
    """The words and the other rules of a union."""
    literal = [rule for rule in rules if typing.get_origin(rule) is Literal]
    return [word for rule in literal for word in typing.get_args(rule)], [rule for rule in rules if rule not in literal]


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, str):
        # DVC writes 1e-5 without a point, which YAML 1.1 readers, and thus some editors, hand on as a string.
        with contextlib.suppress(ValueError):
            value = float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if type(value) is not kind:
        raise UserError(f"{where} must be {_kind(kind())}, not {value!r}")
    return value


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _did_you_mean(word: object, choices: Iterable[Any]) -> str:
    close = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
