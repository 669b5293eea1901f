"""The base of both attention layers: heads that attend to their k nearest keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks as checks
from .._options import GatherOptions, SearchOptions
from ..errors import invalid, shown
from ..knn import Call, aggregate, explain, gather_weighted, search_with
from ..types import Choice, Neighbors
from .layer import NeighborLayer, check_dtype, init_like_conv
from .options import HeadsOptions


class HeadsAttention(NeighborLayer):
    """The base of both attention layers: heads that attend to their k nearest keys, and the slot weights.

    The slot weights are shared by all heads: ``weight`` is ``(d, 1, k)`` for ``"depthwise"`` (starting at one) and for
    ``"depthwise_separable"`` (followed by ``pointwise``, d to d), ``(d, d, k)`` for ``"standard"``, none for ``"sum"``.
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        options: HeadsOptions,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(options)
        check_dtype("dtype", dtype)
        self.num_heads, self.head_dim = num_heads, head_dim
        self.weight = None
        self.pointwise: nn.Linear | None = None
        if self.aggregation != "sum":
            width = head_dim if self.aggregation == "standard" else 1
            self.weight = nn.Parameter(torch.empty(head_dim, width, self.k or 1, device=device, dtype=dtype))
        if self.aggregation == "depthwise_separable":
            self.pointwise = nn.Linear(head_dim, head_dim, bias=False, device=device, dtype=dtype)
        self.reset_slots()

    def reset_slots(self) -> None:
        """Initialise the slot weights: one (a plain sum), or as ``nn.Conv1d`` does where they mix channels."""
        if self.weight is not None and self.aggregation == "standard":
            init_like_conv(self.weight, None)
        elif self.weight is not None:
            nn.init.ones_(self.weight)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        neighbors: Neighbors | None = None,
        *,
        dropout_p: float = 0.0,
        weighted: bool = False,
        same: bool = False,
    ) -> Tensor:
        """Attend from ``(B, H, N, d)`` to ``(B, H, M, d)``, with mask ``(B, M)`` or None; returns ``(B, H, N, d)``.

        With ``neighbors`` ``(B, H, N, k)`` nothing is searched. ``weighted``: their similarities are the weights, from
        this layer's own search. ``same``: query i is key i.
        """
        batch, heads, queries, _ = query.shape
        options = self._gather_options(value, dropout_p if self.training else 0.0)
        if neighbors is None:
            out = aggregate(self._call(query, key, value, mask, options, same=same), writable=False)
        elif weighted:
            per_head = Neighbors(*(part.flatten(0, 1) for part in neighbors))
            impl = self._search_impl()
            out = gather_weighted(value.flatten(0, 1), per_head, self.weight, groups=options.groups, impl=impl)
        else:
            per_head = _flatten_heads(neighbors, batch, heads)
            out = self._gather(options, value.flatten(0, 1), per_head, queries)
        if self.pointwise is not None:
            out = self.pointwise(out)
        return out.reshape(batch, heads, queries, out.shape[-1])

    def explain(self, query: Tensor, key: Tensor, value: Tensor) -> Choice:
        """Return the implementation that ``attend`` would run for heads ``(B, H, N, d)`` without a mask, and why."""
        return explain(self._call(query, key, value, None, self._gather_options(value, 0.0), same=True))

    def _gather_options(self, value: Tensor, dropout_p: float) -> GatherOptions:
        groups = 1 if self.weight is None else value.shape[-1] // self.weight.shape[1]
        return self.options.gather(groups, dropout_p)

    def _call(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: GatherOptions, *, same: bool
    ) -> Call:
        gather = options.of(value.flatten(0, 1), self.weight, None)
        search = self._search_of(mask, key, same=same)
        return Call(query.flatten(0, 1), key.flatten(0, 1), gather, self.k, self.impl, search)

    def _search_of(self, mask: Tensor | None, key: Tensor, *, same: bool) -> SearchOptions:
        query_index = "same" if same else None
        return self._search_options(key_padding_mask=self._per_head(mask, key), query_index=query_index)

    def search(self, query: Tensor, key: Tensor, mask: Tensor | None = None, *, same: bool) -> Neighbors:
        """Find each head's neighbours: ``(B, H, N, d)`` and ``(B, H, M, d)`` to ``Neighbors`` of ``(B, H, N, k)``."""
        batch, heads = query.shape[:2]
        options = self._search_of(mask, key, same=same)
        neighbors = search_with(options, query.flatten(0, 1), key.flatten(0, 1), self.k, impl=self._search_impl())
        return Neighbors(*(part.unflatten(0, (batch, heads)) for part in neighbors))

    def _per_head(self, mask: Tensor | None, key: Tensor) -> Tensor | None:
        if mask is None:
            return None
        checks.key_padding_mask(mask, key.transpose(1, 2))
        return mask.repeat_interleave(self.num_heads, dim=0)


def _flatten_heads(neighbors: Neighbors, batch: int, heads: int) -> Neighbors:
    """Flatten neighbours ``(B, H, N, k)`` to ``(B * H, N, k)``; raises ConvNNError for anything else."""
    if not isinstance(neighbors, Neighbors):
        fix = "pass what neighbors() of an attention layer returned"
        raise invalid("neighbors", "a convnn.Neighbors", type(neighbors).__name__, fix)
    for part in neighbors:
        if not isinstance(part, Tensor) or part.dim() != 4 or part.shape[:2] != (batch, heads):
            got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            fix = "take them from neighbors() of a layer with as many heads"
            raise invalid("neighbors", f"(B, H, N, k) with B, H = {(batch, heads)}", got, fix)
    similarity, index = neighbors
    if index.dtype != torch.int64:
        raise invalid("neighbors.index", "int64 positions", index.dtype, "pass the index of neighbors()")
    if similarity.shape != index.shape:
        expected, shape = f"the shape of the index, {tuple(index.shape)}", tuple(similarity.shape)
        raise invalid("neighbors.similarity", expected, f"shape {shape}", "match them")
    return Neighbors(*(part.flatten(0, 1) for part in neighbors))


def check_heads(dim: int, num_heads: int, argument: str = "dim") -> int:
    """Return the width of a head; raises ConvNNError if the heads do not divide the width."""
    checks.whole(argument, dim)
    checks.whole("num_heads", num_heads)
    if dim % num_heads:
        raise invalid("num_heads", f"a divisor of {argument} = {dim}", num_heads, "choose such a number")
    return dim // num_heads


def reset_children(layer: nn.Module) -> None:
    """Reset the parameters of every part that can."""
    for part in layer.modules():
        if part is not layer and has_reset(part):
            part.reset_parameters()  # type: ignore[operator]  # has_reset checked it


def has_reset(part: nn.Module) -> bool:
    """Return True if a module can initialise its parameters again."""
    return callable(getattr(part, "reset_parameters", None))


def check_no_attn_mask(attn_mask: Tensor | None, is_causal: bool) -> None:
    """Raise ConvNNError for masks per query: the number of keys would differ by query, but k does not."""
    if attn_mask is not None or is_causal:
        got = "is_causal=True" if is_causal else shown(attn_mask)
        raise invalid("attn_mask", "None", got, "mask whole tokens with key_padding_mask")
