"""The options of a command: every field of its settings is an option of it and a key of its YAML file."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, get_origin, get_type_hints

from .errors import missing_extra

try:
    from jsonargparse import ArgumentParser
except ImportError as error:
    raise missing_extra("jsonargparse", "cli") from error


def parse(
    settings: type[Any],
    arguments: Sequence[str],
    *,
    command: str,
    text: str,
    presets: tuple[str, Callable[[str], Mapping[str, Any]]] | None = None,
) -> Any:
    """Return the settings of a command that its arguments give; exits with status 2 where they are wrong.

    ``presets`` is a field and a function: where the field is given, the function's settings for it are the defaults.
    """
    parser = _parser(settings, command, text)
    if presets is not None and (name := _given(parser, arguments, presets[0])):
        _take(parser, presets[1](name), name)
    parsed: Any = parser.parse_args(list(arguments))
    return settings(**{field.name: parsed[field.name] for field in dataclasses.fields(settings)})


def _parser(settings: type[Any], command: str, text: str) -> _Parser:
    parser = _Parser(prog=f"convnn {command}", description=text)
    parser.settings = settings
    parser.add_argument("--config", action="config", help="YAML file with any of these options; later ones win")
    hints = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        options: dict[str, Any] = {"type": hints[field.name], "help": field.metadata["help"]}
        required = field.default is dataclasses.MISSING
        if not required:
            options["default"] = field.default
        if field.metadata.get("positional") and get_origin(hints[field.name]) is tuple:
            options.update(nargs="+", type=str)
        elif field.metadata.get("positional") and not required:
            options["nargs"] = "?"
        elif hints[field.name] is bool and not field.default:
            options.update(nargs="?", const=True)
        parser.add_argument(option_of(field), **options)
    return parser


def _given(parser: _Parser, arguments: Sequence[str], field: str) -> str:
    """Return what is given of the field that chooses the defaults; nothing where help is asked for before it."""
    helped = [argument for argument in arguments if argument not in ("-h", "--help")]
    return str(parser.parse_args(helped)[field] or "")


def _take(parser: _Parser, values: Mapping[str, Any], source: str) -> None:
    """Make values of a file the defaults, once their names and types are right."""
    parser.source = f"{source}: "
    checked: Any = parser.parse_object(dict(values), defaults=False)
    parser.set_defaults({name: checked[name] for name in values})
    parser.source = ""


def option_of(field: dataclasses.Field[Any]) -> str:
    """Return what a field is called on the command line."""
    return field.name if field.metadata.get("positional") else "--" + field.name.replace("_", "-")


class _Parser(ArgumentParser):
    """Says what is wrong in one line, in the words of the package's other errors."""

    settings: type[Any]
    source = ""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = ["--config", "--help", *map(option_of, dataclasses.fields(self.settings))]
        self.exit(2, f"{self.prog}: error: {self.source}{explain(message, options, self.prog)}\n")


def explain(message: str, options: Sequence[str], program: str) -> str:
    """Put an error of the parser into our words, with the closest option where one was misspelt.

    >>> explain("unrecognized arguments: --epoch 3", ["--epochs", "--lr"], "convnn train")
    '--epoch: expected an option of this command, got an unknown one; did you mean --epochs? (see --help)'
    """
    unknown = re.search(r"unrecognized arguments: (\S+)|Option '(\S+)' is not accepted", message)
    if unknown:
        given = (unknown[1] or unknown[2]).split("=")[0]
        close = difflib.get_close_matches("--" + given.lstrip("-").replace("_", "-"), options, n=1)
        fix = f"did you mean {close[0]}? (see --help)" if close else "see --help"
        return f"{given}: expected an option of this command, got an unknown one; {fix}"
    missing = re.search(r"arguments are required: (\w+)", message)
    if missing:
        return f"{missing[1]}: expected a value, got none; write {program} {missing[1].upper()}"
    value = re.search(r'Parser key "(\w+)":', message)
    got_value = re.search(r"(?:Got value|Given value): (.*)", message)
    if value and got_value:
        kinds = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
        kind = next((words for name, words in kinds.items() if f"<class '{name}'>" in message), "another value")
        return f"--{value[1].replace('_', '-')}: expected {kind}, got {got_value[1].strip()!r}; change it"
    if value and "does not exist" in message:
        return f"--{value[1]}: expected a YAML file, got {message.strip().rsplit(': ', 1)[-1]}; check the path"
    return " ".join(message.split())
