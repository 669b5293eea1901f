"""HybridAttention: part of the channels attend to their k nearest tokens, the others to all of them or to a kernel."""

from __future__ import annotations

import inspect
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from .. import _checks as checks
from .._options import build, takes
from .._tracing import Leaf
from ..errors import invalid
from ..types import Choice, Neighbors
from .attention import ConvNNAttention, check_arguments
from .heads import check_no_attn_mask
from .hybrid import branch_share
from .layer import check_dtype, check_input
from .options import HeadsKeywords, HeadsOptions, kwargs_repr, options_repr

PARTNERS = ("attention", "conv")


class HybridAttention(Leaf):
    """ConvNN attention on ``floor(branch_ratio * C)`` channels, attention or a convolution on the rest, and a mix.

    The channels are split; in the convolutional hybrid both branches see all of them.
    The outputs are concatenated, ConvNN's first, and mixed by a linear layer with bias. Drop-in for timm's
    ``Attention``: same arguments, same order.

    Args:
        dim: C, the width of a token.
        num_heads: heads of each branch.
        attn_head_dim: the width of a head in every branch that attends; the branch's width / heads if left out.
        dim_out: the width of an output token; C if left out.
        qkv_bias: as in timm's ``Attention``, and so are ``qk_norm``, ``scale_norm``, ``proj_bias``, ``gated``,
            ``attn_drop``, ``proj_drop`` and ``norm_layer``, in every branch that attends.
        qk_norm: see above.
        scale_norm: see above.
        proj_bias: see above.
        gated: see above.
        attn_drop: see above.
        proj_drop: see above.
        norm_layer: see above.
        device: of the parameters.
        dtype: of the parameters.
        k: neighbours of the ConvNN branch.
        branch_ratio: lambda, the ConvNN's share of the channels, in [0, 1]; 0 and 1 keep one branch and the mix.
        partner: the other branch, ``"attention"`` or ``"conv"`` (an ``nn.Conv1d`` over the tokens).
        kernel_size: of the ``"conv"`` partner; odd.
        **options: of the ConvNN branch, as of ``ConvNNAttention``.

    Shapes:
        Input ``(B, N, C)``, output ``(B, N, dim_out)``.

    Raises:
        ConvNNError: an argument or an input does not fit.

    Example:
        >>> import convnn
        >>> layer = convnn.HybridAttention(32, num_heads=2, k=9, branch_ratio=0.5)
        >>> layer(torch.randn(2, 50, 32)).shape
        torch.Size([2, 50, 32])
    """

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
        *,
        branch_ratio: float = 0.5,
        partner: str = "attention",
        kernel_size: int = 3,
        **options: Unpack[HeadsKeywords],
    ) -> None:
        super().__init__()
        checked = build(HeadsOptions, options)  # also if no branch uses them
        checks.name("partner", partner, PARTNERS)
        self.dim, self.branch_ratio, self.partner = checks.whole("dim", dim), branch_ratio, partner
        self.share = branch_share(branch_ratio, dim)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        shared: dict[str, Any] = {"attn_head_dim": attn_head_dim, "qkv_bias": qkv_bias, "qk_norm": qk_norm,
                               "scale_norm": scale_norm, "proj_bias": proj_bias, "gated": gated,
                               "attn_drop": attn_drop, "proj_drop": proj_drop}  # fmt: skip
        check_arguments(**shared)
        check_dtype("dtype", dtype)
        if qk_norm:
            checked.check_trains("qk_norm")
        attention: dict[str, Any] = {**shared, "norm_layer": norm_layer, **factory}
        rest = dim - self.share
        self.kernel_size = checks.whole("kernel_size", kernel_size)
        if kernel_size % 2 == 0:
            raise invalid("kernel_size", "an odd size", kernel_size, "add or take 1")
        self._check_split(num_heads, attn_head_dim)
        self.num_heads, self.k = num_heads, checked.k
        defaults = inspect.signature(ConvNNAttention).parameters
        self._branches = {name: (value, defaults[name].default) for name, value in shared.items()}
        self.convnn = None
        if self.share:
            self.convnn = ConvNNAttention(self.share, num_heads, **attention, **options)
        self._options = kwargs_repr({name: value for name, value in options.items() if name != "k"})
        self.attention: ConvNNAttention | None = None
        self.conv: nn.Conv1d | None = None
        if rest and partner == "attention":
            self.attention = ConvNNAttention(rest, num_heads, k=None, aggregation="sum", **attention)
        elif rest:
            self.conv = nn.Conv1d(rest, rest, kernel_size, padding=kernel_size // 2, **factory)
        dim_out = dim if dim_out is None else checks.whole("dim_out", dim_out)
        self.mix = nn.Linear(dim, dim_out, **factory)

    def _check_split(self, num_heads: int, head_dim: int | None) -> None:
        heads = checks.whole("num_heads", num_heads)
        if head_dim is not None:  # the width of a head does not depend on the branch's
            return
        rest = self.dim - self.share if self.partner == "attention" else 0
        if self.share % heads or rest % heads:
            got = f"{self.branch_ratio} ({self.share} and {self.dim - self.share} channels)"
            expected = f"a ratio that splits dim = {self.dim} into parts that {heads} heads divide"
            raise invalid("branch_ratio", expected, got, "change the ratio or num_heads")

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        key_padding_mask: Tensor | None = None,
        neighbors: Neighbors | None = None,
    ) -> Tensor:
        """Map ``(B, N, C)`` to ``(B, N, dim_out)``; ``key_padding_mask`` ``(B, N)`` is True for tokens to leave out.

        ``neighbors``: for the ConvNN branch, the result of ``neighbors()`` of a layer like this one.
        """
        check_no_attn_mask(attn_mask, is_causal)
        self._check_input(x)
        if key_padding_mask is not None:
            checks.key_padding_mask(key_padding_mask, x)
        near, rest = x[..., : self.share], x[..., self.share :]
        outputs = []
        if self.convnn is not None:
            outputs.append(self.convnn(near, key_padding_mask=key_padding_mask, neighbors=neighbors))
        if self.attention is not None:
            outputs.append(self.attention(rest, key_padding_mask=key_padding_mask))
        if self.conv is not None:
            kept = rest if key_padding_mask is None else rest.masked_fill(key_padding_mask.unsqueeze(2), 0)
            outputs.append(self.conv(kept.transpose(1, 2)).transpose(1, 2))
        mixed: Tensor = self.mix(torch.cat(outputs, dim=2))
        return mixed

    def neighbors(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Neighbors:
        """Find the neighbours that the ConvNN branch would attend to: ``Neighbors`` of ``(B, H, N, k)``."""
        self._check_input(x)
        if self.convnn is None:
            raise invalid("branch_ratio", "a ratio that keeps a ConvNN branch", self.branch_ratio, "raise it")
        return self.convnn.neighbors(x[..., : self.share], key_padding_mask)

    def explain_choice(self, x: Tensor) -> Choice:
        """Return which implementation the ConvNN branch would run for ``(B, N, C)``, and why; runs nothing of it."""
        self._check_input(x)
        if self.convnn is None:
            raise invalid("branch_ratio", "a ratio that keeps a ConvNN branch", self.branch_ratio, "raise it")
        return self.convnn.explain_choice(x[..., : self.share])

    def _check_input(self, x: Tensor) -> None:
        check_input(x, self, shape=f"(batch, tokens, {self.dim})", ranks=(3,), axis=2, channels=self.dim)

    def extra_repr(self) -> str:
        """Write the call that makes this layer; the branches follow."""
        shown: dict[str, tuple[object, object]] = {
            "dim_out": (self.mix.out_features, self.dim),
            "partner": (self.partner, "attention"),
            "kernel_size": (self.kernel_size, 3),
        }
        call = f"{self.dim}, num_heads={self.num_heads}, k={self.k}, branch_ratio={self.branch_ratio}"
        return call + options_repr({**shown, **self._branches}) + self._options
