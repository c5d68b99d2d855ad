"""A setting is said once: its type and default, and beside them its help, its bounds and whether a resume may change it.

May import: the standard library and jsonargparse, which makes flags, YAML files and `--help` of a class of settings.
`dataclasses.asdict` is the record of it in config.json and results.json.
"""

import dataclasses
import inspect
import math
import types
from pathlib import Path
from typing import Any, Literal, Union, dataclass_transform, get_args, get_origin, get_type_hints


def setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    may_change: bool = False,
) -> Any:
    """A field of a `Settings` class.

    Args:
        default: its default; a function makes a new one each time (`dict`).
        help: one sentence or two for `--help`, which also names the type, the bounds and the default.
        at_least, at_most, above, below: bounds of a number, or of each number in a list.
        may_change: whether a run that resumes may have another value than its checkpoint, since it changes no step done.
    """
    bounds = {"at_least": at_least, "at_most": at_most, "above": above, "below": below}
    metadata = {"help": help, "may_change": may_change, "bounds": bounds}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(setting,))
class Settings:
    """Base of the classes of settings, each of which becomes a frozen dataclass whose values are checked when it is made.

    Raises:
        ValueError: a value of another type or outside its bounds, in one line: what was expected and what came.
    """

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        # jsonargparse takes each flag's help from here.
        lines = [f"    {field.name}: {field.metadata['help']}" for field in dataclasses.fields(cls)]
        cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Args:", *lines])

    def __post_init__(self) -> None:
        for field, type_ in typed_fields(type(self)):
            value = getattr(self, field.name)
            if not _has_type(value, type_):
                raise ValueError(f"{field.name}: expected {describe(field, type_)}, got {value!r}.")
            for number in value if isinstance(value, (list, tuple)) else [value]:
                if not _within(number, field.metadata["bounds"]):
                    words = _bounds_in_words(field.metadata["bounds"])
                    if isinstance(number, float) and not math.isfinite(number) and words != _FINITE:
                        words = f"{_FINITE}, {words}"
                    raise ValueError(f"{field.name}: expected {words}, got {number!r}.")
        self.check()

    def check(self) -> None:
        """What settings must be together; a class that has such rules overrides it.

        Raises:
            ValueError: they do not fit together.
        """


def typed_fields(class_: type[Settings]) -> list[tuple[dataclasses.Field, Any]]:
    hints = get_type_hints(class_)
    return [(field, hints[field.name]) for field in dataclasses.fields(class_)]


def may_change_at_resume(class_: type[Settings]) -> set[str]:
    return {field.name for field in dataclasses.fields(class_) if field.metadata["may_change"]}


def _alternatives(type_: Any) -> tuple[Any, ...]:
    return get_args(type_) if get_origin(type_) in (Union, types.UnionType) else (type_,)


def _has_type(value: Any, type_: Any) -> bool:
    """Whether a value is of an annotated type; a whole number is a float too, but a bool is no number."""
    origin, arguments = get_origin(type_), get_args(type_)
    if origin in (Union, types.UnionType):
        return any(_has_type(value, one) for one in arguments)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is list:
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
    """Whether a number is finite and within bounds; what is no number has none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return (
        math.isfinite(value)
        and (bounds["at_least"] is None or value >= bounds["at_least"])
        and (bounds["at_most"] is None or value <= bounds["at_most"])
        and (bounds["above"] is None or value > bounds["above"])
        and (bounds["below"] is None or value < bounds["below"])
    )


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path", Any: "a value"}


def describe(field: dataclasses.Field, type_: Any) -> str:
    """What a setting may be, in words: "a whole number, 1 or more, or null"."""
    kinds = [_describe(one) for one in _alternatives(type_) if one is not type(None)]
    bounds = _bounds_in_words(field.metadata["bounds"]) if any(one in (int, float) for one in _alternatives(type_)) else ""
    words = [" or ".join(kinds), *([bounds] if bounds and bounds != _FINITE else [])]
    return ", ".join([*words, *(["or null"] if type(None) in _alternatives(type_) else [])])


_FINITE = "a finite number"


def _bounds_in_words(bounds: dict[str, float | None]) -> str:
    low, high, above, below = (bounds[name] for name in ("at_least", "at_most", "above", "below"))
    if low is not None and high is not None:
        return f"from {low:.10g} to {high:.10g}"
    words = [f"{low:.10g} or more"] if low is not None else []
    words += [f"more than {above:.10g}"] if above is not None else []
    words += [f"at most {high:.10g}"] if high is not None else []
    words += [f"less than {below:.10g}"] if below is not None else []
    return " and ".join(words) or _FINITE


def _describe(type_: Any) -> str:
    origin, arguments = get_origin(type_), get_args(type_)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is list:
        return f"a list, each {_describe(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} values, each {_describe(arguments[0])}"
    if origin is dict:
        return "names and values"
    return _NAMES[type_]


def checked_arguments(class_: type, arguments: dict[str, Any], prefix: str, skip: set[str]) -> dict[str, Any]:
    """`arguments` checked against the signature of `class_`, which stays their one definition; defaults filled in.

    Raises:
        ValueError: an argument that the class does not have, one of `skip`, or a value of the wrong type.
    """
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    names = parser.add_class_arguments(class_, skip=skip)
    for name in arguments:
        if name not in names:
            reason = "is set by the data" if name in skip else f"is not one of {', '.join(names)}"
            raise ValueError(f"{prefix}.{name}: expected an argument of {class_.__name__}, got one that {reason}.")
    try:
        return parser.parse_object(arguments).as_dict()
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{prefix}: {' '.join(str(error).split())}") from None
