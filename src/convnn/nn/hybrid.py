"""HybridConvNN1d, 2d and 3d: a convolution and a ConvNN side by side, mixed by a 1x1 convolution."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from .. import _checks as checks
from .._options import check_names, names_of, takes
from .._tracing import Leaf
from ..errors import invalid
from ..maps import describe_map
from ..stages import geometry
from ..types import Choice, Neighbors
from . import kernels
from .convnn import ConvNN1d, ConvNN2d, ConvNN3d
from .kernels import Conv, kernel_radius, resolve_padding
from .layer import PADDING_MODES, check_dtype, check_input, collapse_repeated, per_axis
from .options import ConvNNOptions, HybridKeywords, kwargs_repr, options_repr


def branch_share(branch_ratio: float, channels: int) -> int:
    """Return ``floor(branch_ratio * channels)``, the ConvNN's share; raises ConvNNError outside [0, 1].

    >>> branch_share(0.25, 10)
    2
    """
    if not 0 <= checks.number("branch_ratio", branch_ratio) <= 1:
        fix = "0 is the convolution (or attention) alone, 1 the ConvNN alone"
        raise invalid("branch_ratio", "a number in [0, 1]", branch_ratio, fix)
    # 0.29 * 100 is 28.999... in binary; rounding keeps that channel.
    return math.floor(round(branch_ratio * channels, 9))


class _HybridConvNN(Leaf):
    """A convolution and a ConvNN, both fed the whole input, concatenated (ConvNN first) and mixed by a 1x1 convolution.

    Drop-in for ``nn.Conv*d``: same arguments, same order, and the same output size for any stride, padding and
    dilation. An even kernel has no centre for the query; it needs ``padding="same"`` and stride 1. The ConvNN has
    ``floor(branch_ratio * C_out)`` of the C_out channels. With ``groups`` above 1, every output channel sees its own
    group alone, so the groups are divided between the branches (each branch takes the channels of its groups).

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: of the convolution; even sizes only with ``padding="same"`` and stride 1.
        stride: of both branches.
        padding: as in ``nn.Conv*d``, it sets the output's size: ``"same"`` (the kernel's radius, with any stride),
            ``"valid"``, or numbers. The default is ``"same"``, not 0.
        dilation: of the convolution.
        groups: of both branches together.
        bias: whether the branches have a bias (the mix always has one).
        padding_mode: as in ``nn.Conv*d``.
        device: as in ``nn.Conv*d``.
        dtype: as in ``nn.Conv*d``.
        k: neighbours of the ConvNN.
        branch_ratio: lambda, the ConvNN's share of the output channels, in [0, 1]; 0 and 1 keep one branch and the mix.
        convnn_bias: whether the ConvNN has one; as ``bias`` if left out.
        candidate_padding: as in ``ConvNN*d``, candidates around the map; as ``padding`` if left out.
        **options: of the ConvNN: ``similarity``, ``candidates``, ``aggregation``, ...

    Shapes:
        Input ``(B, C_in, *grid)`` or ``(C_in, *grid)``; output that of the convolution.

    Raises:
        ConvNNError: an argument or an input does not fit.

    Example:
        >>> import convnn
        >>> layer = convnn.HybridConvNN2d(16, 32, 3, k=9, branch_ratio=0.5, candidates=convnn.Random(32))
        >>> layer(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
        >>> layer.conv.weight.shape, layer.convnn.weight.shape
        (torch.Size([16, 16, 3, 3]), torch.Size([16, 16, 9]))
    """

    dims: ClassVar[int]
    conv_type: ClassVar[type[Conv]]
    convnn_type: ClassVar[type[ConvNN1d | ConvNN2d | ConvNN3d]]
    transposed: ClassVar[bool] = False
    conv: Conv | None
    convnn: ConvNN1d | ConvNN2d | ConvNN3d | None

    @takes(ConvNNOptions, without=("query_margin",))
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...] = 3,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = "same",
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        branch_ratio: float = 0.5,
        convnn_bias: bool | None = None,
        candidate_padding: int | tuple[int, ...] | None = None,
        **options: Unpack[HybridKeywords],
    ) -> None:
        super().__init__()
        check_names(options, CONVNN_OPTIONS)
        checked = ConvNNOptions(**options)  # also if no branch uses them
        self.in_channels = checks.whole("in_channels", in_channels)
        self.out_channels = checks.whole("out_channels", out_channels)
        self.groups = checks.whole("groups", groups)
        self.stride = per_axis("stride", stride, self.dims, at_least=1)
        self.dilation = per_axis("dilation", dilation, self.dims, at_least=1)
        self.output_padding = (0,) * self.dims
        self.kernel_size = self._kernel(kernel_size, padding)
        self.branch_ratio, self.k = branch_ratio, checked.k
        self.bias, self.convnn_bias, self.padding_mode = checks.flag("bias", bias), convnn_bias, padding_mode
        branch_bias = self.bias if convnn_bias is None else checks.flag("convnn_bias", convnn_bias)
        check_dtype("dtype", dtype)
        checks.name("padding_mode", padding_mode, PADDING_MODES)
        share = branch_share(branch_ratio, out_channels)
        radius = kernel_radius(self.kernel_size, self.dilation)
        self.padding = resolve_padding(padding, radius)
        self.candidate_padding, margin = kernels.padding_and_margin(self.padding, radius, candidate_padding)
        self.convnn_groups = self._divide_groups(share)
        shared: dict[str, Any] = {"stride": self.stride, "padding_mode": padding_mode, "device": device,
                                  "dtype": dtype}  # fmt: skip
        self.convnn_channels = in_channels if groups == 1 else in_channels // groups * self.convnn_groups
        conv_channels = in_channels if groups == 1 else in_channels - self.convnn_channels
        self.conv = self.convnn = None
        patches = self._takes_patches(checked)
        self._options = kwargs_repr({name: v for name, v in options.items() if name != "k"})
        if share:
            self.convnn = self.convnn_type(
                self.convnn_channels, share, groups=self.convnn_groups if groups > 1 else 1,
                bias=branch_bias, candidate_padding=self.candidate_padding,
                query_margin=None if patches else margin, **shared, **options,
            )  # fmt: skip
        if share < out_channels:
            convolution: Any = self.conv_type
            self.conv = convolution(
                conv_channels, out_channels - share, self.kernel_size, dilation=self.dilation, bias=bias,
                padding=self.padding if self._has_center() else "same",
                groups=max(groups - self.convnn_groups, 1) if groups > 1 else 1, **shared,
            )  # fmt: skip
        self.mix = self.conv_type(out_channels, out_channels, 1, device=device, dtype=dtype)

    def _kernel(self, kernel_size: object, padding: object) -> tuple[int, ...]:
        """Return the kernel per axis; raises ConvNNError for an even one without ``padding="same"`` and stride 1."""
        kernel = per_axis("kernel_size", kernel_size, self.dims, at_least=1)
        if any(size % 2 == 0 for size in kernel) and (padding != "same" or set(self.stride) != {1}):
            expected = "odd sizes (the query is the kernel's centre), or even ones with padding='same' and stride 1"
            raise invalid("kernel_size", expected, kernel, "use an odd kernel")
        return kernel

    def _has_center(self) -> bool:
        return all(size % 2 for size in self.kernel_size)

    def _divide_groups(self, share: int) -> int:
        """Return the number of groups of the ConvNN; raises ConvNNError for a ratio that cuts a group."""
        if self.groups == 1:
            return 0
        if self.in_channels % self.groups or self.out_channels % self.groups:
            expected = f"a divisor of in_channels = {self.in_channels} and out_channels = {self.out_channels}"
            raise invalid("groups", expected, self.groups, "choose such a number")
        size = self.out_channels // self.groups
        if share % size:
            expected = f"a ratio that gives whole groups of {size} channels to each branch"
            raise invalid("branch_ratio", expected, f"{self.branch_ratio} ({share} channels)", "use a multiple of "
                          f"{size}/{self.out_channels}")  # fmt: skip
        return share // size

    def _takes_patches(self, options: ConvNNOptions) -> bool:
        """Return True if the ConvNN's tokens are patches; raises ConvNNError if its output would have another size."""
        patches = options.unshuffle != 1 or options.shuffle != 1
        same_size = set(self.stride) == {1} and self.padding == kernel_radius(self.kernel_size, self.dilation)
        if patches and not (same_size and options.unshuffle == options.shuffle):
            expected = "equal to shuffle, with stride 1 and padding 'same' (the branches must agree in size)"
            raise invalid("unshuffle", expected, options.unshuffle, "set unshuffle = shuffle")
        return patches

    def forward(self, input: Tensor, neighbors: Neighbors | None = None) -> Tensor:  # noqa: A002  # nn.Conv*d's name
        """Map ``(B, C_in, *grid)`` (or without B) to ``(B, C_out, *grid')``.

        ``neighbors``: for the ConvNN branch, the result of ``neighbors()`` of a layer like this one.
        """
        x = input
        self._check_input(x)
        channel = x.dim() - self.dims - 1
        x = x if self.groups == 1 else geometry.match_gradient_layout(x)  # the gradient of a part would be contiguous
        branches = []
        if self.convnn is not None:
            branches.append(self.convnn(self._near(x), neighbors))
        if self.conv is not None:
            rest = self.in_channels - self.convnn_channels
            branches.append(self.conv(x if self.groups == 1 else x.narrow(channel, self.convnn_channels, rest)))
        mixed: Tensor = self.mix(torch.cat(branches, dim=channel) if len(branches) > 1 else branches[0])
        # torch's own convolutions lose channels-last in some cases.
        return geometry.lay_out(mixed, geometry.memory_format_of(x)) if channel else mixed

    def neighbors(self, x: Tensor) -> Neighbors:
        """Find the neighbours that the ConvNN branch would aggregate; see ``ConvNN*d.neighbors``."""
        if self.convnn is None:
            raise invalid("branch_ratio", "a ratio that keeps a ConvNN branch", self.branch_ratio, "raise it")
        self._check_input(x)
        return self.convnn.neighbors(self._near(x))

    def explain_choice(self, x: Tensor) -> Choice:
        """Return which implementation the ConvNN branch would run for ``(B, C_in, *grid)``, and why; runs nothing."""
        if self.convnn is None:
            raise invalid("branch_ratio", "a ratio that keeps a ConvNN branch", self.branch_ratio, "raise it")
        self._check_input(x)
        return self.convnn.explain_choice(self._near(x))

    def _near(self, x: Tensor) -> Tensor:
        """Return the channels that the ConvNN branch sees."""
        return x if self.groups == 1 else x.narrow(x.dim() - self.dims - 1, 0, self.convnn_channels)

    def _check_input(self, x: Tensor) -> None:
        shape = f"(batch, {self.in_channels}, ...) with {self.dims} axes of positions"
        ranks = (self.dims + 2, self.dims + 1)
        check_input(x, self, shape=shape, ranks=ranks, axis=-1 - self.dims, channels=self.in_channels)
        radius = kernel_radius(self.kernel_size, self.dilation)
        # It raises ConvNNError for a map that is too small.
        describe_map(x.shape[-self.dims :], self.padding, radius, stride=self.stride)

    def extra_repr(self) -> str:
        """Write the call that makes this layer; the branches follow."""
        call = f"{self.in_channels}, {self.out_channels}, kernel_size={collapse_repeated(self.kernel_size)}, k={self.k}"
        same = kernel_radius(self.kernel_size, self.dilation)
        padding = "same" if self.padding == same else collapse_repeated(self.padding)
        shown = {
            "branch_ratio": (self.branch_ratio, None),
            "stride": (collapse_repeated(self.stride), 1),
            "padding": (padding, "same"),
            "dilation": (collapse_repeated(self.dilation), 1),
            "groups": (self.groups, 1),
            "bias": (self.bias, True),
            "convnn_bias": (self.convnn_bias, None),
            "candidate_padding": (collapse_repeated(self.candidate_padding), collapse_repeated(self.padding)),
            "padding_mode": (self.padding_mode, "zeros"),
        }
        return call + options_repr(shown) + self._options


# The options of a hybrid's ConvNN branch; the kernel decides the query margin.
CONVNN_OPTIONS = names_of(ConvNNOptions) - {"query_margin"}


class HybridConvNN1d(_HybridConvNN):  # noqa: D101  # the docstring is the base's
    __doc__ = _HybridConvNN.__doc__
    dims = 1
    conv_type = nn.Conv1d
    convnn_type = ConvNN1d


class HybridConvNN2d(_HybridConvNN):  # noqa: D101  # the docstring is the base's
    __doc__ = _HybridConvNN.__doc__
    dims = 2
    conv_type = nn.Conv2d
    convnn_type = ConvNN2d


class HybridConvNN3d(_HybridConvNN):  # noqa: D101  # the docstring is the base's
    __doc__ = _HybridConvNN.__doc__
    dims = 3
    conv_type = nn.Conv3d
    convnn_type = ConvNN3d
