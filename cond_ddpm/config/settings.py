"""Each setting is defined once: its type and default, and beside them its help, its bounds and whether a resume may change it.

May import: the standard library. `flags.py` turns a class of settings into flags, YAML files and `--help`;
`dataclasses.asdict` is the record of it in config.json and results.json.
"""

import dataclasses
import difflib
import inspect
import json
import math
import os
import types
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

S = TypeVar("S", bound="Settings")


def setting(
    *,
    default: Any = dataclasses.MISSING,
    help: str,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    may_change: bool = False,
    is_path: bool = False,
    unless_chosen: Any = None,
    replaces: str | None = None,
) -> Any:
    """A field of a `Settings` class.

    Args:
        default: its default; a callable, such as `dict`, is called each time. Without a default, the setting is required.
        help: one sentence or two for `--help`, which also names the type, the bounds and the default.
        at_least, at_most, above, below: bounds of a number, or of each number in a list.
        may_change: whether a resumed run may use another value than its checkpoint's, because that alters no completed step.
        is_path: whether a string may be a path, in which a leading ~ is expanded. A `Path` always is one.
        unless_chosen: of a setting that the command chooses where it is not given: its value where the command chooses none.
            The default is then None. The annotation leaves that out, since the command works with the chosen value.
        replaces: the setting of a `--config FILE` that does not count where this one is given as a flag.
    """
    bounds = {"at_least": at_least, "at_most": at_most, "above": above, "below": below}
    metadata = {"help": help, "may_change": may_change, "bounds": bounds, "is_path": is_path, "unless_chosen": unless_chosen}
    metadata["replaces"] = replaces
    if unless_chosen is not None:
        default = None
    if default is not dataclasses.MISSING and callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(setting,))
class Settings:
    """Base of the classes of settings, each of which becomes a frozen dataclass whose values are checked when it is made.

    Raises:
        ValueError: a value of another type or outside its bounds, in one line: what was expected and what was given.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        lines = [f"    {field.name}: {field.metadata['help']}" for field in dataclasses.fields(cls)]
        cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Args:", *lines])

    def __post_init__(self) -> None:
        for field, type_ in typed_fields(type(self)):
            value = _converted(getattr(self, field.name), type_, field.metadata["is_path"])
            check_value(field, type_, value)
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Rules that involve several settings; a class that has such rules overrides this.

        Raises:
            ValueError: they do not fit together.
        """

    def changed(self) -> list[str]:
        """The names of the settings that differ from their defaults."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != default_of(field)]

    def is_open(self, name: str) -> bool:
        """Whether a setting that the command chooses is not given."""
        return getattr(self, name) is None

    def with_open(self: S, values: dict[str, Any]) -> S:
        """The same settings, with those of `values` where they are left open."""
        return dataclasses.replace(self, **{name: value for name, value in values.items() if self.is_open(name)})

    def part(self, class_: type[S]) -> S:
        """An instance of `class_`, whose settings are a part of these."""
        return class_(**{field.name: getattr(self, field.name) for field in dataclasses.fields(class_)})


def make(class_: type[S], values: Any, where: str, what: str, **fixed: Any) -> S:
    """Settings that a user has written inside another setting, such as a study's `sampling`.

    Args:
        class_: the class of settings.
        values: a mapping of names to values; None means no settings.
        where: the name of the enclosing setting, with which error messages begin.
        what: what they are settings of, for the error.
        fixed: settings that the user cannot choose, with their values.

    Raises:
        ValueError: not a mapping, an unknown name, or an invalid value.
    """
    if not isinstance(values or {}, dict):
        raise ValueError(f"{where}: expected settings of {what}, got {values!r}.")
    check_names(values or {}, [name for name in names_of(class_) if name not in fixed], where, f"settings of {what}")
    try:
        return class_(**(values or {}), **fixed)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


def check_names(given: Collection[Any], known: Collection[str], where: str, what: str) -> None:
    """Raise ValueError, suggesting the nearest known name, unless all given names are known."""
    unknown = [name if (name := str(one)).isprintable() else ascii(name) for one in given if one not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1)
        few = f"; there are {', '.join(known)}." if len(known) <= 20 else "."
        raise ValueError(
            f"{where}: expected {what}, got {', '.join(unknown)}" + (f"; did you mean {near[0]}?" if near else few)
        )


def check_value(field: dataclasses.Field, type_: Any, value: Any) -> None:
    """Raise ValueError unless a value is of the setting's type and within its bounds."""
    if not _has_type(value, type_):
        raise ValueError(f"{field.name}: expected {describe(field, type_)}, got {value!r}.")
    for number in value if isinstance(value, (list, tuple)) else [value]:
        if not _within(number, field.metadata["bounds"]):
            words = _bounds_in_words(field.metadata["bounds"])
            if isinstance(number, float) and not math.isfinite(number) and words != _FINITE:
                words = f"{_FINITE}, {words}"
            raise ValueError(f"{field.name}: expected {words}, got {number!r}.")


