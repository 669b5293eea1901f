"""The search in tiles, against all scores at once."""

from __future__ import annotations

import pytest
import torch

from convnn.ops.cpu.network import MANY_COLUMNS
from convnn.ops.nearest import nearest


@pytest.mark.parametrize("stable", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(50, 40), (9000, 250), (300, 9000)])  # one tile, several, merged ones
def test_tiles_and_merging_do_not_change_the_search(queries: int, keys: int, stable: bool) -> None:
    query, key, bias = (torch.randn(shape).double() for shape in ((2, queries, 8), (2, keys, 8), (2, keys)))
    masked, skip = torch.rand(2, keys) < 0.3, torch.randint(-1, keys, (queries,))
    scores = (query @ key.transpose(1, 2) + bias.unsqueeze(1)).masked_fill(masked.unsqueeze(1), -torch.inf)
    scores[:, skip >= 0, skip[skip >= 0]] = -torch.inf
    assert torch.equal(nearest(query, key, bias, masked, skip, 9, stable), scores.topk(9).indices)


@pytest.mark.parametrize("keys", [40, 200])  # laid out by keys, by queries
@pytest.mark.parametrize("channels", [16, 640])
@pytest.mark.usefixtures("_processor")
def test_several_samples_are_searched_together(keys: int, channels: int) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(3, MANY_COLUMNS // 2, channels), torch.randn(3, keys, channels)
    skip = torch.arange(MANY_COLUMNS // 2) % keys
    scores = (query.double() @ key.double().transpose(1, 2)).scatter(
        2, skip.view(1, -1, 1).expand(3, -1, 1), -torch.inf
    )
    assert torch.equal(nearest(query, key, None, None, skip, 8, False), scores.topk(8).indices)
