"""Every kind of image file becomes upright RGB of 8 bits, or one line of error."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision_stack.data.checks.issues import DataError
from vision_stack.data.images import read_image, read_sizes, rgb_array

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


def scene() -> Image.Image:
    blocks = np.random.default_rng(0).integers(0, 255, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((11, 11, 1), np.uint8)))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


JPEGS = {
    "plain": {},
    "all colours": {"subsampling": 0, "quality": 100},
    "restart markers": {"restart_marker_rows": 1},
    "progressive": {"progressive": True},
    "grey": {},
    "grey progressive": {"progressive": True},
    "cmyk": {},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_whose_data_stop_before_its_end_marker_is_refused_and_a_whole_one_is_not(
    kind: str, tmp_path: Path
) -> None:
    image = scene().convert({"grey": "L", "cmyk": "CMYK"}.get(kind.split()[0], "RGB"))
    whole = encoded(image, "JPEG", **JPEGS[kind])
    path = tmp_path / "a.jpg"
    path.write_bytes(whole)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(read_image(path), np.array(opened.convert("RGB")))
    assert read_sizes(path, decode=True).stored == (99, 143)
    ends = [len(whole) // 2, len(whole) // 3]
    # Where the last byte that is left is a 0xFF, the end marker must not make another marker of it.
    ends += (
        [] if "progressive" in kind else [i + 1 for i in range(len(whole) * 2 // 3) if whole[i : i + 2] == b"\xff\0"]
    )
    for end in ends:
        path.write_bytes(whole[:end] + b"\xff\xd9")
        for read in (read_image, lambda path: read_sizes(path, decode=True)):
            with pytest.raises(DataError, match="truncated"):
                read(path)


@pytest.mark.parametrize("image", [Image.new("RGB", (300, 200), c) for c in ("black", "grey", "white")])
def test_jpeg_of_one_colour_and_with_data_after_its_end_is_whole(image: Image.Image, tmp_path: Path) -> None:
    for after in (b"", b"\0" * 40, encoded(image, "JPEG")):
        (tmp_path / "a.jpg").write_bytes(encoded(image, "JPEG") + after)
        assert read_image(tmp_path / "a.jpg").std(axis=(0, 1)).max() < 1


def test_progressive_jpeg_that_leaves_out_fine_detail_on_purpose_is_whole(tmp_path: Path) -> None:
    data = encoded(scene(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xc4")  # the tables of the last scan, which is left out with them
    (tmp_path / "a.jpg").write_bytes(data[:last] + b"\xff\xd9")
    assert read_image(tmp_path / "a.jpg").shape == (99, 143, 3)


def test_png_that_lacks_some_of_its_blocks_is_found_by_decoding(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "PNG")
    blocks = [i - 4 for i in range(len(data)) if data[i : i + 4] in (b"IDAT", b"IEND")]
    assert len(blocks) > 2
    (tmp_path / "a.png").write_bytes(data[: blocks[1]] + data[blocks[-1] :])
    for read in (read_image, lambda path: read_sizes(path, decode=True)):
        with pytest.raises(DataError, match="truncated"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_jpeg_is_close_to_the_resized_one_upright_and_still_checked(tmp_path, orientation):
    y, x = np.mgrid[0:64, 0:96]
    pixels = np.stack([2 * x, 3 * y, 128 + 60 * np.sin((x + y) / 9)], axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(file, quality=95, exif=exif)
    whole, half = read_image(file), read_image(file, reduction=2)
    assert half.shape == (whole.shape[0] // 2, whole.shape[1] // 2, 3)
    means = whole.reshape(half.shape[0], 2, half.shape[1], 2, 3).mean(axis=(1, 3))
    assert np.abs(half - means).mean() < 1.5
    file.write_bytes(file.read_bytes()[:-200] + b"\xff\xd9")
    with pytest.raises(DataError, match="truncated"):
        read_image(file, reduction=2)
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    assert np.array_equal(read_image(file, reduction=2), pixels)
