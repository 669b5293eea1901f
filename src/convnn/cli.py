"""The command line: one entry of COMMANDS a command. Wiring only; nothing imports it.

Without a command it answers without importing PyTorch; a command's settings are imported when it is called, and what
runs it after they were checked.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import select
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, TextIO

from . import __version__
from .errors import ConvNNError, MissingExtraError, RunError, TerminatedError

TERMINATED = 143
"""The status that shells report of a program that SIGTERM has stopped: 128 and the number of the signal."""
BROKEN_PIPE = 141
"""The exit status for a closed output pipe: 128 and the number of SIGPIPE."""


class Command(NamedTuple):
    """A command: its settings (a dataclass whose fields are the options), its function, and its help text.

    A field's metadata has its ``help``; with ``positional`` it is an argument without a name. ``check()`` of the
    settings raises ConvNNError before anything starts. ``presets`` is a field and the function that returns the
    settings which it names: they are the defaults of the other options.
    """

    settings: str
    run: str
    text: str
    presets: tuple[str, str] | None = None


COMMANDS = {
    "demo": Command(
        "demo.settings:DemoSettings",
        "demo.run:run_demo",
        "walk from convolution to attention on handwritten digits; writes a report (minutes)",
    ),
    "train": Command(
        "train.settings:TrainSettings",
        "train.report:run_train",
        "train any model, with any layer, on a folder of images or a dataset of timm; by a recipe or by options",
        ("recipe", "train.recipes:settings_of"),
    ),
    "recipes": Command(
        "train.recipes.settings:RecipesSettings",
        "train.recipes.command:run_recipes",
        "list the recipes and the studies, with source, expected result and cost; or print one",
    ),
    "sweep": Command(
        "train.study.settings:SweepSettings",
        "train.study.command:run_sweep",
        "run a study: grids, variants and seeds of a recipe, several at the same time; resumable",
    ),
    "compare": Command(
        "train.study.settings:CompareSettings",
        "train.study.command:run_compare",
        "compare runs: mean, deviation, the difference to a baseline with its interval; table, figure and page",
    ),
    "bench": Command(
        "bench.settings:BenchSettings",
        "bench.run:run_bench",
        "time the layers on this machine beside what they replace (minutes)",
    ),
    "profile": Command(
        "accounting.settings:ProfileSettings",
        "accounting.commands:run_profile",
        "report what a model costs: parameters, FLOPs, activation memory and milliseconds",
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
    "info": Command(
        "_info:InfoSettings",
        "_info:run_info",
        "say what is installed: versions, the native library and its levels, threads, extras",
    ),
}
FIRST = (
    ("convnn demo --quick", "under 20 s: see that everything works"),
    ("convnn profile resnet50_hybrid_random32", "what a network of hybrid layers costs"),
    ("convnn train --data IMAGES --layer hybrid", "a folder with one sub-folder per class"),
)


def overview() -> str:
    """Return what ``convnn`` prints without a command: the commands, and three calls to try first."""
    width = max(map(len, COMMANDS))
    commands = [f"  {name.ljust(width)}  {command.text}" for name, command in COMMANDS.items()]
    wide = max(len(call) for call, _ in FIRST)
    calls = [f"  {call.ljust(wide)}  {text}" for call, text in FIRST]
    return "\n".join([
        f"convnn {__version__}: one operator that runs from convolution to attention.", "",
        "Commands (convnn COMMAND --help lists a command's options):", *commands, "",
        "Try first:", *calls,
    ])  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 1 for a missing package or a run that cannot go on, 2 for wrong options or data, 130
    if interrupted, 143 after SIGTERM, 141 if nobody reads what it prints (as in ``convnn table headline | head -1``).
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
        # rich has caught it and discarded the rest of its output; argparse, printing a long help, has ignored it
        if isinstance(stop.__context__, BrokenPipeError) or (not stop.code and _silenced()):
            return BROKEN_PIPE
        raise


def _silenced() -> bool:
    """Redirect closed output streams to the null device; return True if there are any."""
    closed = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and _unread(stream)]
    for stream in closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(closed)


def _unread(stream: TextIO) -> bool:
    """Return True if a stream is a pipe whose other end is closed."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
    except (AttributeError, OSError, ValueError):  # a system without poll; a stream that is no file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _main(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"convnn {__version__}")
        return 0
    if words[0] not in COMMANDS:
        print(f"convnn: error: {_unknown(words[0])}", file=sys.stderr)
        return 2
    return _call(words[0], words[1:])


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    fix = f"did you mean {close[0]}?" if close else "see convnn --help"
    return f"command: expected one of {', '.join(COMMANDS)}, got {name!r}; {fix}"


def _call(command: str, arguments: Sequence[str]) -> int:
    """Run a command with its arguments; return the exit status."""
    entry = COMMANDS[command]
    settings: Any = None
    try:
        presets = entry.presets and (entry.presets[0], _find(entry.presets[1]))
        parse = _find("arguments:parse")
        settings = parse(_find(entry.settings), arguments, command=command, text=entry.text, presets=presets)
        if not getattr(settings, "resume", False):  # a run to resume has settings of its own
            settings.check()
        _run(command, settings)
    except ConvNNError as error:
        print(f"convnn {command}: error: {_with_option(error, settings)}", file=sys.stderr)
        return 2
    except TerminatedError as error:
        print(f"convnn {command}: {error}{_how_to_go_on(command, settings)}", file=sys.stderr)
        return TERMINATED
    except (MissingExtraError, RunError) as error:
        print(f"convnn {command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"convnn {command}: interrupted{_how_to_go_on(command, settings)}", file=sys.stderr)
        return 130
    return 0


def _how_to_go_on(command: str, settings: Any) -> str:
    started = command == "train" and settings is not None
    return f"; go on with: convnn train --out {settings.out} --resume" if started else ""


def _with_option(error: ConvNNError, settings: Any) -> str:
    """Return an error's text with the option's name instead of the field's at its start."""
    name, _, rest = str(error).partition(":")
    for field in dataclasses.fields(settings) if settings is not None else ():
        if field.name == name:
            name = _find("arguments:option_of")(field)
    return f"{name}:{rest}"


def _run(command: str, settings: object) -> None:
    run: Callable[[object], object] = _find(COMMANDS[command].run)
    run(settings)


def _find(path: str) -> Any:
    """Import the object ``module:name``."""
    module, _, name = path.partition(":")
    return getattr(import_module(f".{module}", __package__), name)


if __name__ == "__main__":
    sys.exit(main())
