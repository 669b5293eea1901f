"""ConvNN1d, ConvNN2d and ConvNN3d: drop-in for nn.Conv*d, with neighbours chosen by similarity."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self, Unpack, cast

import torch
from torch import Tensor, nn

from .. import _checks as checks
from .._options import build, takes
from ..errors import invalid
from ..knn import Call, aggregate, explain, search_with
from ..maps import MapGeometry, describe_map
from ..stages import geometry
from ..types import Choice, Neighbors
from . import kernels
from .layer import (
    PADDING_MODES,
    NeighborLayer,
    check_dtype,
    check_input,
    collapse_repeated,
    init_like_conv,
    option,
    per_axis,
)
from .options import ConvNNKeywords, ConvNNOptions, options_repr


class _ConvNN(NeighborLayer):
    """The k nearest tokens of every position of a map, aggregated by one matrix per slot.

    Takes the arguments of ``nn.Conv*d`` in their order, with ``k`` instead of ``kernel_size`` and ``candidate_padding``
    instead of ``padding``; ``dilation`` must be 1. The queries are the input's positions (every ``stride``-th).

    Args:
        in_channels: C_in.
        out_channels: C_out.
        k: neighbours of every query, itself counted; None (with ``aggregation="sum"``) for every token.
        stride: the distance of the queries, in tokens; one number, or one per axis.
        candidate_padding: candidates added on every side of every axis, which never change the output's size: numbers,
            ``"valid"`` (0), or ``"same"`` (with stride 1: the radius of the odd window that k tokens fill).
        dilation: 1; neighbours have no kernel to dilate, but ``Window(size, dilation)`` has gaps.
        groups: as in ``nn.Conv*d``; so are ``padding_mode``, ``device`` and ``dtype``.
        bias: whether to add a learned ``(C_out,)``.
        similarity: ``"cosine"``, ``"dot"``, ``"sqeuclidean"``, ``"euclidean"``, ``"spatial"`` or ``Blend(lam)``.
        candidates: ``"all"``, ``Random(r)`` (redrawn at every call in training; the draw of ``eval_seed`` in
            evaluation), ``Grid(g)``, ``Window(size)``, or positions ``(r,)`` in the padded map.
        include_self: whether slot 0 is the query's own token. Left out: yes for features; no for spatial similarity,
            whose slots stay in raster order, as a kernel's.
        weighting: ``"ones"``, ``"identity"`` or ``"softmax"`` of the similarities.
        aggregation: ``"standard"``, ``"depthwise"``, ``"depthwise_separable"`` or ``"sum"``.
        projection: whether queries, keys and values are learned 1x1 projections (without bias) of the input; with
            ``weighting`` ``"softmax"`` or ``"identity"``; otherwise queries and keys would have no gradient.
        value_coordinates: whether the coordinates are appended to the values (published: aggregation "Loc_Col").
        unshuffle: fold patches of this size into tokens before (1: none).
        shuffle: spread the output over patches of this size after (1: none).
        query_margin: the first query's distance from the border of the padded map; ``candidate_padding`` if left out
            (the queries are the input's tokens). A kernel's radius makes the output as large as that convolution's.
        temperature: the similarities' divisor under ``"softmax"``.
        scale: the factor of ``"dot"``; ``1/sqrt(C_in)`` if left out.
        impl: ``"auto"``, or the implementation to run.

    Shapes:
        Input ``(B, C_in, *grid)`` or ``(C_in, *grid)``; output with C_out and ``ceil(size / stride)`` per axis.
        ``weight`` ``(C_out, C_in/groups, k)``, ``bias`` ``(C_out,)``.

    Raises:
        ConvNNError: an argument or an input does not fit.

    Example:
        >>> import convnn
        >>> layer = convnn.ConvNN2d(16, 32, k=9, candidate_padding=1)
        >>> layer(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
    """

    dims: ClassVar[int]
    conv_type: ClassVar[type[kernels.Conv]]
    transposed: ClassVar[bool] = False
    options: ConvNNOptions
    projection: bool = option("projection", fixed=True)
    value_coordinates: bool = option("value_coordinates", fixed=True)
    unshuffle: int = option("unshuffle", fixed=True)
    shuffle: int = option("shuffle", fixed=True)
    slot_groups: int
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    query_projection: nn.Linear | None
    key_projection: nn.Linear | None
    value_projection: nn.Linear | None
    pointwise: nn.Linear | None

    @takes(ConvNNOptions)
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        k: int | None = ConvNNOptions.k,
        stride: int | tuple[int, ...] = 1,
        candidate_padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[ConvNNKeywords],
    ) -> None:
        given: dict[str, Any] = {"k": k, **options}
        if "padding" in given:
            expected = "candidate_padding, which adds candidates (the output has ceil(size / stride) tokens anyway)"
            raise invalid("padding", expected, given["padding"], "rename it, or leave it out")
        super().__init__(build(ConvNNOptions, given))
        checks.name("padding_mode", padding_mode, PADDING_MODES)
        check_dtype("dtype", dtype)
        self.in_channels = checks.whole("in_channels", in_channels)
        self.out_channels = checks.whole("out_channels", out_channels)
        self.groups = checks.whole("groups", groups)
        self.stride = per_axis("stride", stride, self.dims, at_least=1)
        self.candidate_padding = kernels.candidate_padding(candidate_padding, self)
        self.dilation, self.output_padding = kernels.undilated(dilation, self.dims), (0,) * self.dims
        margin = self.candidate_padding if self.options.query_margin is None else self.options.query_margin
        self.query_margin = per_axis("query_margin", margin, self.dims, at_least=0)
        self.padding_mode = padding_mode
        self.has_bias = checks.flag("bias", bias) and self.aggregation != "sum"
        kernels.make_parameters(self, {"device": device, "dtype": dtype})
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as ``nn.Conv*d`` does."""
        if self.weight is not None:
            init_like_conv(self.weight, self.bias)

    @classmethod
    def from_conv(cls, conv: nn.Module, *, impl: str = "auto") -> Self:
        """Make the spatial layer that is equal to a convolution, with a copy of its weights.

        Args:
            conv: an ``nn.Conv*d`` of as many axes, with an odd kernel; any stride, dilation, groups and padding.
            impl: ``"auto"`` runs the native convolution.

        Raises:
            ConvNNError: the kernel is even, or ``conv`` is no such convolution.

        Example:
            >>> import convnn
            >>> conv = nn.Conv2d(3, 8, 3, padding=1)
            >>> x = torch.randn(1, 3, 6, 6)
            >>> torch.allclose(convnn.ConvNN2d.from_conv(conv)(x), conv(x), atol=1e-6)
            True
        """
        layer = cls(**kernels.spatial_options(conv, cls.conv_type), impl=impl)
        layer.load_state_dict(conv.state_dict())
        for name, parameter in conv.named_parameters():
            layer.get_parameter(name).requires_grad_(parameter.requires_grad)
        return layer.train(conv.training)

    def forward(self, input: Tensor, neighbors: Neighbors | None = None) -> Tensor:  # noqa: A002  # nn.Conv*d's name
        """Map ``(B, C_in, *grid)`` (or without B) to ``(B, C_out, *grid')``, in the input's memory format.

        ``neighbors``: the result of ``neighbors()`` of a layer of the same geometry; nothing is searched.
        """
        unbatched = self._check_input(input)
        x = input.unsqueeze(0) if unbatched else input
        if self.similarity != "spatial":  # a convolution sets the layout of its gradients itself
            x = geometry.match_gradient_layout(x)
        call = self._call(x)
        if neighbors is None:
            y = aggregate(call)
        else:
            described = cast(MapGeometry, call.geometry)  # maps always have one
            padded = geometry.match_gradient_layout(geometry.view_map(call.gather.value, described.sizes))
            padded = geometry.pad_map(padded, described.padding, described.padding_mode)
            shape = described.queries.shape
            options = self.options.gather(call.gather.groups)
            gathered = self._gather(options, geometry.to_tokens(padded), neighbors, math.prod(shape), self.bias)
            y = geometry.view_map(gathered, shape)
        if self.pointwise is not None:
            y = geometry.view_map(self.pointwise(geometry.to_tokens(y)), y.shape[2:])
        y = geometry.lay_out(geometry.pixel_shuffle(y, self.shuffle), geometry.memory_format_of(x))
        return y.squeeze(0) if unbatched else y

    def _call(self, x: Tensor) -> Call:
        """Return the call of the operator on the tokens of a map ``(B, C_in, *grid)``."""
        x = geometry.pixel_unshuffle(x, self.unshuffle)
        described = describe_map(
            x.shape[2:], self.candidate_padding, self.query_margin, stride=self.stride, padding_mode=self.padding_mode,
            channels_last=not x.is_contiguous(),
        )  # fmt: skip
        queries = described.queries
        if self.projection or self.value_coordinates:  # both apply to the padded tokens too
            x = geometry.pad_map(geometry.to_channels_last(x), self.candidate_padding, self.padding_mode)
            described = described.once_padded()
        query = key = value = tokens = geometry.to_tokens(x)
        if self.query_projection is not None and self.key_projection is not None and self.value_projection is not None:
            query = self.query_projection(geometry.to_tokens(geometry.subsample(x, queries)))
            key, value = self.key_projection(key), self.value_projection(value)
        if self.value_coordinates:
            value = geometry.with_coordinates(value, described.grid)
        groups = 1 if self.weight is None else self.slot_groups
        source = x if value is tokens else None
        gather = self.options.gather(groups).of(value, self.weight, self.bias, source=source)
        return Call(query, key, gather, self.k, self.impl, self._search_options(), described)

    def explain_choice(self, x: Tensor) -> Choice:
        """Return which implementation ``forward`` would run for a map ``(B, C_in, *grid)``, and why; runs nothing."""
        return explain(self._call(x.unsqueeze(0) if self._check_input(x) else x))

    def neighbors(self, x: Tensor) -> Neighbors:
        """Find the neighbours that ``forward`` would aggregate in x ``(B, C_in, *grid)``.

        Returns ``Neighbors`` of ``(B, N, k)``: query n is the n-th output position, an index counts the tokens of the
        padded (and unshuffled) map, both in raster order.

        Example:
            >>> import convnn
            >>> convnn.ConvNN2d(4, 4, k=3).neighbors(torch.randn(1, 4, 5, 5)).index.shape
            torch.Size([1, 25, 3])
        """
        call = self._call(x.unsqueeze(0) if self._check_input(x) else x)
        return search_with(call.search, call.query, call.key, call.k, call.geometry, impl=self._search_impl())

    def _check_input(self, x: Tensor) -> bool:
        """Raise ConvNNError for an input that does not fit; return True if the batch axis is missing."""
        sizes = ", ".join(("length",) if self.dims == 1 else ("depth", "height", "width")[-self.dims :])
        shape = f"(batch, {self.in_channels}, {sizes})"
        ranks = (self.dims + 2, self.dims + 1)
        check_input(x, self, shape=shape, ranks=ranks, axis=-1 - self.dims, channels=self.in_channels)
        if any(size % self.unshuffle for size in x.shape[-self.dims :]):
            expected = f"sizes divisible by unshuffle = {self.unshuffle}"
            raise invalid("input", expected, tuple(x.shape[-self.dims :]), "pad or crop the map")
        return x.dim() == self.dims + 1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Accept a convolution's weight ``(C_out, C_in/groups, *kernel)`` where the slots are that very kernel's."""
        if prefix + "weight" in state_dict:
            state_dict = {**state_dict, prefix + "weight": kernels.as_slots(state_dict[prefix + "weight"], self)}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Write the call that makes this layer."""
        parts = f"{self.in_channels}, {self.out_channels}, k={self.k}" + options_repr({
            "stride": (collapse_repeated(self.stride), 1),
            "candidate_padding": (collapse_repeated(self.candidate_padding), 0),
            "groups": (self.groups, 1),
            "bias": (self.has_bias, True),
            "include_self": (self.include_self, True if self.similarity != "spatial" else None),
            "projection": (self.projection, False),
            "value_coordinates": (self.value_coordinates, False),
            "unshuffle": (self.unshuffle, 1),
            "shuffle": (self.shuffle, 1),
            "padding_mode": (self.padding_mode, "zeros"),
            "query_margin": (collapse_repeated(self.query_margin), collapse_repeated(self.candidate_padding)),
        })  # fmt: skip
        return parts + self._neighbor_repr(ConvNNOptions())


class ConvNN1d(_ConvNN):  # noqa: D101  # the docstring is the base's
    __doc__ = _ConvNN.__doc__
    dims = 1
    conv_type = nn.Conv1d


class ConvNN2d(_ConvNN):  # noqa: D101  # the docstring is the base's
    __doc__ = _ConvNN.__doc__
    dims = 2
    conv_type = nn.Conv2d


class ConvNN3d(_ConvNN):  # noqa: D101  # the docstring is the base's
    __doc__ = _ConvNN.__doc__
    dims = 3
    conv_type = nn.Conv3d
