"""What rules, initializers and schedules share: parameters with outside names, validation, lookup by name.

Nothing here imports numba: a config is checked before anything is compiled.
"""

import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Generic, TypeVar

from rockbed.config import FLOAT32_MAX, FLOAT32_TINY
from rockbed.errors import DuplicateName, InvalidConfig, UnknownName

Value = float | int | bool | str
Check = Callable[[Any], str | None]
"""Takes a converted value; gives what is wrong with it ("must be ..."), or None."""


def any_value(value: Any) -> str | None:
    return None


def not_negative(value: float) -> str | None:
    return None if value >= 0 else "must be at least 0"


def positive(value: float) -> str | None:
    return None if value > 0 else "must be above 0"


def at_least_one(value: float) -> str | None:
    return None if value >= 1 else "must be at least 1"


def safe_epsilon(value: float) -> str | None:
    return None if value >= FLOAT32_TINY else f"must be at least {FLOAT32_TINY:.3g} (the smallest normal float32)"


def decay_factor(value: float) -> str | None:
    return None if 0 <= value < 1 else "must be in [0, 1)"


def fraction(value: float) -> str | None:
    return None if 0 <= value <= 1 else "must be in [0, 1]"


def one_of(*choices: str) -> Check:
    return lambda value: None if value in choices else f"must be one of {', '.join(choices)}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a config class, as the outside names it."""

    key: str
    aliases: tuple[str, ...]
    kind: type
    check: Check


def parameter(kind: type, key: str, *aliases: str, default: Any = MISSING, check: Check = any_value) -> Any:
    """A dataclass field with its outside name. `kind`: float, int, bool or str. Without a default it must be given."""
    return field(default=default, metadata={"parameter": Parameter(key, aliases, kind, check)})


def parameters_of(cls: type[Any]) -> dict[str, Parameter]:
    """Attribute name -> Parameter, in the order of the class."""
    return {f.name: f.metadata["parameter"] for f in fields(cls) if "parameter" in f.metadata}


def _converted(given: Any, kind: type) -> Value | None:
    """`given` as `kind` where nothing is lost by it, else None. bool is never a number, a string never converts."""
    if kind is bool or kind is str:
        return given if isinstance(given, kind) else None
    if isinstance(given, bool) or not isinstance(given, numbers.Real):
        return None
    if kind is int:
        return int(given) if isinstance(given, numbers.Integral) else None
    return float(given)


def _problem(given: Any, parameter: Parameter) -> tuple[Value | None, str | None]:
    value = _converted(given, parameter.kind)
    if value is None:
        return None, f"{parameter.key} must be of type {parameter.kind.__name__}, not {given!r}"
    if isinstance(value, float) and not (math.isfinite(value) and abs(value) <= FLOAT32_MAX):
        return None, f"{parameter.key}={given!r} must be finite and within float32"
    wrong = parameter.check(value)
    return value, None if wrong is None else f"{parameter.key}={given!r} {wrong}"


class Configured:
    """Base of frozen config dataclasses with fields made by `parameter`. Raises InvalidConfig with every problem."""

    __slots__ = ()
    name: ClassVar[str]
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        problems = []
        for attribute, spec in parameters_of(type(self)).items():
            value, problem = _problem(getattr(self, attribute), spec)
            if problem is not None:
                problems.append(problem)
            else:
                object.__setattr__(self, attribute, value)  # 1 becomes 1.0, a numpy scalar a Python one
        problems = problems or list(self._conflicts())
        if problems:
            raise InvalidConfig(f"{self.kind} {self.name}: " + "; ".join(problems))

    def _conflicts(self) -> Iterable[str]:
        """What is wrong between parameters that are each valid."""
        return ()

    def params(self) -> dict[str, Value]:
        """Every parameter under its primary key: with the name, all that is needed to build an equal config."""
        return {spec.key: getattr(self, attribute) for attribute, spec in parameters_of(type(self)).items()}


C = TypeVar("C", bound=Configured)


def _unknown(what: str, name: str, known: Iterable[str], candidates: Iterable[str]) -> UnknownName:
    close = difflib.get_close_matches(name, list(candidates), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UnknownName(f"{what} {name!r} is unknown.{hint} Known: {', '.join(known) or 'none'}")


class Registry(Generic[C]):
    """Name -> class, other spellings of names, and presets (a name that fixes parameters of another)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[C]] = {}
        self._presets: dict[str, tuple[str, dict[str, Value]]] = {}

    def register(self, cls: type[C]) -> type[C]:
        self._claim(cls.name)
        self._classes[cls.name] = cls
        return cls

    def alias(self, name: str, of: str, **fixed: Value) -> None:
        """`name` makes an `of` with the parameters in `fixed` (primary keys) already given."""
        self._claim(name)
        self._presets[name] = (of, fixed)

    def _claim(self, name: str) -> None:
        if name in self._classes or name in self._presets:
            raise DuplicateName(f"{self.kind} {name!r} is registered twice")

    def names(self) -> list[str]:
        """Every name that `make` takes, other spellings included, sorted."""
        return sorted([*self._classes, *self._presets])

    def make(self, name: str, params: Mapping[str, Any]) -> C:
        """Build by name; parameters under their key or an alias.

        Raises UnknownName (name or parameter, with the known ones) and InvalidConfig (a parameter twice, missing
        or with an impossible value).
        """
        if not isinstance(name, str):
            raise InvalidConfig(f"the name of a {self.kind} must be a str, not {name!r}")
        of, fixed = self._presets.get(name, (name, {}))
        cls = self._classes.get(of)
        if cls is None:
            raise _unknown(self.kind, name, self.names(), self.names())
        specs = parameters_of(cls)
        attribute_of = {key: at for at, spec in specs.items() for key in (spec.key, *spec.aliases)}
        spelled: dict[str, list[str]] = {}
        for key in (*fixed, *params):
            if key not in attribute_of:
                known = [" or ".join((s.key, *s.aliases)) for s in specs.values()]
                raise _unknown(f"{self.kind} {name}: parameter", key, known, attribute_of)
            spelled.setdefault(attribute_of[key], []).append(key)
        problems = [
            f"{' and '.join(map(repr, keys))} set the same parameter: give one of them"
            for keys in spelled.values()
            if len(keys) > 1
        ]
        required = {f.name for f in fields(cls) if f.default is MISSING}  # type: ignore[arg-type]
        problems += [f"{specs[at].key} must be given" for at in specs if at in required and at not in spelled]
        if problems:
            raise InvalidConfig(f"{self.kind} {name}: " + "; ".join(problems))
        given = {**fixed, **params}
        return cls(**{attribute: given[keys[0]] for attribute, keys in spelled.items()})
