"""ConvNNAttention: drop-in for timm's Attention, to the k nearest tokens."""

from __future__ import annotations

from typing import Any, Self, Unpack, cast

import torch
from torch import Tensor, nn

from .. import _checks as checks
from .._options import build, check_names, names_of, takes
from ..types import Choice, Neighbors
from .from_attention import from_multihead, from_timm
from .heads import HeadsAttention, check_heads, check_no_attn_mask, reset_children
from .layer import check_input
from .options import HeadsKeywords, HeadsOptions, options_repr


def check_arguments(*, attn_head_dim: object, attn_drop: object, proj_drop: object, **flags: object) -> None:
    """Raise ConvNNError for arguments of timm's ``Attention`` of the wrong kind: width, probabilities, flags."""
    if attn_head_dim is not None:
        checks.whole("attn_head_dim", attn_head_dim)
    checks.probability("attn_drop", attn_drop)
    checks.probability("proj_drop", proj_drop)
    for name, value in flags.items():
        checks.flag(name, value)


class ConvNNAttention(HeadsAttention):
    """Self-attention to the k most similar tokens, with learned slot weights; drop-in for timm's ``Attention``.

    ``k=None`` with ``aggregation="sum"`` is standard attention, ``k < N`` with ``"sum"`` k-NN attention (KVT), and
    ``"depthwise"`` weights every slot, by one at the start.

    Takes the arguments of timm's ``Attention`` in their order, then the options as keywords.

    Args:
        dim: C, the width of a token.
        num_heads: H.
        attn_head_dim: d, the width of a head; ``C / H`` if left out.
        dim_out: the width of an output token; C if left out.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        qk_norm: whether queries and keys are normalised by ``norm_layer``.
        scale_norm: whether the attended tokens are normalised by ``norm_layer``.
        proj_bias: whether the output projection has a bias.
        gated: whether the attended tokens are multiplied by the sigmoid of a projection of the input.
        attn_drop: the probability that a neighbour is dropped in training.
        proj_drop: the probability that an output element is dropped in training.
        norm_layer: the norm of ``qk_norm`` and ``scale_norm``; ``nn.LayerNorm`` if left out.
        device: of the parameters.
        dtype: of the parameters.
        k: neighbours of every query, or None for every token (with ``aggregation="sum"``).
        **options: ``similarity="dot"``, ``candidates="all"`` (a sequence is a 1-d grid), ``include_self=None``,
            ``weighting="softmax"``, ``aggregation="depthwise"``, ``temperature=1.0``, ``scale=None``, ``impl="auto"``.

    Shapes:
        Input ``(B, N, C)``, output ``(B, N, dim_out)``; parameters ``qkv``, ``proj`` as timm's, ``weight (d, 1, k)``.

    Raises:
        ConvNNError: an argument or an input does not fit.

    Example:
        >>> import convnn
        >>> layer = convnn.ConvNNAttention(32, num_heads=4, k=9)
        >>> layer(torch.randn(2, 50, 32)).shape
        torch.Size([2, 50, 32])
    """

    gate: nn.Module | None

    @takes(HeadsOptions)
    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        attn_head_dim: int | None = None,
        dim_out: int | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        gated: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[HeadsKeywords],
    ) -> None:
        check_arguments(
            attn_head_dim=attn_head_dim, qkv_bias=qkv_bias, qk_norm=qk_norm, scale_norm=scale_norm,
            proj_bias=proj_bias, gated=gated, attn_drop=attn_drop, proj_drop=proj_drop,
        )  # fmt: skip
        head_dim = check_heads(dim, num_heads) if attn_head_dim is None else attn_head_dim
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(checks.whole("num_heads", num_heads), head_dim, build(HeadsOptions, options), **factory)
        self.dim, self.attn_dim = checks.whole("dim", dim), num_heads * head_dim
        norm: Any = nn.LayerNorm if norm_layer is None else norm_layer
        if qk_norm:
            self.options.check_trains("qk_norm")
        self.qkv = nn.Linear(dim, 3 * self.attn_dim, bias=qkv_bias, **factory)
        self.q_norm: nn.Module = norm(head_dim, **factory) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = norm(head_dim, **factory) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm: nn.Module = norm(self.attn_dim, **factory) if scale_norm else nn.Identity()
        self.gate = nn.Linear(dim, self.attn_dim, bias=qkv_bias, **factory) if gated else None
        dim_out = dim if dim_out is None else checks.whole("dim_out", dim_out)
        self.proj = nn.Linear(self.attn_dim, dim_out, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def reset_parameters(self) -> None:
        """Initialise every parameter again, as the constructor does."""
        reset_children(self)
        self.reset_slots()

    @classmethod
    def from_attention(cls, attention: nn.Module, k: int | None = None, **options: Any) -> Self:
        """Make the layer with the weights of timm's ``Attention`` or of an ``nn.MultiheadAttention``.

        With the defaults (``k=None``: every token) it computes the same function as ``attention(x)``, or as
        ``attention(x, x, x)[0]`` for batch-first tokens. ``k`` makes it k-NN attention, and
        ``aggregation="depthwise"`` ConvNN attention.

        Raises:
            ConvNNError: ``attention`` is another module, or has parts that this layer does not have.

        Example:
            >>> import convnn
            >>> attention = nn.MultiheadAttention(8, 2, batch_first=True)
            >>> x = torch.randn(1, 5, 8)
            >>> same = convnn.ConvNNAttention.from_attention(attention)
            >>> torch.allclose(same(x), attention(x, x, x)[0], atol=1e-6)
            True
        """
        check_names(options, names_of(HeadsOptions))
        options = {"aggregation": "sum", **options}
        if isinstance(attention, nn.MultiheadAttention):
            return cast(Self, from_multihead(cls, attention, k, options=options))
        return cast(Self, from_timm(cls, attention, k, options=options))

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        key_padding_mask: Tensor | None = None,
        neighbors: Neighbors | None = None,
    ) -> Tensor:
        """Attend within ``(B, N, C)``; ``key_padding_mask`` ``(B, N)`` is True for tokens that are no neighbours.

        ``neighbors``: the result of ``neighbors`` of this layer, or of another with as many heads; nothing is searched.
        Their similarities are used too.
        """
        check_no_attn_mask(attn_mask, is_causal)
        query, key, value = self._heads(x)
        gate = None if self.gate is None else self.gate(x).sigmoid()
        out = self.attend(query, key, value, key_padding_mask, neighbors, dropout_p=self.attn_drop.p, same=True)
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
        return self.search(query, key, key_padding_mask, same=True)

    def explain_choice(self, x: Tensor) -> Choice:
        """Return which implementation ``forward`` would run for ``(B, N, C)``, and why; runs nothing of it."""
        return self.explain(*self._heads(x))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        check_input(x, self, shape=f"(batch, tokens, {self.dim})", ranks=(3,), axis=2, channels=self.dim)
        parts = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        return self.q_norm(query), self.k_norm(key), value

    def extra_repr(self) -> str:
        """Write the call that makes this layer; the norms follow."""
        shown = {
            "attn_head_dim": (self.head_dim, self.dim // self.num_heads),
            "dim_out": (self.proj.out_features, self.dim),
            "qkv_bias": (self.qkv.bias is not None, False),
            "qk_norm": (not isinstance(self.q_norm, nn.Identity), False),
            "scale_norm": (not isinstance(self.norm, nn.Identity), False),
            "proj_bias": (self.proj.bias is not None, True),
            "gated": (self.gate is not None, False),
            "attn_drop": (self.attn_drop.p, 0.0),
            "proj_drop": (self.proj_drop.p, 0.0),
            "include_self": (self.include_self, None),
        }
        call = f"{self.dim}, num_heads={self.num_heads}, k={self.k}" + options_repr(shown)
        return call + self._neighbor_repr(HeadsOptions())
