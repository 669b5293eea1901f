"""The native library as it is loaded: its level, its threads, forks, and the reasons for not using it."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from convnn import native
from convnn.errors import ConvNNError
from convnn.native import build, loading, signatures

from .conftest import X86

USABLE = [name for name, reason in native.levels().items() if reason is None]
FASTEST = USABLE[-1] if USABLE else None
OTHER = "neon" if X86 else "avx2"  # a level of other processors


def row_dots(a: Tensor, b: Tensor) -> Tensor:
    out = a.new_empty(a.shape[0])
    native.library().convnn_row_dots(a.data_ptr(), b.data_ptr(), out.data_ptr(), *a.shape)
    return out


@pytest.mark.parametrize("name", USABLE or [pytest.param("none", marks=pytest.mark.skip("needs the native library"))])
def test_every_level_has_the_same_result(name):
    with native.at_level(name):
        assert native.level() == name
        for shape in ((0, 3), (1, 1), (5, 0), (3, 15), (7, 16), (4, 33), (2000, 67)):
            a, b = torch.randn(shape), torch.randn(shape)
            torch.testing.assert_close(row_dots(a, b).double(), (a.double() * b.double()).sum(1), rtol=1e-5, atol=1e-5)
        special = torch.tensor([[float("nan")] + [1.0] * 20, [float("inf")] + [1.0] * 20, [-1e38] * 21])
        expected = torch.tensor([float("nan"), float("inf"), float("-inf")])
        assert torch.equal(row_dots(special, special.abs()).nan_to_num(), expected.nan_to_num())
        assert row_dots(special, special.abs()).isnan().tolist() == [True, False, False]


def test_the_fastest_level_is_in_use(library):
    if os.environ.get(loading.VARIABLE, "auto") == "auto":
        assert native.level() == FASTEST
    assert native.why_not() is None


def started(value: str, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, loading.VARIABLE: value}
    call = [sys.executable, "-c", f"from convnn import native\n{code}"]
    return subprocess.run(call, capture_output=True, text=True, env=environment, check=False, timeout=120)


@pytest.mark.parametrize(
    ("value", "said"),
    [("off", "None CONVNN_NATIVE is off"), ("baseline", "baseline None"), ("", f"{FASTEST} None")],
)
def test_the_variable_chooses(library, value, said):
    done = started(value, "print(native.level(), native.why_not())")
    assert done.stdout.strip() == said, done.stderr


WRONG = "expected one of 'auto', 'off', 'baseline', 'avx2', 'avx512', 'neon', got 'avx'; did you mean 'avx2'?"
ELSEWHERE = (
    f"expected a level that can be used here ({', '.join(map(repr, USABLE))}), got '{OTHER}'; "
    f"it is for {loading.MACHINES[OTHER][0]} processors"
)


@pytest.mark.parametrize(("value", "said"), [("avx", WRONG), (OTHER, ELSEWHERE)])
def test_a_wrong_value_is_an_error_each_time(library, monkeypatch, value, said):
    monkeypatch.setattr(loading, "_state", loading._State())
    monkeypatch.setenv(loading.VARIABLE, value)
    for ask in (native.why_not, native.level, native.levels, native.library):
        with pytest.raises(ConvNNError) as error:
            ask()
        assert str(error.value) == f"CONVNN_NATIVE: {said}"


def test_a_level_for_a_block(library):
    before = native.level()
    with native.at_level("baseline"):
        with native.at_level("off"):
            assert (native.level(), native.why_not()) == (None, "at_level('off')")
            assert set(native.levels().values()) == {"at_level('off')"}
            with pytest.raises(ConvNNError, match=r"expected one that can be used, got none; at_level\('off'\)"):
                native.library()
            with native.at_level("baseline"):
                assert native.level() == "baseline"
        assert native.level() == "baseline"
    assert native.level() == before
    with pytest.raises(ConvNNError, match=r"name: expected one of 'baseline', .*, got 'sse'"), native.at_level("sse"):
        pass
    with pytest.raises(ConvNNError, match=f"name: expected a level that .*, got '{OTHER}'"), native.at_level(OTHER):
        pass
    assert native.level() == before


def test_reasons(tmp_path, monkeypatch):
    def reason(**record: object) -> str:
        (tmp_path / build.RECORD).write_text(json.dumps(asdict(build.Built(**record))))
        return str(loading._open(tmp_path).reason)

    run = "run python -m convnn.native"
    assert loading._open(tmp_path).reason == f"it is not compiled; {run}"
    assert reason(sources="", reason="no compiler") == f"it is not compiled: no compiler; to try again, {run}"
    stale = reason(sources="", library="_convnn.so")
    assert stale == f"it is compiled from other sources than those of this version; {run}"
    (tmp_path / "_convnn.so").write_text("no library")
    broken = reason(sources=build.sources_digest(), library="_convnn.so")
    assert broken.startswith("it cannot be loaded (")
    assert broken.endswith(run)
    monkeypatch.setattr(loading, "_state", loading._State())
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    monkeypatch.setenv(loading.VARIABLE, "auto")
    assert (native.level(), native.why_not()) == (None, broken)
    assert set(native.levels().values()) == {broken}
    monkeypatch.setattr(loading, "_state", loading._State())
    monkeypatch.setenv(loading.VARIABLE, "baseline")
    with pytest.raises(ConvNNError, match="expected 'auto' or 'off' without the library, got 'baseline'; it cannot be"):
        native.why_not()


def test_what_a_kernel_returns_is_raised(library):
    for result, error in ((1, MemoryError), (2, RuntimeError)):
        with pytest.raises(error, match="convnn_row_dots: "):
            signatures._check(result, library.convnn_row_dots, ())
    with pytest.raises(ctypes.ArgumentError):
        library.convnn_level_status(3)


@pytest.mark.parametrize("pool", ["torch", "own"])
def test_eight_threads_at_once(library, pool):
    parallel_for, get_num_threads = loading.torch_addresses()
    problems = [(torch.randn(300, 200 + i), torch.randn(300, 200 + i)) for i in range(8)]
    alone = [row_dots(*problem) for problem in problems]
    library.convnn_use_torch(parallel_for if pool == "torch" else None, get_num_threads)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(8) as threads:
            for _ in range(10):
                answers = threads.map(lambda problem: row_dots(*problem), problems)
                assert all(map(torch.equal, answers, alone))
    finally:
        library.convnn_use_torch(parallel_for, get_num_threads)
        torch.set_num_threads(before)


FORK = """
import os, signal, sys, time, torch
from convnn.native import loading
torch.set_num_threads(2)
a = torch.ones(4000, 50)

