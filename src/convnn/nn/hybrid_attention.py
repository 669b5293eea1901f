"""HybridAttention: part of the channels attend to their k nearest tokens, the others to all of them or to a kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..errors import invalid
from ..types import Neighbors
from .attention import ConvNNAttention
from .heads import HEADS_OPTIONS, refuse_attn_mask
from .hybrid import branch_share
from .options import check_input, check_options, given_repr, options_repr

PARTNERS = ("attention", "conv")


class HybridAttention(nn.Module):
    """ConvNN attention on ``floor(branch_ratio * C)`` channels, attention or a convolution on the rest, and a mix.

    Unlike the convolutional hybrid, whose branches both see every channel, the channels are split.
    The outputs are concatenated, ConvNN's first, and mixed by a linear layer with bias. Drop-in for timm's
    ``Attention``.

    Args:
        dim: C, the width of a token.
        num_heads: heads of each branch.
        k: neighbours of the ConvNN branch.
        branch_ratio: lambda, the ConvNN's share of the channels, in [0, 1]; 0 and 1 keep one branch and the mix.
        partner: the other branch, ``"attention"`` or ``"conv"`` (an ``nn.Conv1d`` over the tokens).
        kernel_size: of the ``"conv"`` partner; odd.
        qkv_bias: as in timm's ``Attention``; so are ``proj_bias``, ``attn_drop`` and ``proj_drop``, in every branch.
        proj_bias: see above.
        attn_drop: see above.
        proj_drop: see above.
        device: of the parameters.
        dtype: of the parameters.
        **options: of the ConvNN branch, as of ``ConvNNAttention``.

    Shapes:
        Input and output ``(B, N, C)``.

    Raises:
        ConvNNError: an argument or an input does not fit.

    Example:
        >>> import convnn
        >>> layer = convnn.HybridAttention(32, num_heads=2, k=9, branch_ratio=0.5)
        >>> layer(torch.randn(2, 50, 32)).shape
        torch.Size([2, 50, 32])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        k: int | None = 9,
        *,
        branch_ratio: float = 0.5,
        partner: str = "attention",
        kernel_size: int = 3,
        qkv_bias: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_options(options, HEADS_OPTIONS)
        checks.name("partner", partner, PARTNERS)
        self.dim, self.branch_ratio, self.partner = checks.whole("dim", dim), branch_ratio, partner
        self.share = branch_share(branch_ratio, dim)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        attention: dict[str, Any] = {"qkv_bias": qkv_bias, "proj_bias": proj_bias, "attn_drop": attn_drop,
                                     "proj_drop": proj_drop, **factory}  # fmt: skip
        rest = dim - self.share
        self.kernel_size = checks.whole("kernel_size", kernel_size)
        if kernel_size % 2 == 0:
            raise invalid("kernel_size", "an odd size", kernel_size, "add or take 1")
        self._check_split(num_heads)
        self.num_heads, self.k = num_heads, k
        defaults: dict[str, object] = {"qkv_bias": False, "proj_bias": True, "attn_drop": 0.0, "proj_drop": 0.0}
        self._branches = {name: (attention[name], default) for name, default in defaults.items()}
        self.convnn = None
        if self.share:
            self.convnn = ConvNNAttention(self.share, num_heads, k, **attention, **options)
        else:  # its options are checked all the same
            ConvNNAttention(num_heads, num_heads, k, **{**attention, "device": "meta"}, **options)
        self._options = given_repr(options)
        self.attention: ConvNNAttention | None = None
        self.conv: nn.Conv1d | None = None
        if rest and partner == "attention":
            self.attention = ConvNNAttention(rest, num_heads, None, aggregation="sum", **attention)
        elif rest:
            self.conv = nn.Conv1d(rest, rest, kernel_size, padding=kernel_size // 2, **factory)
        self.mix = nn.Linear(dim, dim, **factory)

    def _check_split(self, num_heads: int) -> None:
        heads = checks.whole("num_heads", num_heads)
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
        """Map ``(B, N, C)`` to ``(B, N, C)``; ``key_padding_mask`` ``(B, N)`` is True for tokens to leave out.

        ``neighbors``: what the ConvNN branch is to attend to, found before by ``neighbors()`` of a layer like this one.
        """
        refuse_attn_mask(attn_mask, is_causal)
        self._check_input(x)
        if key_padding_mask is not None:
            checks.key_padding_mask(key_padding_mask, x)
        near, rest = x.split([self.share, self.dim - self.share], dim=2)
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

    def _check_input(self, x: Tensor) -> None:
        check_input(x, self, shape=f"(batch, tokens, {self.dim})", ranks=(3,), axis=2, channels=self.dim)

    def extra_repr(self) -> str:
        """Write the call that makes this layer; the branches follow."""
        own: dict[str, tuple[object, object]] = {
            "partner": (self.partner, "attention"),
            "kernel_size": (self.kernel_size, 3),
        }
        call = f"{self.dim}, num_heads={self.num_heads}, k={self.k}, branch_ratio={self.branch_ratio}"
        return call + options_repr({**own, **self._branches}) + self._options
