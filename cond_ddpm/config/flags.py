"""A class of settings -> a command's flags, its `--config FILE`, its `--help` and its errors: one way for all commands.

May import: the standard library, `config.{settings, presets}`, and PyYAML for the values. The command line calls `parse`.

This is argparse and not jsonargparse: the types and bounds are checked by `Settings` itself, with the same words for a flag, a
file and Python; and `--help` answers three times as fast.
"""

import argparse
import dataclasses
import difflib
import functools
import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cond_ddpm.config.presets import path_or_preset, presets
from cond_ddpm.config.settings import (
    S,
    alternatives,
    check_names,
    default_of,
    describe,
    names_of,
    required_names,
    typed_fields,
)


def parse(class_: type[S], arguments: list[str], prog: str | None = None, description: str | None = None) -> S:
    """Settings from `--config FILE` and flags; a flag overrides the file. Exits with code 2 if any of them is invalid.

    The name of a preset may be given instead of a path.
    Each setting is a flag: `--name VALUE`; a list takes several values; true or false also `--name` alone; a mapping also
    takes `--name.KEY VALUE`, which is merged into the file's.
    """
    parser = _parser(class_, arguments, prog, description)
    if any(argument.partition("=")[0] == "--config" for argument in arguments[1:]):
        parser.error("--config: expected it first and only once, because flags override the file; move it to the front")
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        flag = next((word for word in unknown if word.startswith("--")), "").partition("=")[0]
        near = difflib.get_close_matches(flag[2:].replace("-", "_"), names_of(class_), 1)
        hint = f"did you mean --{near[0]}?" if near else "--help lists the flags."
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; {hint}")
    given = vars(parsed)
    file, shows = given.pop("config", None), given.pop("print_config", False)
    types = {field.name: type_ for field, type_ in typed_fields(class_)}
    try:
        values = {} if file is None else read_yaml(path_or_preset(file))
        check_names(values, names_of(class_), "config", "a YAML file of settings, as --help lists them")
        for field, _ in typed_fields(class_):
            if field.name in given:
                values.pop(field.metadata["replaces"], None)
        for flag, text in given.items():
            name, _, key = flag.partition(".")
            if not key:
                values[name] = _value(text, types[name])
            elif isinstance(values.get(name) or {}, dict):  # `Settings` refuses anything else later
                values[name] = {**(values.get(name) or {}), key: _value(text, Any)}
        settings = _made(class_, values)
    except ValueError as error:
        parser.error(f"--{error}")
    if shows:
        import yaml

        print(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(settings), default=str)), sort_keys=False), end="")
        parser.exit()
    return settings


