"""The command line: one entry of COMMANDS a command. Wiring only; nothing imports it."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, NoReturn, TextIO, get_type_hints

from . import __version__
from .errors import ConvNNError, DivergedError, MissingExtraError

try:
    from jsonargparse import ArgumentParser
except ImportError:
    sys.exit('convnn: jsonargparse is not installed, and the command line needs it; run: pip install "convnn[train]"')


BROKEN_PIPE = 141
"""The status that shells report of a program whose output nobody read to its end: 128 and the number of SIGPIPE."""


class Command(NamedTuple):
    """A command: where its settings are, a dataclass whose fields are the options, where it runs, and what it does.

    A field's metadata has its ``help``; with ``positional`` it is given without a name. ``check()`` of the settings
    raises ConvNNError for what is wrong before anything starts.
    """

    settings: str
    run: str
    text: str


COMMANDS = {
    "demo": Command(
        "train.settings:DemoSettings",
        "train.demo:run_demo",
        "walk from convolution to attention on handwritten digits; writes a report (minutes)",
    ),
    "train": Command(
        "train.settings:TrainSettings",
        "train.report:run_train",
        "train any model, with any layer, on a folder of images or a dataset of timm",
    ),
    "bench": Command(
        "bench.settings:BenchSettings",
        "bench.run:run_bench",
        "time the layers on this machine beside what they stand in for (minutes)",
    ),
    "profile": Command(
        "accounting.settings:ProfileSettings",
        "accounting.commands:run_profile",
        "tell what a model costs: parameters, FLOPs, activation memory and milliseconds",
    ),
    "table": Command(
        "accounting.settings:TableSettings",
        "accounting.commands:run_table",
        "print a published table beside ours: table headline",
    ),
    "export": Command(
        "export.settings:ExportSettings",
        "export.command:run_export",
        "write a trained model as ONNX or as a program of torch.export, and compare it with the model",
    ),
}


def _find(place: str) -> Any:
    """Import what ``module:name`` names; modules that run a command are imported when it runs."""
    module, _, name = place.partition(":")
    return getattr(import_module(f".{module}", __package__), name)


class _Parser(ArgumentParser):
    """Says what is wrong in one line, in the words of the package's other errors."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        command = re.search(r"Subcommand '(\w+)'", message)
        found = COMMANDS.get(command[1] if command else self.prog.split()[-1])
        fields = dataclasses.fields(_find(found.settings)) if found else ()
        options = ["--config", "--help", *(_option(field) for field in fields)]
        program = " ".join(["convnn", command[1]]) if command else self.prog.replace(" [options]", "")
        self.exit(2, f"{program}: error: {explain(message, options)}\n")


def explain(message: str, options: Sequence[str]) -> str:
    """Put an error of the parser into our words, with the closest option where one was misspelt.

    >>> explain("unrecognized arguments: --epoch 3", ["--epochs", "--lr"])
    '--epoch: expected an option of this command, got an unknown one; did you mean --epochs? (see --help)'
    """
    unknown = re.search(r"unrecognized arguments: (\S+)|does not accept option '(\S+)'", message)
    if unknown:
        given = (unknown[1] or unknown[2]).split("=")[0]
        close = difflib.get_close_matches("--" + given.lstrip("-").replace("_", "-"), options, n=1)
        fix = f"did you mean {close[0]}? (see --help)" if close else "see --help"
        return f"{given}: expected an option of this command, got an unknown one; {fix}"
    missing = re.search(r"arguments are required: (?:(\w+)\.)?(\w+)", message)
    if missing:
        name = " ".join(filter(None, missing.groups()))
        return f"{missing[2]}: expected a value, got none; write convnn {name.replace(missing[2], missing[2].upper())}"
    command = re.search(r"invalid choice: '(\w*)'", message)
    if command or 'expected "subcommand"' in message:
        close = difflib.get_close_matches(command[1] if command else "", COMMANDS, n=1)
        got = repr(command[1]) if command else "none"
        return f"command: expected one of {', '.join(COMMANDS)}, got {got}; " + (
            f"did you mean {close[0]}?" if close else "see --help"
        )
    value = re.search(r'Parser key "(\w+)":', message)
    got_value = re.search(r"(?:Got value|Given value): (.*)", message)
    if value and got_value:
        kinds = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
        kind = next((words for name, words in kinds.items() if f"<class '{name}'>" in message), "another value")
        return f"--{value[1].replace('_', '-')}: expected {kind}, got {got_value[1].strip()!r}; change it"
    if value and "does not exist" in message:
        return f"--{value[1]}: expected a YAML file, got {message.strip().rsplit(': ', 1)[-1]}; check the path"
    return " ".join(message.split())


