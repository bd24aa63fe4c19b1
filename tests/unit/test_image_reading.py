"""Every kind of image file becomes upright RGB of 8 bits, or one line of error."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_stack.data.images import read_image, read_sizes, rgb_array
from vision_stack.data.validation import DataError

RAMP = np.linspace(0, 255, 20 * 30).round().astype(np.uint8).reshape(20, 30)


def corners(array: np.ndarray) -> np.ndarray:
    return array[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_turns_the_image_upright(suffix: str, orientation: int, tmp_path: Path) -> None:
    # The stored pixels hold four flat quadrants, so that corners survive lossy compression.
    stored = np.kron(np.array([[0, 80], [160, 240]]), np.ones((16, 32))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.stack([stored] * 3, axis=2)).save(path, exif=exif)
    turn = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).T,
        8: np.rot90,
    }[orientation]
    upright = read_image(path)
    np.testing.assert_allclose(corners(upright[:, :, 0]), corners(turn(stored)), atol=8)  # JPEG and WebP are lossy
    sizes = read_sizes(path)
    assert sizes == read_sizes(path, decode=True)
    assert sizes.upright == upright.shape[:2]
    if suffix != "tif":  # whose decoder turns it in any case
        assert sizes.stored == stored.shape == read_image(path, apply_exif=False).shape[:2]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_over_its_whole_range(suffix: str, tmp_path: Path) -> None:
    wide = RAMP.astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(image, np.stack([RAMP] * 3, axis=2))


def test_dim_sixteen_bit_grey_is_not_stretched(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 4095, dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").max() == 16  # 4095 / 257


@pytest.mark.parametrize(("values", "expected"), [([0.0, 0.5, 1.0], [0, 128, 255]), ([0, 100.4, 255], [0, 100, 255])])
def test_float_grey_is_read_as_fraction_or_brightness(values: list[float], expected: list[int], tmp_path: Path) -> None:
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == expected


@pytest.mark.parametrize("values", [[-1.0, 0, 1], [0, 1e6, 2], [0, np.nan, 1]])
def test_float_grey_without_a_known_range_is_refused(values: list[float], tmp_path: Path) -> None:
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: pixels: .*brightness"):
        read_image(tmp_path / "a.tif")


def test_grey_bilevel_and_cmyk_become_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(RAMP)
    grey.save(tmp_path / "grey.png")
    grey.convert("1").save(tmp_path / "bilevel.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([RAMP] * 3, axis=2))
    assert set(np.unique(read_image(tmp_path / "bilevel.png"))) == {0, 255}
    np.testing.assert_allclose(read_image(tmp_path / "cmyk.jpg")[4, 4], [255, 0, 0], atol=4)  # JPEG is lossy


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_show_white_and_half_transparent_ones_mix(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (100, 100, 100, alpha))
    image.convert(mode).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [255, 177, 100]  # 177 = (100 * 128 + 255 * 127) / 255


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 10, 10, 10, 200])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=1)
    image.save(tmp_path / "clear.gif", transparency=1)
    assert read_image(tmp_path / "plain.png")[0].tolist() == [[200, 10, 10], [10, 10, 200]]
    for name in ("clear.png", "clear.gif"):
        assert read_image(tmp_path / name)[0].tolist() == [[200, 10, 10], [255, 255, 255]]


def test_rgb_array_is_writable_and_of_the_pillow_image() -> None:
    array = rgb_array(Image.fromarray(np.stack([RAMP] * 3, axis=2)))
    array[0, 0] = 7
    assert array.dtype == np.uint8


@pytest.mark.parametrize(
    ("suffix", "orientation"), [(s, 1) for s in ("png", "jpg", "webp", "bmp", "tif", "gif")] + [("png", 6), ("jpg", 6)]
)
def test_sound_file_passes_where_the_whole_file_is_checked(suffix: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (32, 24), (9, 8, 7)).save(path, **({"exif": exif} if orientation > 1 else {}))
    sizes = read_sizes(path, decode=True)
    assert sizes == read_sizes(path)
    assert sizes.upright == ((32, 24) if orientation == 6 else (24, 32))


def test_damage_in_the_middle_is_found_where_the_whole_file_is_checked(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    raw = bytearray((tmp_path / "a.png").read_bytes())
    raw[4000:4100] = bytes(100)
    (tmp_path / "a.png").write_bytes(raw)
    assert read_sizes(tmp_path / "a.png").upright == (64, 64)
    with pytest.raises(DataError, match="cannot be decoded"):
        read_sizes(tmp_path / "a.png", decode=True)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"appended by a phone")
    assert read_sizes(tmp_path / "a.jpg").upright == (20, 30)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"GIF89a", "pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # would start Ghostscript
        (b"\xff\xd8\xff\xe0 no more", "pixels"),
    ],
)
def test_unreadable_file_raises_one_line_that_names_it(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    for read in (read_image, read_sizes):
        with pytest.raises(DataError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: pixels: ")
        assert "\n" not in str(caught.value)


def test_data_error_survives_the_way_out_of_a_worker_process(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "missing.jpg")
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value)
    assert error.problem == caught.value.problem


def test_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a regular file"):
        read_image(tmp_path)
