"""Tasks on several processes, one thread each: small networks gain nothing from threads, and results do not depend on
them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

Report = Callable[[str, int], None]
Work = Callable[[Any, Report], Any]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread for a while."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_tasks(work: Work, tasks: Sequence[Any], report: Report, *, workers: int) -> Iterator[tuple[int, Any]]:
    """Do ``work(task, report)`` for every task; yield ``(position, result)`` as they finish.

    Up to ``workers`` processes are started (spawned: ``work``, tasks and results must be picklable, and a script must
    guard its main part); with one worker everything runs in this process. An interrupt ends the processes. Raises
    RuntimeError with the worker's own traceback when a task fails.
    """
    if workers <= 1:
        with one_thread():
            for position, task in enumerate(tasks):
                yield position, work(task, report)
        return
    context = multiprocessing.get_context("spawn")
    todo: Any = context.Queue()
    events: Any = context.Queue()
    for position, task in enumerate(tasks):
        todo.put((position, task))
    processes = [
        context.Process(target=_serve, args=(work, todo, events), daemon=True) for _ in range(min(workers, len(tasks)))
    ]
    for _ in processes:
        todo.put(None)
    for process in processes:
        process.start()
    try:
        yield from _collect(events, processes, len(tasks), report)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _collect(events: Any, processes: Sequence[Any], count: int, report: Report) -> Iterator[tuple[int, Any]]:
    while count:
        try:
            kind, *content = events.get(timeout=1.0)
        except queue.Empty:
            dead = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
            if dead:
                raise RuntimeError(f"a worker process died (exit code {dead[0]}); is there enough memory?") from None
            continue
        if kind == "report":
            report(content[0], content[1])
        elif kind == "failed":
            raise RuntimeError(f"a task failed in its worker process:\n{content[0]}")
        else:
            count -= 1
            yield content[0], content[1]


def _serve(work: Work, todo: Any, events: Any) -> None:
    """Worker loop: take tasks until there are none. The parent handles interrupts and ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    while (item := todo.get()) is not None:
        position, task = item
        try:
            events.put(("done", position, work(task, lambda name, steps: events.put(("report", name, steps)))))
        except Exception:  # noqa: BLE001 - whatever it is, the parent raises it
            events.put(("failed", traceback.format_exc()))
            return
