"""ConvNNMultiheadAttention: drop-in for nn.MultiheadAttention, to the k nearest keys."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from .. import checks
from ..errors import invalid
from .from_attention import check_multihead, copy_parameters
from .heads import HEADS_OPTIONS, HeadsAttention, check_heads, refuse_attn_mask, reset_children
from .options import check_input, check_options, options_repr


class ConvNNMultiheadAttention(HeadsAttention):
    """Attention to the k most similar keys, with the call, parameters and state-dict of ``nn.MultiheadAttention``.

    Takes what ``nn.MultiheadAttention`` takes, in its order, then the options as keywords.

    Args:
        embed_dim: C.
        num_heads: H.
        dropout: the chance that a neighbour is dropped in training.
        bias: whether the projections have a bias.
        add_bias_kv: False: a learned key that every query sees is no neighbour.
        add_zero_attn: False, likewise.
        kdim: C, or None for it; keys of another width are to be projected first.
        vdim: C, or None for it.
        batch_first: whether tokens are ``(B, N, C)`` rather than ``(N, B, C)``.
        device: of the parameters.
        dtype: of the parameters.
        k: neighbours of every query, or None for every key (with ``aggregation="sum"``).
        **options: as of ``ConvNNAttention``.

    Raises:
        ConvNNError: an argument or an input does not fit.

    Example:
        >>> import convnn
        >>> layer = convnn.ConvNNMultiheadAttention(8, 2, batch_first=True, k=3)
        >>> query, memory = torch.randn(1, 4, 8), torch.randn(1, 9, 8)
        >>> layer(query, memory, memory, need_weights=False)[0].shape
        torch.Size([1, 4, 8])
    """

    # nn.TransformerEncoderLayer would otherwise read in_proj_weight and run dense attention in its place.
    _qkv_same_embed_dim = False
    in_proj_bias: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        k: int | None = 9,
        **options: Any,
    ) -> None:
        check_options(options, HEADS_OPTIONS)
        for name, value in (("add_bias_kv", add_bias_kv), ("add_zero_attn", add_zero_attn)):
            if checks.flag(name, value):
                raise invalid(name, "False (only tokens are neighbours)", True, "append such a key to key and value")
        for name, width in (("kdim", kdim), ("vdim", vdim)):
            if width not in (None, embed_dim):
                fix = "project keys and values to that width first, e.g. by an nn.Linear"
                raise invalid(name, f"None, or embed_dim = {embed_dim}", width, fix)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(num_heads, check_heads(embed_dim, num_heads, "embed_dim"), k, **factory, **options)
        self.embed_dim, self.batch_first = embed_dim, checks.flag("batch_first", batch_first)
        self.kdim, self.vdim, self.bias_k, self.bias_v, self.add_zero_attn = embed_dim, embed_dim, None, None, False
        bias, self.dropout = checks.flag("bias", bias), checks.chance("dropout", dropout)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim, **factory))
        self.register_parameter("in_proj_bias", nn.Parameter(torch.empty(3 * embed_dim, **factory)) if bias else None)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **factory)
        self._init_projections()

    def reset_parameters(self) -> None:
        """Initialise every parameter, as ``nn.MultiheadAttention`` does."""
        reset_children(self)
        self.reset_slots()
        self._init_projections()

    def _init_projections(self) -> None:
        nn.init.xavier_uniform_(self.in_proj_weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    @classmethod
    def from_attention(cls, attention: nn.MultiheadAttention, k: int | None = None, **options: Any) -> Self:
        """Make the layer with the weights of an ``nn.MultiheadAttention``; the same function with the defaults."""
        check_options(options, HEADS_OPTIONS)
        check_multihead(attention)
        bias = attention.in_proj_bias is not None or attention.out_proj.bias is not None
        layer = cls(
            attention.embed_dim, attention.num_heads, k=k, dropout=attention.dropout,
            bias=bias, batch_first=attention.batch_first,
            device=attention.in_proj_weight.device, dtype=attention.in_proj_weight.dtype,
            **{"aggregation": "sum", **options},
        )  # fmt: skip
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        parameters = dict(attention.named_parameters())
        copy_parameters(layer, {name: parameters.get(name) for name in names})
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
        key_padding_mask = boolean_mask(key_padding_mask)
        for name, x in (("query", query), ("key", key), ("value", value)):
            if not isinstance(x, Tensor):
                raise invalid(name, "a tensor", type(x).__name__, "pass a torch.Tensor")
        unbatched = query.dim() == 2
        if unbatched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._heads(query, key, value)
        out = self.attend(q, k, v, key_padding_mask, dropout_p=self.dropout)
        attended = self.out_proj(out.transpose(1, 2).flatten(2))
        weights = self._weights(q, k, key_padding_mask, average_attn_weights) if need_weights else None
        if unbatched:
            return attended.squeeze(0), None if weights is None else weights.squeeze(0)
        return attended if self.batch_first else attended.transpose(0, 1), weights

    def _heads(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = []
        for x, weight, bias in zip(inputs, self.in_proj_weight.chunk(3), self._biases(), strict=True):
            check_input(
                x, self, shape=f"(batch, tokens, {self.embed_dim})", ranks=(3,), axis=2, channels=self.embed_dim
            )
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
        own = {
            "dropout": (self.dropout, 0.0),
            "bias": (self.in_proj_bias is not None, True),
            "batch_first": (self.batch_first, False),
            "include_self": (self.include_self, False),
        }
        call = f"{self.embed_dim}, num_heads={self.num_heads}, k={self.k}" + options_repr(own)
        return call + self._neighbor_repr("dot", "softmax", "depthwise")


def boolean_mask(mask: Tensor | None) -> Tensor | None:
    """Turn torch's additive form of a mask (0 to keep, -inf to leave out) into a boolean one; others pass."""
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        return mask
    left_out = mask.isneginf()
    if not torch.compiler.is_compiling() and not mask.is_meta and not bool((left_out | (mask == 0)).all()):
        expected = "a boolean mask, or one of 0 and -inf"
        raise invalid("key_padding_mask", expected, "other numbers", "a search keeps a key or leaves it out")
    return left_out
