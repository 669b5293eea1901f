"""Every operator of the namespace is complete, and what it returns is its own."""

from __future__ import annotations

import pytest
import torch
from torch._library.simple_registry import singleton
from torch.utils.flop_counter import flop_registry

from convnn.ops.bags import bag_sum
from convnn.ops.native import native_pair_product
from convnn.ops.registry import PLAIN_FORMS, kernel, owned
from convnn.ops.sampled import sampled_mix

from ..operators import OPERATORS

NAMES = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("convnn::")}


def test_every_operator_has_a_plain_form_and_is_tested() -> None:
    assert len(NAMES) >= 12
    assert {overload._opname for overload in PLAIN_FORMS} == NAMES
    assert {operator._opoverload for operator in OPERATORS} == set(PLAIN_FORMS)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_operator_is_complete(name: str) -> None:
    """A fake, a formula of FLOPs, a rule for transforms, what runs everywhere, and a kernel of each native form."""
    qualified = f"convnn::{name}"
    assert singleton.find(qualified).fake_impl.kernel is not None
    assert getattr(torch.ops.convnn, name) in flop_registry
    assert torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "CPU") == name.startswith("native_")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "CompositeExplicitAutograd")
    transforms = ("FuncTorchBatched", "FuncTorchDynamicLayerFrontMode")
    assert any(torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key) for key in transforms)


def test_a_kernel_is_one_function() -> None:
    """A kernel takes an operator's place on its device, and so a later one that of an earlier one."""
    query, table, index = torch.randn(1, 3, 2), torch.randn(1, 4, 2), torch.zeros(1, 3, 2, dtype=torch.int64)
    before, own = native_pair_product(query, table, index), native_pair_product._backend_fns["cpu"]
    kernel(native_pair_product, "cpu")(lambda query, table, index: query.new_full(index.shape, 7))
    try:
        assert (native_pair_product(query, table, index) == 7).all()
    finally:
        kernel(native_pair_product, "cpu")(own)
    assert torch.equal(native_pair_product(query, table, index), before)


@pytest.mark.parametrize("channels_first", [False, True])
def test_results_may_be_modified_in_place(channels_first: bool) -> None:
    value, slots = torch.randn(2, 6, 3, requires_grad=True), torch.randn(3, 4, 3, requires_grad=True)
    rest = torch.tensor([0, 3]), torch.randint(0, 2, (2, 6, 2)), [2, 3, 2, 3, 0, 0, 1, 1], channels_first
    for out in (sampled_mix(value, slots, None, *rest), bag_sum(value, rest[1], None)):
        assert not out._is_view()
        out.mul_(2).sum().backward()


def test_owned_keeps_memory_and_layout() -> None:
    x = torch.randn(3, 4)
    assert owned(x) is x
    assert owned(x.t()).data_ptr() == x.data_ptr()
    assert torch.equal(owned(x.t()), x.t())
    assert not owned(x.t())._is_view()
