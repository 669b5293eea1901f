"""ConvNNMultiheadAttention: drop-in for nn.MultiheadAttention, to the k nearest keys."""

from __future__ import annotations

from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn

from .. import _checks as checks
from .._options import build, check_names, names_of, takes
from .._precision import search_dtype
from .._tracing import readable
from ..errors import invalid, shown
from ..types import Blend, Neighbors, Window
from .from_attention import check_multihead, copy_parameters
from .heads import HeadsAttention, check_heads, check_no_attn_mask, reset_children
from .layer import check_input
from .options import HeadsKeywords, HeadsOptions, options_repr


class ConvNNMultiheadAttention(HeadsAttention):
    """Attention to the k most similar keys, with the call, parameters and state-dict of ``nn.MultiheadAttention``.

    Takes the arguments of ``nn.MultiheadAttention`` in their order, then the options as keywords.

    Args:
        embed_dim: C.
        num_heads: H.
        dropout: the probability that a neighbour is dropped in training.
        bias: whether the projections have a bias.
        add_bias_kv: False; a learned key that every query sees is not a neighbour.
        add_zero_attn: False, likewise.
        kdim: C, or None for it; project keys of another width first.
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

    # Otherwise nn.TransformerEncoderLayer reads in_proj_weight and runs dense attention instead of this layer.
    _qkv_same_embed_dim = False
    in_proj_bias: nn.Parameter | None

    @takes(HeadsOptions)
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
        **options: Unpack[HeadsKeywords],
    ) -> None:
        for name, value in (("add_bias_kv", add_bias_kv), ("add_zero_attn", add_zero_attn)):
            if checks.flag(name, value):
                raise invalid(name, "False (only tokens are neighbours)", True, "append such a key to key and value")
        for name, width in (("kdim", kdim), ("vdim", vdim)):
            if width not in (None, embed_dim):
                fix = "project keys and values to that width first, e.g. by an nn.Linear"
                raise invalid(name, f"None, or embed_dim = {embed_dim}", width, fix)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        head_dim = check_heads(embed_dim, num_heads, "embed_dim")
        super().__init__(num_heads, head_dim, build(HeadsOptions, options), **factory)
        self.embed_dim, self.batch_first = embed_dim, checks.flag("batch_first", batch_first)
        self.kdim, self.vdim, self.bias_k, self.bias_v, self.add_zero_attn = embed_dim, embed_dim, None, None, False
        bias, self.dropout = checks.flag("bias", bias), checks.probability("dropout", dropout)
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
        check_names(options, names_of(HeadsOptions))
        check_multihead(attention)
        bias = attention.in_proj_bias is not None or attention.out_proj.bias is not None
        layer = cls(
            attention.embed_dim, attention.num_heads, k=k, dropout=attention.dropout,
            bias=bias, batch_first=attention.batch_first,
            device=attention.in_proj_weight.device, dtype=attention.in_proj_weight.dtype,
            **{"aggregation": "sum", **options},
        )  # fmt: skip
        copy_parameters(layer, {
            "in_proj_weight": attention.in_proj_weight, "in_proj_bias": attention.in_proj_bias,
            "out_proj.weight": attention.out_proj.weight, "out_proj.bias": attention.out_proj.bias,
        })  # fmt: skip
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

        Returns the attended tokens and, if ``need_weights``, their weights ``(B, N, M)``, dropout included: zero for
        all but the k neighbours; per head ``(B, H, N, M)`` unless averaged. As in ``nn.MultiheadAttention``, without
        ``need_weights`` the fastest kernels run, and second derivatives of ``k=None`` are missing.
        """
        check_no_attn_mask(attn_mask, is_causal)
        same = query is key
        self._check_inputs(query, key, value, same=same)
        mask = boolean_mask(key_padding_mask)
        unbatched = query.dim() == 2
        if unbatched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            mask = None if mask is None else _with_batch(mask, key.shape[1])
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._heads(query, key, value)
        weights = None
        if need_weights:
            out, weights = self._attend_and_weigh(q, k, v, mask, same=same)
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = self.attend(q, k, v, mask, dropout_p=self.dropout, same=same)
        attended = self.out_proj(out.transpose(1, 2).flatten(2))
        if unbatched:
            return attended.squeeze(0), None if weights is None else weights.squeeze(0)
        return attended if self.batch_first else attended.transpose(0, 1), weights

    def _heads(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = []
        for x, weight, bias in zip(inputs, self.in_proj_weight.chunk(3), self._biases(), strict=True):
            projected = nn.functional.linear(x, weight, bias)
            parts.append(projected.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2))
        return parts[0], parts[1], parts[2]

    def _biases(self) -> tuple[Tensor | None, ...]:
        bias = self.in_proj_bias
        return (None, None, None) if bias is None else bias.chunk(3)

    def _check_inputs(self, query: object, key: object, value: object, *, same: bool) -> None:
        """Raise ConvNNError if queries, keys and values do not fit the layer or one another."""
        batch, length = (0, 1) if self.batch_first else (1, 0)
        order = "batch, tokens" if self.batch_first else "tokens, batch"
        shape = f"({order}, {self.embed_dim}) or (tokens, {self.embed_dim})"
        checked: list[Tensor] = []
        for name, x in (("query", query), ("key", key), ("value", value)):
            first = checked[0] if checked else None
            ranks = (2, 3) if first is None else (first.dim(),)
            x = check_input(x, self, argument=name, shape=shape, ranks=ranks, axis=-1, channels=self.embed_dim)
            if first is not None and x.dim() == 3 and x.shape[batch] != first.shape[batch]:
                got = f"{x.shape[batch]} (shape {tuple(x.shape)})"
                fix = f"give all the same batch, as ({order}, {self.embed_dim})"
                raise invalid(name, f"{first.shape[batch]} samples as in query", got, fix)
            checked.append(x)
        keys, values = (x.shape[0 if x.dim() == 2 else length] for x in checked[1:])
        if keys != values:
            raise invalid("value", f"{keys} tokens as in key", values, "give one value per key")
        if not same:
            self._check_no_positions_needed()

    def _check_no_positions_needed(self) -> None:
        """Raise ConvNNError for options that need the queries' positions among the keys."""
        for name, value, needs in (
            ("similarity", self.similarity, self.similarity == "spatial" or isinstance(self.similarity, Blend)),
            ("candidates", self.candidates, isinstance(self.candidates, Window)),
            ("include_self", self.include_self, bool(self.include_self)),
        ):
            if needs:
                expected = "one that needs no positions (queries and keys are not the same tensor)"
                raise invalid(name, expected, repr(value), "choose another, or attend from the keys' own tokens")

    def _attend_and_weigh(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, same: bool
    ) -> tuple[Tensor, Tensor]:
        """Search and weight once: return the attended tokens ``(B, H, N, d)`` and their weights ``(B, H, N, M)``."""
        every = self.k is None and not isinstance(self.candidates, Window)
        if mask is not None:
            checks.key_padding_mask(mask, key.transpose(1, 2))
            checks.some_key_left(mask)
        if every and mask is not None and self.weighting != "softmax":
            fix = "give the number of neighbours"
            raise invalid("k", "a number where keys are masked (None needs softmax)", None, fix)
        if every and self.similarity == "dot" and isinstance(self.candidates, str):
            dtype = search_dtype(query.dtype)
            scale = self.head_dim**-0.5 if self.scale is None else self.scale
            similarity, index = (query.to(dtype) * scale) @ key.to(dtype).transpose(2, 3), None
        else:
            similarity, index = self.search(query, key, None if every else mask, same=same)
        if every and mask is not None:
            hidden = mask[:, None, None]
            hidden = hidden if index is None else hidden.expand(*index.shape[:3], -1).gather(3, index)
            similarity = similarity.masked_fill(hidden, -torch.inf)
        rho = nn.functional.dropout(self._rho(similarity).to(query.dtype), self.dropout, self.training)
        if index is None:
            return rho @ value, rho
        out = self.attend(query, key, value, neighbors=Neighbors(rho, index), weighted=True)
        return out, rho.new_zeros(*index.shape[:3], key.shape[2]).scatter(-1, index, rho)

    def _rho(self, similarity: Tensor) -> Tensor:
        if self.weighting == "softmax":
            return (similarity / self.temperature).softmax(-1)
        return similarity if self.weighting == "identity" else torch.ones_like(similarity)

    def extra_repr(self) -> str:
        """Write the call that makes this layer."""
        shown = {
            "dropout": (self.dropout, 0.0),
            "bias": (self.in_proj_bias is not None, True),
            "batch_first": (self.batch_first, False),
            "include_self": (self.include_self, None),
        }
        call = f"{self.embed_dim}, num_heads={self.num_heads}, k={self.k}" + options_repr(shown)
        return call + self._neighbor_repr(HeadsOptions())


def boolean_mask(mask: Tensor | None) -> Tensor | None:
    """Convert torch's additive masks (0 to keep, -inf to leave out) to boolean ones; return others as they are."""
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        return mask
    left_out = mask.isneginf()
    if readable(mask) and not bool((left_out | (mask == 0)).all()):
        expected = "a boolean mask, or one of 0 and -inf"
        raise invalid("key_padding_mask", expected, "other numbers", "a search keeps a key or leaves it out")
    return left_out


def _with_batch(mask: Tensor, keys: int) -> Tensor:
    """Add a batch axis to a mask of unbatched keys ``(M,)``; raises ConvNNError for another shape."""
    if not isinstance(mask, Tensor) or mask.shape != (keys,):
        fix = "give one entry per key, without a batch as the keys"
        raise invalid("key_padding_mask", f"a boolean tensor of shape ({keys},)", shown(mask), fix)
    return mask.unsqueeze(0)
