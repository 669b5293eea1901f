"""Images of every mode and format, read as a viewer shows them; what cannot be read is named."""

import io

import numpy as np
import pytest
from PIL import Image

from convnn import ConvNNError
from convnn.train.data.decode import read_image


def noise(*shape, high=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def read(source, mode="RGB"):
    return np.asarray(read_image(source, mode, name="it"))


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_sixteen_bits_keep_their_shades(kind, dtype):
    values = noise(9, 7, high=65536, dtype=dtype)
    expected = np.round(values / 257)
    assert np.array_equal(read(saved(Image.fromarray(values), kind), "L"), expected)
    assert np.array_equal(read(saved(Image.fromarray(values), kind)), np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-10.0, 0.0, 10.0]], np.float32), [0, 128, 255]),
        (np.array([[1e4, 1e4, 1e4]], np.float32), [0, 0, 0]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0, 1, 2**30]], np.int32), [0, 0, 255]),
    ],
)
def test_wide_pixels_have_a_range(values, expected):
    assert read(saved(Image.fromarray(values), "TIFF"), "L").tolist() == [expected]


def test_pixels_that_are_no_numbers_are_refused():
    with pytest.raises(
        ConvNNError, match=r"^data: expected images that can be read, got it \(pixels that are nan or inf"
    ):
        read(saved(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_images_stand_as_their_camera_was_held(kind, orientation):
    upright = noise(4, 6, 3)
    # What a camera that is held so stores: the inverse of what EXIF tells a viewer to do.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    file = saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    assert np.array_equal(read(file), upright)


def test_damaged_exif_data_are_no_reason_to_refuse_an_image():
    pixels = noise(4, 6, 3)
    assert np.array_equal(read(saved(Image.fromarray(pixels), exif=b"Exif\0\0MM")), pixels)


def test_transparency_is_over_white():
    pixels, alpha = noise(5, 4, 3), noise(5, 4)
    expected = pixels * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
    image = Image.merge("RGBA", [*Image.fromarray(pixels).split(), Image.fromarray(alpha)])
    assert np.abs(read(saved(image)) - expected).max() <= 0.51
    grey = Image.merge("LA", [Image.fromarray(pixels[..., 0]), Image.fromarray(alpha)])
    assert np.abs(read(saved(grey), "L") - expected[..., 0]).max() <= 0.51


def test_a_transparent_colour_of_a_palette_is_white():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert read(saved(image)).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    assert read(saved(image, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    assert read(saved(image, transparency=bytes([255, 0, 255]))).tolist() == [[[10, 20, 30], [255] * 3, [70, 80, 90]]]


def test_one_bit_and_four_inks():
    bits = noise(4, 5, high=2)
    assert np.array_equal(read(saved(Image.fromarray(bits.astype(bool))), "L"), bits * 255)
    inks = noise(4, 5, 4)
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    assert np.abs(read(saved(Image.fromarray(inks, "CMYK"), "TIFF")) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_of_several_images_in_a_file_the_first_is_read(kind):
    pages = [Image.new("L", (3, 3), shade) for shade in (0, 100, 200)]
    assert read(saved(pages[0], kind, save_all=True, append_images=pages[1:])).max() == 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
def test_a_file_that_is_cut_short_is_named(tmp_path, kind):
    content = saved(Image.fromarray(noise(64, 64, 3)), kind).getvalue()
    path = tmp_path / "cut.png"
    for length in (0, 10, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(
            ConvNNError, match=r"^data: expected images that can be read, got '.*cut\.png' \(.*\); replace"
        ) as e:
            read_image(path, "RGB")
        assert "\n" not in str(e.value)


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(ConvNNError, match=r"got '.*gone\.png' \(No such file or directory\)"):
        read_image(tmp_path / "gone.png", "RGB")


def test_an_image_that_is_too_large_is_named_with_its_pixels(tmp_path, monkeypatch):
    Image.new("1", (20, 20)).save(tmp_path / "map.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # from here Pillow warns, from twice as many it refuses
    assert read_image(tmp_path / "map.png", "L").size == (20, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 199)
    with pytest.raises(ConvNNError, match=r"images of at most 398 pixels, got '.*map\.png' of 400; make it smaller"):
        read_image(tmp_path / "map.png", "RGB")
