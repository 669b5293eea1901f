"""ConvNNAttention (timm's Attention) and ConvNNMultiheadAttention (nn.MultiheadAttention): attention to the k nearest."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from .. import checks
from ..errors import invalid
from ..knn import knn_aggregate, knn_search
from ..types import Candidates, Neighbors, Similarity, Weighting
from .options import NeighborLayer, check_input, init_like_conv, options_repr


class HeadsAttention(NeighborLayer):
    """What both attention layers share: heads that attend to their k nearest keys, and the slot weights.

    The slot weights are shared by all heads: ``weight`` is ``(d, 1, k)`` for ``"depthwise"`` (starting at one) and
    ``"depthwise_separable"`` (followed by ``pointwise``, d to d), ``(d, d, k)`` for ``"standard"``, absent for ``"sum"``.
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        k: int | None,
        *,
        similarity: Similarity = "dot",
        candidates: Candidates = "all",
        include_self: bool = False,
        weighting: Weighting = "softmax",
        aggregation: str = "depthwise",
        temperature: float = 1.0,
        scale: float | None = None,
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(k, similarity=similarity, candidates=candidates, include_self=include_self,
                         weighting=weighting, aggregation=aggregation, temperature=temperature, scale=scale,
                         impl=impl)  # fmt: skip
        self.num_heads, self.head_dim = num_heads, head_dim
        self.weight = None
        self.pointwise: nn.Linear | None = None
        if aggregation != "sum":
            width = head_dim if aggregation == "standard" else 1
            self.weight = nn.Parameter(torch.empty(head_dim, width, self.k or 1, device=device, dtype=dtype))
        if aggregation == "depthwise_separable":
            self.pointwise = nn.Linear(head_dim, head_dim, bias=False, device=device, dtype=dtype)
        if self.weight is not None and aggregation == "standard":
            init_like_conv(self.weight, None)
        elif self.weight is not None:
            nn.init.ones_(self.weight)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float) -> Tensor:
        """Attend from ``(B, H, N, d)`` to ``(B, H, M, d)``, with mask ``(B, M)`` or None; returns ``(B, H, N, d)``."""
        batch, heads, queries, width = query.shape
        groups = 1 if self.weight is None else value.shape[-1] // self.weight.shape[1]
        out = knn_aggregate(
            query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), self.weight, k=self.k, groups=groups,
            dropout_p=dropout_p if self.training else 0.0, impl=self.impl, key_padding_mask=self._per_head(mask),
            **self._search_options(), **self._weighting_options(),
        )  # fmt: skip
        if self.pointwise is not None:
            out = self.pointwise(out)
        return out.reshape(batch, heads, queries, out.shape[-1])

    def search(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Neighbors:
        """Find each head's neighbours: ``(B, H, N, d)`` and ``(B, H, M, d)`` to ``Neighbors`` of ``(B, H, N, k)``."""
        batch, heads = query.shape[:2]
        impl = self.impl if self.impl == "reference" else "auto"
        found = knn_search(query.flatten(0, 1), key.flatten(0, 1), self.k, impl=impl,
                           key_padding_mask=self._per_head(mask), **self._search_options())  # fmt: skip
        return Neighbors(*(part.unflatten(0, (batch, heads)) for part in found))

    def _per_head(self, mask: Tensor | None) -> Tensor | None:
        return None if mask is None else mask.repeat_interleave(self.num_heads, dim=0)


def check_heads(dim: int, num_heads: int, argument: str = "dim") -> int:
    """Return the width of a head, or refuse a width that the heads do not divide."""
    checks.whole(argument, dim)
    checks.whole("num_heads", num_heads)
    if dim % num_heads:
        raise invalid("num_heads", f"a divisor of {argument} = {dim}", num_heads, "choose such a number")
    return dim // num_heads


class ConvNNAttention(HeadsAttention):
    """Self-attention to the k most similar tokens, with learned slot weights; drop-in for timm's ``Attention``.

    ``k=None`` with ``aggregation="sum"`` is standard attention, ``k < N`` with ``"sum"`` is k-NN attention (KVT), and
    ``"depthwise"`` weights every slot, by one at the start (method, section 8).

    Args:
        dim: C, the width of a token.
        num_heads: H.
        k: neighbours of every query, or None for every token (with ``aggregation="sum"``).
        attn_head_dim: d, the width of a head; ``C / H`` if left out.
        dim_out: the width of an output token; C if left out.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        qk_norm: whether queries and keys are normalised by ``norm_layer``.
        scale_norm: whether the attended tokens are normalised by ``norm_layer``.
        proj_bias: whether the output projection has a bias.
        attn_drop: the chance that a neighbour is dropped in training.
        proj_drop: the chance that an output element is dropped in training.
        norm_layer: what ``qk_norm`` and ``scale_norm`` build; ``nn.LayerNorm`` if left out.
        device: of the parameters.
        dtype: of the parameters.
        **options: ``similarity="dot"``, ``candidates="all"`` (a sequence is a 1-d grid), ``include_self=False``,
            ``weighting="softmax"``, ``aggregation="depthwise"``, ``temperature=1.0``, ``scale=None``, ``impl="auto"``.

    Shapes:
        Input ``(B, N, C)``, output ``(B, N, dim_out)``; parameters ``qkv`` and ``proj`` as timm's, ``weight (d, 1, k)``.

    Raises:
        ConvNNError: an argument or an input does not fit.

    Example:
        >>> import convnn
        >>> layer = convnn.ConvNNAttention(32, num_heads=4, k=9)
        >>> layer(torch.randn(2, 50, 32)).shape
        torch.Size([2, 50, 32])
    """

    gate: nn.Module | None

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        k: int | None = 9,
        *,
        attn_head_dim: int | None = None,
        dim_out: int | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        head_dim = check_heads(dim, num_heads) if attn_head_dim is None else checks.whole("attn_head_dim", attn_head_dim)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(checks.whole("num_heads", num_heads), head_dim, k, **factory, **options)
        self.dim, self.attn_dim = checks.whole("dim", dim), num_heads * head_dim
        norm: Any = nn.LayerNorm if norm_layer is None else norm_layer
        self.qkv = nn.Linear(dim, 3 * self.attn_dim, bias=qkv_bias, **factory)
        self.q_norm: nn.Module = norm(head_dim, **factory) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = norm(head_dim, **factory) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm: nn.Module = norm(self.attn_dim, **factory) if scale_norm else nn.Identity()
        self.gate = None
        self.proj = nn.Linear(self.attn_dim, dim_out or dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    @classmethod
    def from_attention(cls, attention: nn.Module, k: int | None = None, **options: Any) -> Self:
        """Make the layer with the weights of timm's ``Attention`` or of an ``nn.MultiheadAttention``.

        With the defaults (``k=None``: every token) it computes the same function as ``attention(x)``, or as
        ``attention(x, x, x)[0]`` for batch-first tokens. ``k`` makes it k-NN attention, and
        ``aggregation="depthwise"`` ConvNN attention.

        Raises:
            ConvNNError: ``attention`` is no such module, or has parts that self-attention here has not.

        Example:
            >>> import convnn
            >>> attention = nn.MultiheadAttention(8, 2, batch_first=True)
            >>> x = torch.randn(1, 5, 8)
            >>> same = convnn.ConvNNAttention.from_attention(attention)
            >>> torch.allclose(same(x), attention(x, x, x)[0], atol=1e-6)
            True
        """
        from .from_attention import from_multihead, from_timm

        options = {"aggregation": "sum", **options}
        if isinstance(attention, nn.MultiheadAttention):
            return cast(Self, from_multihead(cls, attention, k, options))
        return cast(Self, from_timm(cls, attention, k, options))

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend within ``(B, N, C)``; ``key_padding_mask`` ``(B, N)`` is True for tokens that may not be neighbours."""
        refuse_attn_mask(attn_mask, is_causal)
        query, key, value = self._heads(x)
        gate = None if self.gate is None else self.gate(x).sigmoid()
        out = self.attend(query, key, value, key_padding_mask, self.attn_drop.p)
        out = self.norm(out.transpose(1, 2).flatten(2))
        out = self.proj(out if gate is None else out * gate)
        dropped: Tensor = self.proj_drop(out)
        return dropped

    def neighbors(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Neighbors:
        """Find the neighbours that ``forward`` would attend to: ``Neighbors`` of ``(B, H, N, k)``.

        Example:
            >>> import convnn
            >>> convnn.ConvNNAttention(8, num_heads=2, k=3).neighbors(torch.randn(1, 10, 8)).index.shape
            torch.Size([1, 2, 10, 3])
        """
        query, key, _ = self._heads(x)
        return self.search(query, key, key_padding_mask)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        check_input(x, self, shape=f"(batch, tokens, {self.dim})", ranks=(3,), axis=2, channels=self.dim)
        parts = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        return self.q_norm(query), self.k_norm(key), value

    def extra_repr(self) -> str:
        """Write the call that makes this layer."""
        return (
            f"{self.dim}, num_heads={self.num_heads}, k={self.k}"
            + options_repr({"include_self": (self.include_self, False)})
            + self._neighbor_repr("dot", "softmax", "depthwise")
        )


class ConvNNMultiheadAttention(HeadsAttention):
    """Attention to the k most similar keys with the call, the parameters and the state-dict of ``nn.MultiheadAttention``.

    Args:
        embed_dim: C.
        num_heads: H.
        k: neighbours of every query, or None for every key (with ``aggregation="sum"``).
        dropout: the chance that a neighbour is dropped in training.
        bias: whether the projections have a bias.
        batch_first: whether tokens are ``(B, N, C)`` rather than ``(N, B, C)``.
        device: of the parameters.
        dtype: of the parameters.
        **options: as of ``ConvNNAttention``.

    Raises:
        ConvNNError: an argument or an input does not fit.

    Example:
        >>> import convnn
        >>> layer = convnn.ConvNNMultiheadAttention(8, 2, k=3, batch_first=True)
        >>> query, memory = torch.randn(1, 4, 8), torch.randn(1, 9, 8)
        >>> layer(query, memory, memory, need_weights=False)[0].shape
        torch.Size([1, 4, 8])
    """

    # nn.TransformerEncoderLayer would otherwise read in_proj_weight and run dense attention in its place.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        k: int | None = 9,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(num_heads, check_heads(embed_dim, num_heads, "embed_dim"), k, **factory, **options)
        self.embed_dim, self.batch_first, self.dropout = embed_dim, batch_first, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim, **factory))
        self.register_parameter("in_proj_bias", nn.Parameter(torch.zeros(3 * embed_dim, **factory)) if bias else None)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **factory)
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    @classmethod
    def from_attention(cls, attention: nn.MultiheadAttention, k: int | None = None, **options: Any) -> Self:
        """Make the layer with the weights of an ``nn.MultiheadAttention``; the same function with the defaults."""
        from .from_attention import check_multihead

        check_multihead(attention)
        layer = cls(
            attention.embed_dim, attention.num_heads, k, dropout=attention.dropout,
            bias=attention.in_proj_bias is not None, batch_first=attention.batch_first,
            device=attention.in_proj_weight.device, dtype=attention.in_proj_weight.dtype,
            **{"aggregation": "sum", **options},
        )  # fmt: skip
        layer.load_state_dict(attention.state_dict(), strict=False)
        return layer.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from query ``(B, N, C)`` to key and value ``(B, M, C)`` (or ``(N, B, C)``, or unbatched ``(N, C)``).

        Returns the attended tokens and, if ``need_weights``, the weights ``(B, N, M)``: zero for all but the k
        neighbours; per head ``(B, H, N, M)`` unless averaged.
        """
        refuse_attn_mask(attn_mask, is_causal)
        unbatched = query.dim() == 2
        if unbatched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._heads(query, key, value)
        out = self.attend(q, k, v, key_padding_mask, self.dropout)
        attended = self.out_proj(out.transpose(1, 2).flatten(2))
        weights = self._weights(q, k, key_padding_mask, average_attn_weights) if need_weights else None
        if unbatched:
            return attended.squeeze(0), None if weights is None else weights.squeeze(0)
        return attended if self.batch_first else attended.transpose(0, 1), weights

    def _heads(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = []
        for x, weight, bias in zip(inputs, self.in_proj_weight.chunk(3), self._biases(), strict=True):
            check_input(x, self, shape=f"(batch, tokens, {self.embed_dim})", ranks=(3,), axis=2, channels=self.embed_dim)
            projected = nn.functional.linear(x, weight, bias)
            parts.append(projected.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2))
        return parts[0], parts[1], parts[2]

    def _biases(self) -> tuple[Tensor | None, ...]:
        bias = self.in_proj_bias
        return (None, None, None) if bias is None else bias.chunk(3)

    def _weights(self, query: Tensor, key: Tensor, mask: Tensor | None, average: bool) -> Tensor:
        """Scatter the neighbours' weights among all keys; only what ``need_weights`` asks for costs N x M."""
        if self.k is None and mask is not None:
            similarity = (query @ key.transpose(2, 3)) * (self.head_dim**-0.5 if self.scale is None else self.scale)
            similarity = similarity.masked_fill(mask[:, None, None, :], -torch.inf)
            weights = (similarity / self.temperature).softmax(-1)
        else:
            similarity, index = self.search(query, key, mask)
            rho = (similarity / self.temperature).softmax(-1) if self.weighting == "softmax" else similarity
            rho = torch.ones_like(rho) if self.weighting == "ones" else rho
            weights = rho.new_zeros(*index.shape[:3], key.shape[2]).scatter(-1, index, rho)
        weights = weights.to(query.dtype)
        return weights.mean(1) if average else weights

    def extra_repr(self) -> str:
        """Write the call that makes this layer."""
        return (
            f"{self.embed_dim}, num_heads={self.num_heads}, k={self.k}"
            + options_repr({"batch_first": (self.batch_first, False), "include_self": (self.include_self, False)})
            + self._neighbor_repr("dot", "softmax", "depthwise")
        )


def refuse_attn_mask(attn_mask: Tensor | None, is_causal: bool) -> None:
    """Refuse masks per query: a search among differently many keys has no fixed k."""
    if attn_mask is not None or is_causal:
        got = "is_causal=True" if is_causal else f"shape {tuple(attn_mask.shape)}" if attn_mask is not None else None
        raise invalid("attn_mask", "None", got, "mask whole tokens with key_padding_mask")
