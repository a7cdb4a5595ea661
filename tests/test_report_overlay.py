"""Overlays: what is painted where, and that people can tell it apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.segmentation import find_boundaries

from everymask.errors import InputError
from everymask.report.colours import contrasting_palette, distinct_choice, oklab, vivid_colours
from everymask.report.kernels import neighbours
from everymask.report.overlay import draw_overlay, suggested_magnification
from everymask.report.picture import contact_sheet, displayed, save_png
from everymask.types import Categories, Category, Segments


def blocks(rows: int = 6, columns: int = 7, side: int = 12, gap: int = 0) -> np.ndarray:
    """A label map of squares in a grid, `gap` pixels apart."""
    step = side + gap
    ids = np.zeros((rows * step, columns * step), np.int32)
    for i in range(rows * columns):
        y, x = divmod(i, columns)
        ids[y * step : y * step + side, x * step : x * step + side] = i + 1
    return ids


# -- display range -----------------------------------------------------------------------------------------------------


def test_display_is_the_linear_stretch_between_percentiles() -> None:
    image = np.linspace(100, 1123, 64 * 64).reshape(64, 64)
    low, high = np.percentile(image, [1, 99])
    expected = np.round(255 * np.clip((image - low) / (high - low), 0, 1))
    shown = displayed(image, 1, 99)
    assert shown.shape == (64, 64, 3) and shown.dtype == np.uint8
    assert np.abs(shown[..., 0].astype(int) - expected).max() <= 1
    assert (shown == shown[..., :1]).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int8, np.int16, np.uint32, np.int64, np.float64])
def test_display_does_not_depend_on_the_number_type(kind: type) -> None:
    image = np.random.default_rng(0).integers(0, 120, (40, 50, 3))
    assert np.array_equal(displayed(image.astype(kind)), displayed(image.astype(np.float32)))


def test_display_of_negative_integers() -> None:
    image = np.random.default_rng(1).integers(-100, 100, (40, 50))
    assert np.array_equal(displayed(image.astype(np.int16)), displayed(image.astype(np.float32)))


def test_dark_images_are_lifted_and_others_are_not() -> None:
    dark = np.zeros((50, 50))
    dark[:5, :5] = np.linspace(0, 1, 25).reshape(5, 5)
    bright = 1 - dark
    assert displayed(dark, 0, 100)[2, 2, 0] > round(255 * dark[2, 2])
    assert displayed(bright, 0, 100)[2, 2, 0] == round(255 * bright[2, 2])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_display_of_any_number_of_channels(channels: int) -> None:
    image = np.random.default_rng(2).integers(0, 65535, (20, 30, channels), dtype=np.uint16)
    assert displayed(image).shape == (20, 30, 3)


def test_display_of_two_channels_is_magenta_and_green() -> None:
    image = np.zeros((10, 10, 2), np.uint8)
    image[:5, :, 0] = 255
    image[5:, :, 1] = 255
    shown = displayed(image, 0, 100)
    assert shown[0, 0].tolist() == [255, 0, 255] and shown[9, 0].tolist() == [0, 255, 0]


def test_display_of_odd_values() -> None:
    assert (displayed(np.full((4, 4), 7.0)) == displayed(np.full((4, 4), 7.0))[0, 0]).all()
    image = np.arange(16.0).reshape(4, 4)
    image[0, 0], image[1, 1] = np.nan, np.inf
    assert displayed(image)[0, 0, 0] == 0 and displayed(image)[1, 1, 0] == 255
    assert displayed(np.full((3, 3), np.nan)).shape == (3, 3, 3)
    with pytest.raises(InputError, match="2-D image"):
        displayed(np.zeros((2, 3, 4, 5)))


# -- colours -----------------------------------------------------------------------------------------------------------


def test_oklab_of_the_published_values() -> None:
    # B. Ottosson's page gives these for sRGB white, red and blue.
    found = oklab(np.array([[255, 255, 255], [255, 0, 0], [0, 0, 255], [0, 0, 0]], np.uint8))
    expected = [[1, 0, 0], [0.62796, 0.22486, 0.12585], [0.45201, -0.03246, -0.31153], [0, 0, 0]]
    assert np.abs(found - expected).max() < 2e-4


def test_palette_avoids_the_image_and_itself() -> None:
    purple = np.tile(np.array([[110, 40, 140], [240, 230, 245]], np.uint8), (50, 1))
    palette = contrasting_palette(purple, 12)
    distances = np.linalg.norm(oklab(palette)[:, None] - oklab(purple)[None], axis=-1)
    everything = np.linalg.norm(oklab(vivid_colours())[:, None] - oklab(purple)[None], axis=-1)
    assert distances.min() >= np.median(everything.min(axis=1)) - 1e-9
    assert len(np.unique(palette, axis=0)) == 12


def brute_force_neighbours(ids: np.ndarray, reach: int) -> set[tuple[int, int]]:
    """Looks from each pixel along the eight directions until another value but background comes."""
    found = set()
    for y, x in np.argwhere(ids > 0):
        for dy, dx in ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)):
            for step in range(1, reach + 1):
                i, j = y + step * dy, x + step * dx
                if not (0 <= i < ids.shape[0] and 0 <= j < ids.shape[1]):
                    break
                if ids[i, j] > 0:
                    if ids[i, j] != ids[y, x]:
                        found.add((min(ids[y, x], ids[i, j]), max(ids[y, x], ids[i, j])))
                    break
    return found


@pytest.mark.parametrize("reach", [1, 3])
def test_neighbours_equal_brute_force(reach: int) -> None:
    rng = np.random.default_rng(reach)
    for density in (0.05, 0.5, 1.0):
        ids = np.where(rng.random((17, 23)) < density, rng.integers(-1, 30, (17, 23)), 0).astype(np.int32)
        found = {(int(a), int(b)) for a, b in neighbours(ids, reach)}
        assert found == brute_force_neighbours(ids, reach)


def test_neighbours_beyond_the_first_guess_of_their_number() -> None:
    ids = np.arange(1, 200 * 200 + 1, dtype=np.int32).reshape(200, 200)
    assert len(neighbours(ids, 1)) == 2 * 199 * 200 + 2 * 199 * 199


def test_neighbours_never_share_a_colour_and_no_colour_prevails() -> None:
    ids = blocks(20, 20)
    pairs = neighbours(ids, 6)
    palette = contrasting_palette(np.zeros((0, 3), np.uint8), 12)
    chosen = distinct_choice(pairs - 1, 400, palette)
    assert (chosen[pairs[:, 0] - 1] != chosen[pairs[:, 1] - 1]).all()
    assert np.bincount(chosen).max() < 400 / 4
    apart = np.linalg.norm(oklab(palette)[chosen[pairs[:, 0] - 1]] - oklab(palette)[chosen[pairs[:, 1] - 1]], axis=1)
    assert apart.min() > 0.1  # five times what the eye just sees


# -- drawing -----------------------------------------------------------------------------------------------------------


def test_contour_and_fill_lie_where_they_should() -> None:
    rng = np.random.default_rng(3)
    ids = np.pad(blocks(4, 5, gap=6), 6)
    image = rng.integers(0, 255, (*ids.shape, 3), dtype=np.uint8)
    picture = displayed(image)
    colours = rng.integers(0, 255, (20, 3), dtype=np.uint8)
    drawn = draw_overlay(image, Segments.from_label_map(ids), colours=colours, fill=0.25, thickness=1)
    edge = find_boundaries(ids, connectivity=1, mode="inner")
    assert np.array_equal(drawn[edge], colours[ids[edge] - 1])
    around = np.zeros_like(edge)
    for axis, shift in ((0, 1), (0, -1), (1, 1), (1, -1)):
        around |= np.roll(edge, shift, axis)  # the image's edge is background: no harm
    inside, outside = (ids > 0) & ~edge & ~around, (ids == 0) & ~around
    mixed = 0.75 * picture[inside] + 0.25 * colours[ids[inside] - 1]
    assert np.abs(drawn[inside] - mixed).max() <= 1
    assert np.array_equal(drawn[outside], picture[outside])
    rim = (ids == 0) & around & ~edge
    assert np.abs(drawn[rim].astype(int) - picture[rim] / 2).max() <= 1


def test_touching_objects_get_different_colours() -> None:
    ids = blocks()
    drawn = draw_overlay(np.zeros(ids.shape, np.uint8), Segments.from_label_map(ids), thickness=1)
    colour = {i: drawn[ids == i][0].tolist() for i in range(1, ids.max() + 1)}
    for a, b in brute_force_neighbours(ids, 1):
        assert colour[int(a)] != colour[int(b)]


@pytest.mark.parametrize("magnify", [1, 3])
def test_magnified_overlays_have_thin_contours(magnify: int) -> None:
    ids = blocks(2, 2, side=20, gap=4)
    drawn = draw_overlay(np.zeros(ids.shape), Segments.from_label_map(ids), magnify=magnify, fill=0, thickness=1)
    assert drawn.shape == (magnify * ids.shape[0], magnify * ids.shape[1], 3)
    # The squares touch the image at the top and the left, where objects stay open.
    side = 20 * magnify
    inner = 4 * side - 4
    open_pixels = {1: 2 * side - 1, 2: 3 * side - 2, 3: 3 * side - 2, 4: inner}
    assert np.count_nonzero(drawn.any(axis=-1)) == sum(open_pixels.values())


def test_small_objects_lie_on_top_of_large_ones() -> None:
    masks = np.zeros((2, 60, 60), bool)
    masks[0, 20:30, 20:30] = True
    masks[1, 5:55, 5:55] = True
    segments = Segments.from_masks(masks)
    colours = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)
    drawn = draw_overlay(np.zeros((60, 60)), segments, colours=colours, thickness=1)
    assert drawn[20, 20].tolist() == [255, 0, 0] and drawn[5, 5].tolist() == [0, 255, 0]


def test_boxes_without_masks_are_drawn_as_frames() -> None:
    segments = Segments((50, 60), [1], box=[[10, 5, 30, 25]], score=[0.5])
    drawn = draw_overlay(np.zeros((50, 60)), segments, thickness=1)
    painted = drawn.any(axis=-1)
    frame = np.zeros((50, 60), bool)
    frame[5:25, 10:30] = True
    frame[6:24, 11:29] = False
    assert np.array_equal(painted, frame)


def test_stuff_gets_the_colours_of_its_categories() -> None:
    categories = Categories([Category(3, "sky", False, (10, 20, 200)), Category(8, "road", False, (200, 30, 40))])
    classes = np.full((40, 40), 3)
    classes[20:] = 8
    segments = Segments.from_semantic_map(classes)
    drawn = draw_overlay(np.zeros((40, 40)), segments, categories=categories, thickness=1)
    assert drawn[19, 5].tolist() == [10, 20, 200] and drawn[20, 5].tolist() == [200, 30, 40]


def test_nothing_found_leaves_the_picture() -> None:
    image = np.random.default_rng(4).random((20, 20, 3))
    assert np.array_equal(draw_overlay(image, Segments.empty((20, 20))), displayed(image))
    tags = Segments((20, 20), [1])
    assert np.array_equal(draw_overlay(image, tags), displayed(image))


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(20, 20\).*\(20, 21\)"):
        draw_overlay(np.zeros((20, 20)), Segments.empty((20, 21)))


def test_one_pixel_image() -> None:
    drawn = draw_overlay(np.ones((1, 1)), Segments.from_label_map(np.ones((1, 1), np.int32)), magnify=4)
    assert drawn.shape == (4, 4, 3)
    assert suggested_magnification((1, 1)) == 4 and suggested_magnification((4000, 10)) == 1


@pytest.mark.parametrize("kind", ["fluorescence", "histology-color", "brightfield-gray"])
def test_contours_stand_out_from_real_images(shared_data: Path, kind: str) -> None:
    folder = shared_data / "dsb2018"
    rows = [line.split(",") for line in (folder / "manifest.csv").read_text().splitlines()[1:]]
    name = next(row[0] for row in rows if row[1:3] == ["val", kind])
    image = np.asarray(Image.open(folder / "val" / "images" / f"{name}.png"))
    segments = Segments.from_label_map(np.asarray(Image.open(folder / "val" / "masks" / f"{name}.png")))
    drawn = draw_overlay(image, segments, thickness=1)
    edge = find_boundaries(segments.label_map(), connectivity=1, mode="inner")
    distance = np.linalg.norm(oklab(drawn[edge]) - oklab(displayed(image)[edge]), axis=-1)
    assert np.percentile(distance, 5) > 0.1


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_contact_sheet_holds_each_picture_and_title() -> None:
    pictures = [np.full((30, 60, 3), value, np.uint8) for value in (50, 100, 150, 200, 250)]
    sheet = contact_sheet(pictures, [f"picture {i}" for i in range(5)], columns=3, tile=120)
    for value in (50, 100, 150, 200, 250):
        assert np.count_nonzero((sheet == value).all(axis=-1)) >= 60 * 120
    with pytest.raises(InputError, match="title for each"):
        contact_sheet(pictures, ["one"])


def test_png_round_trip_and_unwritable_folder(tmp_path: Path) -> None:
    picture = np.random.default_rng(5).integers(0, 255, (9, 8, 3), dtype=np.uint8)
    save_png(tmp_path / "new" / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), picture)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        save_png(tmp_path / "file" / "a.png", picture)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["a.png", "file", "new"]


def test_boxes_bear_the_names_of_their_classes():
    from everymask.types import Categories, Segments

    image = np.full((120, 160, 3), 128, np.uint8)
    boxes = Segments((120, 160), [1, 2], None, score=[0.9, 0.4], box=[[20, 40, 80, 100], [90, 2, 158, 60]])
    several, single = Categories(["tram", "bus"]), Categories(["tram"])
    named = draw_overlay(image, boxes, categories=several)
    plain = draw_overlay(image, boxes)
    assert np.array_equal(draw_overlay(image, boxes[:1], categories=single), draw_overlay(image, boxes[:1]))
    changed = np.argwhere((named != plain).any(-1))
    above = changed[changed[:, 1] < 85]
    assert above[:, 0].max() <= 40  # above the first box
    assert len(above) > 100
    inside = changed[changed[:, 1] > 85]
    assert inside[:, 0].min() >= 2  # there is no room above the second one
    assert len(inside) > 100