def typed_fields(class_: type[Settings]) -> list[tuple[dataclasses.Field, Any]]:
    hints = get_type_hints(class_)
    chosen = unless_chosen(class_)
    return [(f, hints[f.name] | None if f.name in chosen else hints[f.name]) for f in dataclasses.fields(class_)]


def default_of(field: dataclasses.Field) -> Any:
    """Its default; `dataclasses.MISSING`, if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def required_names(class_: type[Settings]) -> list[str]:
    """The names of the required settings."""
    return [field.name for field in dataclasses.fields(class_) if default_of(field) is dataclasses.MISSING]


def names_of(class_: type[Settings]) -> list[str]:
    return [field.name for field in dataclasses.fields(class_)]


def with_defaults(class_: type[Settings], recorded: dict[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version recorded as JSON, with the default of each setting that is newer than the record."""
    before = unless_chosen(class_)
    fields = [field for field in dataclasses.fields(class_) if field.name not in recorded]
    defaults = {field.name: before.get(field.name, default_of(field)) for field in fields}
    return {**recorded, **json.loads(json.dumps(defaults))}


def unless_chosen(class_: type[Settings]) -> dict[str, Any]:
    """The settings that a command chooses where they are not given: their values where it chooses none."""
    found = {field.name: field.metadata["unless_chosen"] for field in dataclasses.fields(class_)}
    return {name: value for name, value in found.items() if value is not None}


def may_change_at_resume(class_: type[Settings]) -> set[str]:
    return {field.name for field in dataclasses.fields(class_) if field.metadata["may_change"]}


def alternatives(type_: Any) -> tuple[Any, ...]:
    return get_args(type_) if get_origin(type_) in (Union, types.UnionType) else (type_,)


def _is_list(type_: Any) -> bool:
    """Whether it holds any number of values of one type, as list[int] and tuple[int, ...] do."""
    return get_origin(type_) is list or (get_origin(type_) is tuple and get_args(type_)[1:] == (...,))


def _converted(value: Any, type_: Any, is_path: bool = False) -> Any:
    """A value converted to its type where that is unambiguous: "~", str to or from Path, int to float, list to tuple."""
    kinds = alternatives(type_)
    if isinstance(value, Path) and is_path and Path not in kinds:
        value = str(value)
    if isinstance(value, str) and (is_path or Path in kinds):
        value = os.path.expanduser(value)  # Path.expanduser raises for an unknown ~user
        return Path(value) if Path in kinds else value
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        return float(value) if abs(value) < 2**1023 else math.inf if value > 0 else -math.inf
    if isinstance(value, (list, tuple)):
        for kind in kinds:
            origin, arguments = get_origin(kind), get_args(kind)
            if _is_list(kind):
                return origin(_converted(one, arguments[0], is_path) for one in value)
            if origin is tuple and len(arguments) == len(value):
                return tuple(map(_converted, value, arguments))
    return value