def read_yaml(file: Path) -> dict[str, Any]:
    """The contents of a YAML file, in which only true and false are booleans, so that `mixed_precision: no` is a string.

    Raises:
        ValueError: a file that cannot be read, is empty or does not hold a mapping.
    """
    wanted = "config: expected a YAML file of settings, each `name: value`"
    try:
        values = _load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = ", ".join(presets())
        raise ValueError(f"{wanted}, or a preset ({names}), got {file}. File does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:  # a folder, not UTF-8, not YAML, too deep
        raise ValueError(f"{wanted}, got {file}, which cannot be read: {' '.join(str(error).split())}") from None
    if values is None:
        raise ValueError(f"{wanted}, got {file}, which is empty; leave out --config to use the defaults.")
    if not isinstance(values, dict):
        raise ValueError(f"{wanted}, got {file}, which is {type(values).__name__}; a run's is its config.yaml.")
    return values


def _made(class_: type[S], values: dict[str, Any]) -> S:
    missing = [name for name in required_names(class_) if name not in values]
    if missing:
        raise ValueError(f"{', --'.join(missing)}: expected a value, got none; --help explains each setting.")
    # A key with nothing under it, such as `evaluate:`, is an empty mapping.
    empty: dict[str, dict] = {field.name: {} for field, type_ in typed_fields(class_) if get_origin(type_) is dict}
    return class_(**{name: empty.get(name, value) if value is None else value for name, value in values.items()})


# The flags


def _parser(class_: type, arguments: list[str], prog: str | None, description: str | None) -> argparse.ArgumentParser:
    required = required_names(class_)
    # Required settings come first, then the command's own, then those that it shares with other commands.
    order = lambda pair: (pair[0].name not in required, pair[0].name not in class_.__annotations__)  # noqa: E731
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"%(prog)s [--config FILE] {''.join(f'--{name} VALUE ' for name in required)}[--FLAG VALUE ...]",
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    text = "YAML file with any of the settings below, or a preset's name (cond-ddpm presets lists them); flags override it."
    parser.add_argument("--config", metavar="FILE", help=text)
    parser.add_argument("--print_config", action="store_true", help="Print all settings as a YAML file, then exit.")
    for field, type_ in sorted(typed_fields(class_), key=order):
        parser.add_argument(f"--{field.name}", help=_help(field, type_), metavar="VALUE", **_number_of_values(type_))
        if get_origin(type_) is dict:
            keys = {argument.partition("=")[0] for argument in arguments if argument.startswith(f"--{field.name}.")}
            for key in sorted(keys):
                parser.add_argument(key, help=argparse.SUPPRESS)
    return parser


def _number_of_values(type_: Any) -> dict[str, Any]:
    for kind in alternatives(type_):
        if kind is bool:
            return {"nargs": "?", "const": "true"}
        if get_origin(kind) is list:
            return {"nargs": "+"}
        if get_origin(kind) is tuple:
            return {"nargs": len(get_args(kind))}
    return {}


def _help(field: dataclasses.Field, type_: Any) -> str:
    """`The setting's help. (a whole number, 1 or more; default: 64)`"""
    default = default_of(field)
    text = str(default).lower() if isinstance(default, bool) else str(default)
    words = [describe(field, type_), *([] if default in (None, dataclasses.MISSING, {}) else [f"default: {text}"])]
    return f"{field.metadata['help']} ({'; '.join(words)})".replace("%", "%%")


# The values


def _value(given: str | list[str], type_: Any) -> Any:
    """The value of a flag: the string itself if the setting may be a string, and otherwise parsed as YAML."""
    kinds = alternatives(type_)
    if isinstance(given, list):
        (kind,) = (kind for kind in kinds if get_origin(kind) in (list, tuple))
        return [_value(text, get_args(kind)[0]) for text in given]
    if given == "null" and type(None) in kinds:
        return None
    # "static" beside true and false is a name among values, and is read as they are.
    is_choice = bool not in kinds and any(get_origin(kind) is Literal and isinstance(get_args(kind)[0], str) for kind in kinds)
    if is_choice or any(kind in (str, Path) for kind in kinds):
        return given
    try:
        return _load(given)
    except (ValueError, RecursionError):
        return given  # left as it is, so that the check reports what was expected


def _load(text: str) -> Any:
    """YAML 1.1, as PyYAML reads it, except that, as in YAML 1.2, `no` and a date are strings and 1e-3 is a number.

    Raises:
        ValueError: it is not YAML.
    """
    import yaml

    try:
        return yaml.load(text, _loader())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


@functools.cache
def _loader() -> type:
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    tag = "tag:yaml.org,2002:"
    others = {
        letter: [pair for pair in pairs if pair[0] not in (f"{tag}bool", f"{tag}float", f"{tag}timestamp")]
        for letter, pairs in Loader.yaml_implicit_resolvers.items()
    }
    Loader.yaml_implicit_resolvers = others
    Loader.add_implicit_resolver(f"{tag}bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    digits = r"[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    number = rf"{digits}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    Loader.add_implicit_resolver(f"{tag}float", re.compile(f"^({number})$"), list("-+0123456789."))
    return Loader