def dots():
    out = torch.zeros(4000)
    native.library().convnn_row_dots(a.data_ptr(), a.data_ptr(), out.data_ptr(), 4000, 50)
    return out[0].item() == out[-1].item() == 50.0 == out.mean().item()

def child(pool):
    process = os.fork()
    if process == 0:
        signal.alarm(30)
        right = dots() and dots() and native.library().convnn_threads() == 2 and not native.on_torch_threads()
        os._exit(0 if right else 1)
    print(pool, os.waitpid(process, 0)[1], dots(), flush=True)

torch.ones(500_000).add(1).sum()  # PyTorch's threads have run before the library is loaded
process = os.fork()
if process == 0:
    signal.alarm(30)
    os._exit(0 if dots() and not native.on_torch_threads() else 1)
print("before", os.waitpid(process, 0)[1], flush=True)
assert dots() and native.on_torch_threads() == (loading.torch_addresses()[0] is not None)
child("torch")
native.library().convnn_use_torch(None, loading.torch_addresses()[1])
assert dots()
child("own")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork(library):
    done = started("auto", FORK)
    assert done.stdout.splitlines() == ["before 0", "torch 0 True", "own 0 True"], done.stderr


def threads_of_a_child() -> tuple[bool, bool]:
    """Whether this process, and a fork of it, run kernels on PyTorch's threads."""
    here = native.on_torch_threads()
    process = os.fork()
    if process == 0:
        os._exit(native.on_torch_threads())
    return here, bool(os.waitpid(process, 0)[1])


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs a forkserver")
def test_children_of_a_forkserver_keep_the_threads(library):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["convnn.native"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        here, after = pool.submit(threads_of_a_child).result(60)
    assert (here, after) == (native.on_torch_threads(), False)


def test_a_library_that_is_there_and_not_used_is_warned_of(library, monkeypatch):
    monkeypatch.delenv("CONVNN_NATIVE", raising=False)
    monkeypatch.setattr(build, "sources_digest", lambda: "of other sources")
    with pytest.warns(UserWarning, match="plain PyTorch, .* compiled from other sources .* run "):
        assert loading._load_once().library is None