def _has_type(value: Any, type_: Any) -> bool:
    """Whether a value is of an annotated type; a whole number is a float too, but a bool is no number."""
    origin, arguments = get_origin(type_), get_args(type_)
    if origin in (Union, types.UnionType):
        return any(_has_type(value, one) for one in arguments)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if _is_list(type_):
        return isinstance(value, (list, tuple)) and all(_has_type(one, arguments[0]) for one in value)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and len(value) == len(arguments) and all(map(_has_type, value, arguments))
    if origin is dict:
        return isinstance(value, dict)
    if type_ in (int, float):
        return isinstance(value, (int, float) if type_ is float else int) and not isinstance(value, bool)
    if type_ is type(None):
        return value is None
    return type_ is Any or isinstance(value, type_)


def _within(value: Any, bounds: dict[str, float | None]) -> bool:
    """Whether a number is finite and within bounds; anything else passes."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return (
        -math.inf < value < math.inf  # this also works for an int too large for a float
        and (bounds["at_least"] is None or value >= bounds["at_least"])
        and (bounds["at_most"] is None or value <= bounds["at_most"])
        and (bounds["above"] is None or value > bounds["above"])
        and (bounds["below"] is None or value < bounds["below"])
    )


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path", Any: "a value"}


def describe(field: dataclasses.Field, type_: Any) -> str:
    """What a setting may be, in words: "a whole number, 1 or more, or null"."""
    bounds = _bounds_in_words(field.metadata["bounds"])
    words = [describe_type(type_, null=False), *([bounds] if bounds != _FINITE else [])]
    return ", ".join([*words, *(["or null"] if type(None) in alternatives(type_) else [])])


def describe_type(type_: Any, null: bool = True) -> str:
    words = " or ".join(_describe(one) for one in alternatives(type_) if one is not type(None))
    return f"{words}, or null" if null and type(None) in alternatives(type_) else words


_FINITE = "a finite number"


def _bounds_in_words(bounds: dict[str, float | None]) -> str:
    low, high, above, below = (bounds[name] for name in ("at_least", "at_most", "above", "below"))
    if low is not None and high is not None:
        return f"from {_number(low)} to {_number(high)}"
    words = [f"{_number(low)} or more"] if low is not None else []
    words += [f"more than {_number(above)}"] if above is not None else []
    words += [f"at most {_number(high)}"] if high is not None else []
    words += [f"less than {_number(below)}"] if below is not None else []
    return " and ".join(words) or _FINITE


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.10g}"


def _describe(type_: Any) -> str:
    origin, arguments = get_origin(type_), get_args(type_)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_describe, arguments))
    if _is_list(type_):
        return f"a list, each {_describe(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} values, each {_describe(arguments[0])}"
    if origin is dict:
        return "names and values"
    return _NAMES[type_]


def checked_arguments(class_: type, arguments: dict[str, Any], prefix: str, skip: set[str]) -> dict[str, Any]:
    """`arguments` checked against the signature of `class_`, which remains their only definition; defaults filled in.

    Raises:
        ValueError: an argument that the class does not have, one of `skip`, or a value of the wrong type.
    """
    hints = get_type_hints(class_.__init__)  # type: ignore[misc]
    defaults = {name: one.default for name, one in inspect.signature(class_).parameters.items() if name not in skip}
    for name, value in arguments.items():
        if name not in defaults:
            reason = "is set by the data" if name in skip else f"is not one of {', '.join(defaults)}"
            raise ValueError(f"{prefix}.{name}: expected an argument of {class_.__name__}, got one that {reason}.")
        if not _has_type(value, hints[name]):
            raise ValueError(f"{prefix}.{name}: expected {describe_type(hints[name])}, got {value!r}.")
    return {name: _converted(arguments.get(name, default), hints[name]) for name, default in defaults.items()}
