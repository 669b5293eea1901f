"""A progress bar for what is read before the first epoch: on a terminal only, and gone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...errors import missing_extra

try:
    from rich.console import Console
    from rich.progress import Progress
except ImportError as error:
    raise missing_extra("rich", "cli") from error


@contextmanager
def bar(title: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show how many of ``total`` images are done; the function that is given advances the bar.

    >>> with bar("Reading", 2, shown=False) as advance:
    ...     advance(2)
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.update(task, advance=count)
