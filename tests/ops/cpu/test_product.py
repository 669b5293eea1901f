"""Products of matrices by oneDNN and by the BLAS library, whichever this machine would choose."""

from __future__ import annotations

import pytest
import torch

from convnn.ops.cpu import product as product_module
from convnn.ops.cpu.product import column_product, map_column_product, map_product, product
from convnn.ops.linear import columns, linear

from ...operators import derivatives


def compare(results: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for ours, exact in zip(results, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.detach().abs().amax()))


def test_the_fast_product_is_the_product() -> None:
    x, y = torch.randn(300, 160), torch.randn(200, 160)
    expected = (x.double() @ y.double().t()).float()
    torch.testing.assert_close(product(x, y), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(product(x.t()[:160].t(), y), expected, rtol=1e-5, atol=1e-4)
    wide = torch.empty(200, 160, 3)  # rows whose elements are apart, as one slot of a weight is
    wide[:, :, 1] = y
    torch.testing.assert_close(product(x, wide[:, :, 1]), expected, rtol=1e-5, atol=1e-4)
    bias = torch.randn(200)
    torch.testing.assert_close(product(x, y, bias), expected + bias, rtol=1e-5, atol=1e-4)


def test_the_product_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(300, 160), torch.randn(200, 160)
    fast = product(x, y)
    with torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(product(x, y), fast, rtol=1e-5, atol=1e-4)
    # A build of torch without oneDNN's operator, which is a private one, gives the same.
    monkeypatch.setattr(product_module, "_inner_product", None)
    torch.testing.assert_close(product(x, y), fast, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [3, 900])  # below and above the size from which oneDNN is worth it
def test_linear_and_its_derivatives(rows: int) -> None:
    given = [torch.randn(*shape) for shape in ((rows, 40), (30, 40), (30,))]
    compare(derivatives(linear, *given), derivatives(torch.nn.functional.linear, *(t.double() for t in given)))


@pytest.mark.parametrize(("rows", "width", "height"), [(900, 40, 30), (900, 64, 64), (20, 300, 200), (3, 2, 2)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("_processor")
def test_columns_and_their_derivatives(rows: int, width: int, height: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, y = torch.randn(rows, width), torch.randn(rows, height)
        compare(derivatives(columns, x, y), derivatives(lambda a, b: a.t() @ b, x.double(), y.double()))
        torch.testing.assert_close(column_product(x, y), x.t() @ y, rtol=1e-4, atol=1e-3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(3, 40, 900), (1, 3, 2), (0, 40, 900)])  # oneDNN's where it is faster, and not
@pytest.mark.usefixtures("_processor")
def test_products_of_maps(shape: tuple[int, int, int]) -> None:
    x, y, bias = torch.randn(shape), torch.randn(shape[0], 30, shape[2]), torch.randn(30)
    for matrix in (torch.randn(30, shape[1]), torch.randn(shape[1], 30).t()):
        exact = torch.einsum("oc,bcn->bon", matrix.double(), x.double())
        torch.testing.assert_close(map_product(x, matrix), exact.float(), rtol=1e-5, atol=1e-4)
        with_bias = (exact + bias.double().view(1, -1, 1)).float()
        torch.testing.assert_close(map_product(x, matrix, bias), with_bias, rtol=1e-5, atol=1e-4)
    sums = torch.einsum("bon,bcn->oc", y.double(), x.double()).float()
    for given in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):  # maps, and tokens
        torch.testing.assert_close(map_column_product(y, given), sums, rtol=1e-4, atol=1e-3)
