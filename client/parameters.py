"""`Parameters`: the typed bag of named settings that PyOptimizer, PyInitializer and PyFilter take."""

import json
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

from rockbed.errors import InvalidConfig

ParameterValue = str | int | float | bool
"""What a parameter may be. numpy scalars are taken as the Python type they stand for."""


class Parameters:
    """Names to values, in the order of insertion.

    >>> params = Parameters()
    >>> params.insert("name", "adagrad")
    >>> params.insert("gamma", 0.05)
    >>> params.to_json()
    '{"name": "adagrad", "gamma": 0.05}'
    """

    def __init__(self) -> None:
        self._values: dict[str, ParameterValue] = {}

    def insert(self, key: str, value: ParameterValue) -> None:
        """Set `key`; a second insert of a key replaces its value.

        Raises InvalidConfig: a key that is no text, a value of another type than str, int, float or bool, a number
        that is not finite (JSON has none).
        """
        if not isinstance(key, str) or not key:
            raise InvalidConfig(f"the key of a parameter must be a non-empty str, not {key!r}")
        self._values[key] = _plain(key, value)

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self._values, ensure_ascii=False)

    def as_dict(self) -> dict[str, ParameterValue]:
        """A copy of the names and values."""
        return dict(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> ParameterValue:
        return self._values[key]

    def __eq__(self, other: object) -> bool:
        return self._values == other._values if isinstance(other, Parameters) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return f"Parameters({self.to_json()})"


def _plain(key: str, value: Any) -> ParameterValue:
    """The value as a Python str, bool, int or float."""
    if isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if not math.isfinite(number):
            raise InvalidConfig(f"parameter {key!r} must be finite, not {number!r}")
        return number
    raise InvalidConfig(f"parameter {key!r} must be a str, int, float or bool, not {type(value).__name__} ({value!r})")


def as_mapping(what: str, params: Any, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Names to values, from Parameters, a mapping or None, and from keyword arguments.

    Raises InvalidConfig: something else, or a key given both ways.
    """
    if params is not None and not isinstance(params, Parameters | Mapping):
        hint = f" (to choose by name: name={params!r})" if isinstance(params, str) else ""
        raise InvalidConfig(f"{what}: expected Parameters or a mapping of names to values, not {params!r}{hint}")
    bag = params.as_dict() if isinstance(params, Parameters) else dict(params or {})
    given = given or {}
    if twice := sorted(bag.keys() & given.keys()):
        raise InvalidConfig(f"{what}: given twice, in the parameters and by keyword: {', '.join(twice)}")
    return {**bag, **given}


def named(
    what: str, params: Parameters | Mapping[str, Any] | None, given: Mapping[str, Any], default: str | None
) -> tuple[str, dict[str, Any]]:
    """The name and the other parameters of one object, from a bag and from keyword arguments.

    `default` is the name when nothing at all is given. Raises InvalidConfig: no "name", or a key given both ways.
    """
    values = as_mapping(what, params, given)
    if not values and default is not None:
        return default, {}
    if "name" not in values:
        raise InvalidConfig(f'{what}: the parameters {sorted(values)} hold no "name", which says what to build')
    return values.pop("name"), values