def make_parser() -> _Parser:
    """Build the parser: every field of a command's settings is an option of it and a key of its YAML file."""
    parser = _Parser(prog="convnn", description="ConvNN: one operator that runs from convolution to attention.")
    parser.add_argument("--version", action="version", version=f"convnn {__version__}")
    commands = parser.add_subcommands(title="commands", description="convnn COMMAND --help tells a command's options")
    for name, entry in COMMANDS.items():
        command = _Parser(description=entry.text)
        command.add_argument("--config", action="config", help="YAML file with any of these options; later ones win")
        _add_options(command, _find(entry.settings))
        commands.add_subcommand(name, command, help=entry.text)
    return parser


def _add_options(command: _Parser, settings: type[Any]) -> None:
    hints = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        option, text = _option(field), field.metadata["help"]
        if hints[field.name] is bool and not field.default:
            command.add_argument(option, action="store_true", help=text)
        elif field.default is dataclasses.MISSING:
            command.add_argument(option, type=hints[field.name], help=text)
        else:
            command.add_argument(option, type=hints[field.name], default=field.default, help=text)


def _option(field: dataclasses.Field[Any]) -> str:
    """Return what a field is called on the command line."""
    return field.name if field.metadata.get("positional") else "--" + field.name.replace("_", "-")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 1 for a missing package or a run that diverged, 2 for wrong options or data, 130 if
    interrupted, 141 if nobody reads what it prints (as in ``convnn table headline | head -1``).
    """
    try:
        try:
            return _main(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a closed pipe can still be caught
    except BrokenPipeError:
        if not _silenced():
            raise
        return BROKEN_PIPE
    except SystemExit as stop:
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        return BROKEN_PIPE  # rich has caught it, and sent the rest of its output nowhere


def _silenced() -> bool:
    """Send what is still to be printed nowhere if nobody reads it; return whether that is so."""
    closed = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and _unread(stream)]
    for stream in closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(closed)


def _unread(stream: TextIO) -> bool:
    """Tell whether a stream is a pipe of which the other end is closed."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
    except (AttributeError, OSError, ValueError):  # a system without poll; a stream that is no file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _main(arguments: Sequence[str] | None) -> int:
    parsed: Any = make_parser().parse_args(None if arguments is None else list(arguments))
    command = parsed.subcommand
    values = {name: value for name, value in parsed[command].items() if name not in ("config", "__path__")}
    kind = _find(COMMANDS[command].settings)
    try:
        settings = kind(**values)
        if not getattr(settings, "resume", False):  # a run to resume has settings of its own
            settings.check()
        _run(command, settings)
    except ConvNNError as error:
        name, _, rest = str(error).partition(":")
        option = next((_option(field) for field in dataclasses.fields(kind) if field.name == name), name)
        print(f"convnn {command}: error: {option}:{rest}", file=sys.stderr)
        return 2
    except (MissingExtraError, DivergedError) as error:
        print(f"convnn {command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = f"; go on with: convnn train --out {settings.out} --resume" if command == "train" else ""
        print(f"convnn {command}: interrupted{hint}", file=sys.stderr)
        return 130
    return 0


def _run(command: str, settings: object) -> None:
    run: Callable[[object], object] = _find(COMMANDS[command].run)
    run(settings)


if __name__ == "__main__":
    sys.exit(main())
