"""parallel_for: whose threads it uses, how many, and that each item is in one range."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch

from convnn.native import loading


class Record(ctypes.Structure):
    """One range that ran: `struct record` of probe.c."""

    _fields_ = (
        ("begin", ctypes.c_int64),
        ("end", ctypes.c_int64),
        ("thread", ctypes.c_uint64),
        ("inner_parts", ctypes.c_int64),
        ("inner_elsewhere", ctypes.c_int64),
    )


def ranges(probe: ctypes.CDLL, begin: int, end: int, grain: int) -> list[Record]:
    records = (Record * 300)()
    count = probe.probe(*map(ctypes.c_int64, (begin, end, grain)), records)
    return sorted(records[:count], key=lambda record: record.begin)


@pytest.fixture(params=["torch", "own", "own, number set"])
def pool(request: pytest.FixtureRequest, probe: ctypes.CDLL) -> Iterator[str]:
    parallel_for, get_num_threads = loading.torch_addresses()
    if request.param == "torch" and parallel_for is None:
        pytest.skip("this PyTorch lends no threads")
    own = None, (None if request.param == "own, number set" else get_num_threads)
    probe.convnn_use_torch(*((parallel_for, get_num_threads) if request.param == "torch" else own))
    before = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(before)


def use(probe: ctypes.CDLL, threads: int) -> None:
    torch.set_num_threads(threads)
    probe.convnn_set_threads(threads)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_as_many_threads_as_torch_has(probe, pool, threads):
    use(probe, threads)
    assert probe.probe_threads() == threads
    found = ranges(probe, 3, 103, 1)
    assert len(found) == threads
    assert len({record.thread for record in found}) == threads
    assert [record.begin for record in found] == [3, *(record.end for record in found[:-1])]
    assert found[-1].end == 103


def test_ranges_have_at_least_the_grain(probe, pool):
    use(probe, 4)
    assert [(record.begin, record.end) for record in ranges(probe, 0, 100, 50)] == [(0, 50), (50, 100)]
    assert [(record.begin, record.end) for record in ranges(probe, 0, 100, 100)] == [(0, 100)]
    assert [(record.begin, record.end) for record in ranges(probe, 0, 2, 0)] == [(0, 1), (1, 2)]
    assert ranges(probe, 5, 5, 1) == []


def test_a_call_from_inside_stays_in_its_thread(probe, pool):
    use(probe, 3)
    found = ranges(probe, 0, 3, 1)
    assert [(record.inner_parts, record.inner_elsewhere) for record in found] == [(1, 0)] * 3


def test_more_threads_than_are_allowed(probe):
    probe.convnn_use_torch(None, None)
    probe.convnn_set_threads(10_000)
    found = ranges(probe, 0, 2_000, 1)
    probe.convnn_set_threads(1)
    assert len(found) == 250  # 256 at most, each of 8 items
    assert sum(record.end - record.begin for record in found) == 2_000


def test_the_number_is_that_of_the_calling_thread(probe):
    from threading import Thread

    probe.convnn_use_torch(None, None)
    probe.convnn_set_threads(4)
    seen = []
    thread = Thread(target=lambda: seen.append(probe.convnn_threads()))
    thread.start()
    thread.join()
    assert (seen, probe.convnn_threads()) == ([1], 4)
    probe.convnn_set_threads(-3)
    assert probe.convnn_threads() == 1


def test_a_calling_thread_keeps_its_identity(probe, pool):
    """The first range runs in the thread that calls, so that one range costs no other thread."""
    use(probe, 1)
    main = ranges(probe, 0, 10, 1)[0].thread
    use(probe, 2)
    assert main in {record.thread for record in ranges(probe, 0, 10, 1)}
