import os

import pytest
import torch

from convnn._utils.cores import available_cores
from convnn.demo.workers import one_thread, run_tasks


def square(task, report):
    report(f"task {task}", 1)
    return task * task, torch.get_num_threads(), os.getpid()


def fail(task, report):
    raise ValueError(f"no task {task}")


def die(task, report):
    os._exit(3)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_on_one_thread(workers):
    steps = []
    done = dict(run_tasks(square, [3, 4, 5], lambda name, count: steps.append((name, count)), workers=workers))
    assert {position: result[0] for position, result in done.items()} == {0: 9, 1: 16, 2: 25}
    assert {result[1] for result in done.values()} == {1}
    assert (os.getpid() in {result[2] for result in done.values()}) == (workers == 1)
    assert sorted(steps) == [("task 3", 1), ("task 4", 1), ("task 5", 1)]


def test_a_task_that_fails_is_raised_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)a task failed in its worker process:.*ValueError: no task 1"):
        list(run_tasks(fail, [1, 2], lambda *_: None, workers=2))
    with pytest.raises(ValueError, match="no task 1"):
        list(run_tasks(fail, [1], lambda *_: None, workers=1))


def test_a_worker_that_dies_is_noticed():
    with pytest.raises(RuntimeError, match=r"a worker process died \(exit code 3\)"):
        list(run_tasks(die, [1, 2], lambda *_: None, workers=2))


def test_threads_come_back():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    assert available_cores() >= 1
