"""The feature limit of the family, run by the native attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..types import Gather, Problem, Search
from .base import Implementation


class Attention(Implementation):
    """The native scaled dot-product attention, where every key is a neighbour."""

    name = "sdpa"
    reason = "this is attention, which has a native kernel"
    saves_output = True

    def why_not(self, problem: Problem) -> str | None:
        """Return why this is not attention, or None: dot, every key, softmax, unit weights."""
        search, gather = problem
        if search is None or gather is None:
            return "it is known only where search and aggregation are one call"
        if search.similarity != "dot":
            return "the similarity is not dot"
        if not isinstance(search.candidates, str) or not (search.every or search.k == search.keys):
            return "not every key is a neighbour (k < N)"
        if search.key_padding_mask is not None and not search.every:
            return "a mask leaves fewer than k = N keys"
        if gather.weighting != "softmax" or gather.weight is not None:
            return "attention weights by softmax and has unit slot weights"
        return None

    def aggregate(self, search: Search, gather: Gather) -> Tensor:
        """Attend: ``(B, N, C)``."""
        mask = search.key_padding_mask
        # With an axis of one head: torch's fused kernels take four axes only.
        query, key, value = (x.unsqueeze(1) for x in (search.query, search.key, gather.value))
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else ~mask[:, None, None, :],
            dropout_p=gather.dropout_p,
            scale=search.scale / gather.temperature,
        ).squeeze(1)
        return out if gather.bias is None else out + gather.bias.to(out.dtype)
