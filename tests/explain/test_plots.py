import io
import threading

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from convnn import ConvNNError
from convnn.explain import NeighborMap
from convnn.explain.plots import shading, spectrum_picture, tile

FOUND = NeighborMap((4, 4), (1, 1), ((1, 1), (0, 2), (-1, -1)), (1.0, 0.9, 0.2))


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_a_tile_marks_query_and_neighbours():
    drawn = pixels(tile(torch.zeros(4, 4), FOUND, margin=1))
    assert drawn.shape == (288, 288, 3)
    orange = (abs(drawn - [217, 72, 15]).sum(-1) < 30).sum()
    blue = (abs(drawn - [11, 79, 158]).sum(-1) < 30).sum()
    assert orange > 200
    assert blue > 200


def test_tiles_are_the_same_in_threads_and_leave_pyplot_alone():
    backend = mpl.get_backend()
    expected, drawn = tile(torch.eye(4), FOUND), []
    threads = [threading.Thread(target=lambda: drawn.append(tile(torch.eye(4), FOUND))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn == [expected] * 3
    assert mpl.get_backend() == backend


def test_many_neighbours_go_without_numbers():
    positions = tuple((row, column) for row in range(6) for column in range(6))
    weight = tuple(1 / 36 for _ in positions)
    assert len(tile(torch.zeros(6, 6), NeighborMap((6, 6), (0, 0), positions, weight, weight))) > 500


def test_shading_runs_from_the_least_to_the_largest_neighbour():
    assert shading(FOUND) == [1.0, 1.0, 1.0 - 0.7 / 0.7]
    assert shading(NeighborMap((1, 1), (0, 0), ((0, 0),), (0.3,))) == [1.0]


def test_the_one_picture(tmp_path):
    path = tmp_path / "picture.png"
    spectrum_picture(torch.eye(4), [("Near", "what is near", FOUND), ("Alike", "what is alike", FOUND)], path)
    assert Image.open(path).size == (825, 600)


def test_images_and_maps_that_cannot_be_drawn(tmp_path):
    with pytest.raises(ConvNNError, match=r"image: expected one grey image \(H, W\), got \(1, 4, 4\)"):
        tile(torch.zeros(1, 4, 4), FOUND)
    with pytest.raises(ConvNNError, match="maps: expected at least one layer"):
        spectrum_picture(torch.zeros(4, 4), [], tmp_path / "none.png")
