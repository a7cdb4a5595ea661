"""Tiles: the plan, and tiled prediction against the untiled one."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predict_toys import PLAIN, Bands, Blobs, StarOracle, blob_field, objects_of

from everymask.errors import InputError
from everymask.formats.images import find_images, read_labels
from everymask.predict.predictor import Predictor
from everymask.predict.tiling import plan_tiles
from everymask.types import LabelMap, Segments


@settings(max_examples=300, deadline=None)
@given(
    length=st.integers(1, 3000),
    stride=st.sampled_from([1, 2, 8, 16, 32]),
    strides=st.integers(2, 40),
    share=st.floats(0, 0.5),
)
def test_tiles_of_an_axis_keep_every_promise(length: int, stride: int, strides: int, share: float) -> None:
    tile = strides * stride
    overlap = int(share * tile)
    spans = [each.columns for each in plan_tiles((1, length), tile, overlap, stride)]
    padded = -(-length // stride) * stride
    assert spans[0].start == spans[0].core_start == 0
    assert spans[-1].stop == spans[-1].core_stop == padded
    for span in spans:
        assert span.start % stride == span.stop % stride == span.core_start % stride == span.core_stop % stride == 0
        assert span.start <= span.core_start < span.core_stop <= span.stop
        assert span.start < length and span.stop - span.start <= tile
    for one, two in itertools.pairwise(spans):
        assert one.core_stop == two.core_start  # the cores cover the axis once
        assert one.stop - two.start >= overlap
        # The overlap is divided in the middle, as far as the stride allows.
        assert min(one.stop - one.core_stop, two.core_start - two.start) > overlap / 2 - stride
    assert len({span.stop - span.start for span in spans}) == 1


@pytest.mark.parametrize("geometry", ["labels", "masks"])
@pytest.mark.parametrize(("size", "tile"), [((300, 410), 160), ((511, 97), 192), ((64, 700), 176)])
def test_tiled_objects_are_the_untiled_ones(size: tuple[int, int], tile: int, geometry: str) -> None:
    image = blob_field(size)
    method = Blobs(geometry=geometry)
    whole = Predictor(method, PLAIN, "cpu", "float32", tile=1024)(image)
    cut = whole.boxes()
    assert len(whole) > 10 and (cut[:, 2:] - cut[:, :2]).max() < tile // 2 - 2 * method.context
    predictor = Predictor(method, PLAIN, "cpu", "float32", tile=tile, overlap=tile // 2)
    tiled = predictor(image)
    assert tiled.size == size
    assert objects_of(tiled) == objects_of(whole)
    order, other = np.lexsort(tiled.boxes().T), np.lexsort(whole.boxes().T)
    np.testing.assert_allclose(tiled.score[order], whole.score[other], rtol=1e-5)
    np.testing.assert_array_equal(tiled.attributes["area"][order], tiled.areas()[order])


def test_tiled_stars_of_real_nuclei_are_the_untiled_ones(shared_data: Path) -> None:
    # Annotated nuclei side by side: touching ones, round and elongated ones, some cut off.
    masks = [read_labels(path) for path in find_images(shared_data / "dsb2018" / "val" / "masks")]
    masks = [mask[:256, :256] for mask in masks if min(mask.shape) >= 256]
    ids, rows = 0, []
    for row in range(3):
        placed = []
        for mask in masks[3 * row : 3 * row + 3]:
            placed.append(np.where(mask > 0, mask.astype(np.int32) + ids, 0))
            ids += int(mask.max())
        rows.append(np.hstack(placed))
    truth = LabelMap(np.vstack(rows).astype(np.int32))
    image = Segments.from_label_map(truth.ids).label_map().astype(np.float32)
    method = StarOracle(channels=1, base=4, depth=1)
    method.context = 64  # rays of an object end where it leaves the tile
    whole = Predictor(method, PLAIN, "cpu", "float32")(image)
    tiled = Predictor(method, PLAIN, "cpu", "float32", tile=400)(image)
    assert len(whole) > 150
    # The official rules of drawing round coordinates that depend on the tile's origin.
    assert len(tiled) == len(whole)
    assert len(objects_of(tiled) & objects_of(whole)) >= 0.98 * len(whole)
    assert ((tiled.label_map() > 0) != (whole.label_map() > 0)).mean() < 1e-4


def test_tiled_pixels_of_a_semantic_method_are_the_untiled_ones() -> None:
    image = blob_field((233, 301), level=0.47)
    whole = Predictor(Bands(), PLAIN, "cpu", "float32")(image)
    tiled = Predictor(Bands(), PLAIN, "cpu", "float32", tile=64, overlap=16)(image)
    assert (whole.label_map() == -1).any() and len(whole) == 2
    np.testing.assert_array_equal(tiled.label_map(), whole.label_map())
    np.testing.assert_array_equal(tiled.category, whole.category)


def test_dense_outputs_of_tiles_are_those_of_the_image() -> None:
    image = blob_field((300, 410))
    whole, size = Predictor(Blobs(), PLAIN, "cpu", "float32").outputs(image)
    tiled, tiled_size = Predictor(Blobs(), PLAIN, "cpu", "float32", tile=96, overlap=32).outputs(image)
    assert size == tiled_size == (300, 410)
    assert whole["foreground"].shape == (1, 1, 304, 416)
    np.testing.assert_allclose(tiled["foreground"].numpy(), whole["foreground"].numpy(), atol=1e-6)


def test_objects_on_every_core_border_are_found_once() -> None:
    # Squares whose centres lie exactly on, and a hair beside, the borders between cores.
    tile, overlap = 64, 32
    method = Blobs(radius=0, stride=8)
    borders = [each.columns.core_stop for each in plan_tiles((40, 300), tile, overlap, 8)][:-1]
    for shift in range(-3, 4):
        image = np.zeros((40, 300), np.float32)
        for border in borders:
            image[10:21, border - 5 + shift : border + 5 + shift] = 1
        tiled = Predictor(method, PLAIN, "cpu", "float32", tile=tile, overlap=overlap)(image)
        assert sorted(tiled.areas()) == [110] * len(borders)


def test_objects_larger_than_the_overlap_are_told_and_not_lost() -> None:
    image = np.zeros((64, 400), np.float32)
    image[20:40, 30:370] = 1
    with pytest.warns(UserWarning, match="enlarge the tile"):
        tiled = Predictor(Blobs(radius=0), PLAIN, "cpu", "float32", tile=128, overlap=32)(image)
    np.testing.assert_array_equal(tiled.label_map() > 0, image > 0)


def test_memory_mapped_images_are_read_tile_by_tile() -> None:
    class Watched:
        """An array that records the largest piece asked for."""

        def __init__(self, pixels: np.ndarray) -> None:
            self.pixels, self.shape, self.dtype, self.largest = pixels, pixels.shape, pixels.dtype, 0

        def __getitem__(self, key):
            piece = self.pixels[key]
            if all(each.step in (None, 1) for each in key):
                self.largest = max(self.largest, piece.size)
            return piece

    image = (255 * blob_field((600, 700))).astype(np.uint8)
    watched = Watched(image)
    predictor = Predictor(Blobs(), PLAIN, "cpu", "float32", tile=128, overlap=64)
    assert objects_of(predictor(watched, limits=(0, 255))) == objects_of(predictor(image))
    assert 0 < watched.largest <= 128 * 128


@pytest.mark.parametrize("tile", [16, 17, 23, 24, 31])
def test_tiles_need_not_be_multiples_of_the_stride(tile: int) -> None:
    image = blob_field((70, 90))
    found = Predictor(Bands(), PLAIN, "cpu", "float32", tile=tile, overlap=6)(image)
    np.testing.assert_array_equal(found.label_map(), Predictor(Bands(), PLAIN, "cpu", "float32")(image).label_map())
    assert Predictor(Blobs(), PLAIN, "cpu", tile=tile)(image).size == image.shape


@pytest.mark.parametrize(("tile", "overlap", "message"), [(8, None, "tile must be"), (64, 40, "overlap must be")])
def test_senseless_tilings_are_refused(tile: int, overlap: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Predictor(Blobs(), PLAIN, "cpu", tile=tile, overlap=overlap)
