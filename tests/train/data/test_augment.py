"""Batched augmentation: what it does to pixels, and that it depends on nothing but the images and their draws."""

import pytest
import torch
import torch.nn.functional as F

from convnn.train.data.augment import DRAWS, Augment, cutout, draw, flip, resized_crop, translate


def images(count=6, size=8):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_about_half_of_the_images_are_mirrored():
    x = images(1000, 4)
    changed = (flip(x, torch.rand(1000)) != x).flatten(1).any(1)
    assert 400 < int(changed.sum()) < 600
    assert torch.equal(flip(x, torch.zeros(1000)), x.flip(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("pixels", [1, 3, 7])
def test_a_translation_is_a_crop_of_the_padded_image(pixels, dtype):
    x = (images() * 40 + 128).to(dtype)
    draws = torch.rand(6, 2)
    got = translate(x, pixels, draws)
    padded = F.pad(x.float(), (pixels,) * 4, mode="reflect")
    for image, (row, column), out in zip(padded, (draws * (2 * pixels + 1)).long().tolist(), got, strict=True):
        assert torch.equal(image[:, row : row + 8, column : column + 8], out.float())
    assert got.dtype == dtype


def test_every_shift_occurs_equally_often():
    x = torch.arange(64.0).view(1, 1, 8, 8).expand(9000, 1, 8, 8)
    shifts = translate(x, 1, torch.rand(9000, 2))[:, 0, 4, 4].long()
    counts = shifts.bincount()
    assert (counts > 0).sum() == 9
    assert counts[counts > 0].min() > 850


def test_a_cutout_is_one_square_inside_the_image():
    out = cutout(torch.ones(500, 2, 8, 8), 3, torch.rand(500, 2))
    holes = (out == 0).flatten(2).sum(-1)
    assert torch.equal(holes[:, 0], holes[:, 1])
    assert holes.max() == 9
    assert holes.min() == 4  # at a corner
    whole = (out == 0)[holes[:, 0] == 9][0, 0].nonzero()
    assert (whole.amax(0) - whole.amin(0)).tolist() == [2, 2]


def test_a_resized_crop_stays_inside_and_has_the_whole_image_as_its_limit():
    x = images(64, 16)
    out = resized_crop(x, torch.rand(64, 4))
    assert out.shape == x.shape
    assert float(out.max()) <= float(x.max())
    square = torch.tensor([[1.0, 0.5, 0.3, 0.8]])  # all of the area, as high as wide
    torch.testing.assert_close(resized_crop(x[:1], square), x[:1], atol=1e-5, rtol=0)
    ramp = torch.linspace(-1, 1, 16).expand(1, 1, 16, 16)
    corner = resized_crop(ramp, torch.tensor([[0.0, 0.5, 0.0, 0.0]]))[0, 0, 0]  # 60 % of the area, at the upper left
    torch.testing.assert_close(corner[8] - corner[7], torch.tensor(0.6**0.5 * 2 / 15), atol=1e-5, rtol=0)
    assert float(corner[0]) < -0.98


@pytest.mark.parametrize(
    "options",
    [{}, {"flip": True}, {"pad_crop": 2}, {"cutout": 4}, {"crop": True}, {"flip": True, "pad_crop": 2, "cutout": 4}],
)
def test_images_are_changed_alike_however_the_batch_is_divided(options):
    augment, x = Augment(**options), images()
    assert bool(augment) == bool(options)
    torch.manual_seed(3)
    whole = augment(x, draw(6))
    assert torch.equal(whole, x) == (not options)
    for rank in range(2):
        torch.manual_seed(3)
        rows = draw(3, share=(rank, 2))
        assert rows.shape == (3, DRAWS)
        torch.testing.assert_close(augment(x[rank::2], rows), whole[rank::2], atol=0, rtol=0)
