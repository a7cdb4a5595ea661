"""Volumes through the whole program: crops, training, tiles, files, and methods of images on volumes."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage
from volume_toys import CATEGORIES, GREY, Balls, balls, balls_data

from everymask.data.augment import Augmentation, Placement
from everymask.data.loader import Crops
from everymask.data.planes import in_planes
from everymask.data.sampling import Draw
from everymask.data.store import Store
from everymask.data.volumes import cut_volume, random_depth
from everymask.errors import InputError
from everymask.export.onnx import export_onnx
from everymask.formats import open_dataset
from everymask.formats.zarr_arrays import open_zarr, write_zarr_labels
from everymask.layers.unet import UNet
from everymask.methods.bottom_up.cellpose import Cellpose
from everymask.metrics.matching import MatchingMetric
from everymask.model import Model
from everymask.ops.plane_joining import join_planes
from everymask.ops.three_views import join_views
from everymask.predict.files import predict_files
from everymask.predict.magnification import MagnifiedImage, restored
from everymask.predict.predictor import Predictor
from everymask.predict.stitching import stitch
from everymask.predict.tiling import plan_tiles, plan_volume
from everymask.predict.volumes import joined, predict_volume
from everymask.report.overlay import draw_overlay
from everymask.report.preview import middle_plane
from everymask.types import Dataset, LabelMap, Segments

# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [0, 1, 2])
@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
def test_a_network_of_volumes_keeps_the_size_and_sees_as_far_as_it_says(flat, upsampling):
    torch.manual_seed(0)
    network = UNet(1, 2, 2, upsampling=upsampling, dimensions=3, flat=flat).double().eval()
    for each in network.parameters():
        each.data.abs_()  # so that no unit is dead
    assert (network.stride, network.depth_stride) == (4, 2 ** (2 - flat))
    volume = torch.rand(1, 1, 24, 56, 56, dtype=torch.float64, requires_grad=True)
    outputs = network(volume)
    assert outputs.shape == (1, 2, 24, 56, 56)
    outputs[0, :, 12, 28, 28].sum().backward()
    reached = volume.grad[0, 0].nonzero() - torch.tensor([12, 28, 28])
    assert reached.abs().amax(0)[0] <= network.depth_radius
    assert reached.abs().amax(0)[1:].max() <= network.radius


def test_planes_apart_are_not_mixed_by_a_network_that_is_flat_throughout():
    network = UNet(1, 2, 1, convolutions=1, dimensions=3, flat=1)
    assert (network.depth_stride, network.depth_radius) == (1, 1 * (2 * 1 + 1) + 1)


def test_wrong_dimensions_are_told():
    with pytest.raises(InputError, match="dimensions must be 2"):
        UNet(1, dimensions=4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="flat is for volumes"):
        UNet(1, flat=1)
    with pytest.raises(InputError, match="0 to the depth of 2"):
        UNet(1, depth=2, dimensions=3, flat=3)


# -- crops -------------------------------------------------------------------------------------------------------------


def _as_float(window):
    return np.moveaxis(window.astype(np.float32), -1, 0)


def test_crops_copy_the_voxels_and_mirror_beyond_the_border():
    rng = np.random.default_rng(0)
    image, ids = rng.integers(0, 255, (7, 20, 24, 2)), rng.integers(0, 9, (7, 20, 24))
    found, labels = cut_volume(Placement(), image, ids, np.array([0.5, 9.5, 23.5]), (6, 8), _as_float)
    padded = np.pad(image, [(2, 9), (0, 0), (0, 8), (0, 0)], mode="symmetric")
    # Centre .5 of 6 planes: from plane -2 on; centre 23.5 of 8 columns: from column 20 on.
    assert np.array_equal(found, np.moveaxis(padded[0:6, 6:14, 20:28], -1, 0))
    assert (labels[:2] == -1).all()
    assert (labels[:, :, 4:] == -1).all()
    assert np.array_equal(labels[2:, :, :4], ids[:4, 6:14, 20:])


def test_planes_are_interpolated_and_labels_taken_from_the_nearest():
    image = np.arange(9, dtype=np.float32).reshape(9, 1, 1, 1) * np.ones((1, 12, 12, 1), np.float32)
    ids = np.arange(1, 10).reshape(9, 1, 1) * np.ones((1, 12, 12), int)
    found, labels = cut_volume(Placement(scale=2.0), image, ids, np.array([4.0, 5.5, 5.5]), (5, 4), _as_float)
    assert np.allclose(found[0, :, 0, 0], [3, 3.5, 4, 4.5, 5])
    assert labels[:, 0, 0].tolist() == [4, 5, 5, 6, 6]


def test_planes_turn_alike_and_backwards():
    rng = np.random.default_rng(1)
    image, ids = rng.random((6, 16, 16, 1)).astype(np.float32), rng.integers(0, 5, (6, 16, 16))
    placement = Placement(flip=True, turns=1, backwards=True)
    found, labels = cut_volume(placement, image, ids, np.array([2.5, 7.5, 7.5]), (6, 16), _as_float)
    assert np.array_equal(found[0], np.rot90(image[::-1, ..., 0], 1, (1, 2))[..., ::-1])
    assert np.array_equal(labels, np.rot90(ids[::-1], 1, (1, 2))[..., ::-1])


def test_a_crop_of_a_volume_holds_its_target():
    rng = np.random.default_rng(2)
    for _ in range(200):
        scale, target = rng.uniform(0.7, 1.4), float(rng.integers(30))
        centre = random_depth(8, scale, 30, rng, target)
        assert abs(target - centre) <= 8 / scale / 2
        assert 8 / scale / 2 - 0.5 - 1e-9 <= centre <= 30 - 8 / scale / 2 - 0.5 + 1e-9


def test_crops_of_volumes_hold_objects_and_are_reproducible():
    store = Store(balls_data(0, 1), GREY, CATEGORIES, 10**8, dimensions=3)
    augmentation = Augmentation("dihedral", 20, (0.8, 1.2), 0.1, (0.7, 1.4), (0.9, 1.1), 0.02, 0.5, 0.2, 0.1)
    crops = Crops(store, Balls().targets, crop=24, planes=8, augmentation=augmentation, foreground=1.0)
    for position in range(12):
        image, segments = crops.cut(Draw(position % 2, position))
        assert image.shape == (1, 8, 24, 24)
        assert segments.size == (8, 24, 24)
        assert np.isfinite(image).all()
        again, same = crops.cut(Draw(position % 2, position))
        assert np.array_equal(image, again)
        assert np.array_equal(segments.label_map(), same.label_map())
    held = sum(len(crops.cut(Draw(0, position))[1]) > 0 for position in range(40))
    assert held >= 38  # a rotation may turn the target out of the crop
    plane, drawn = middle_plane(*crops.cut(Draw(0, 3)))
    assert plane.shape == (1, 24, 24)
    assert drawn.size == (24, 24)


def test_volumes_and_images_are_not_mixed_up():
    with pytest.raises(InputError, match="--dimensions 3"):
        Store(balls_data(0), GREY, CATEGORIES, 10**8)[0]
    with pytest.raises(InputError, match="leave --dimensions 3 out"):
        Store(in_planes(balls_data(0)), GREY, CATEGORIES, 10**8, dimensions=3)[0]


def test_visits_follow_the_number_of_voxels():
    store = Store(balls_data(0), GREY, CATEGORIES, 10**8, dimensions=3)
    assert store.visits("area", (10, 28, 32)) == [8]
    assert store.visits("side", (10, 28, 32)) == [2]


# -- tiles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 300, 40), (70, 90, 100), (200, 33, 260), (1, 16, 16)])
def test_tiles_cover_a_volume_once_and_are_small(size):
    strides, contexts = (2, 8, 8), (4, 12, 12)
    covered = np.zeros(size, int)
    for tile in plan_volume(size, 40_000, strides, contexts):
        covered[tile.window][tile.core] += 1
        sides = [span.stop - span.start for span in tile.spans]
        assert all(each % step == 0 for each, step in zip(sides, strides, strict=True))
        assert np.prod(sides) <= 64 * 32 * 32  # the smallest tile of 64 planes
    assert (covered == 1).all()


def test_objects_of_tiles_are_joined_to_those_of_the_volume():
    truth = balls(5, (60, 90, 110)).segments
    ids = truth.label_map()
    score = np.random.default_rng(0).random(len(truth)).round(3)
    parts = []
    for tile in plan_tiles(truth.size, (24, 48, 48), (12, 24, 24), (4, 8, 8)):
        window = ids[tile.window]
        present = np.unique(window[window > 0])
        table = np.zeros(ids.max() + 1, np.int32)
        table[present] = np.arange(1, len(present) + 1)
        parts.append(
            (tile, Segments(window.shape, [0] * len(present), LabelMap(table[window]), score=score[present - 1]))
        )
    found, cut = stitch(parts, truth.size, 1, semantic=False)
    assert cut == 0
    assert len(found) == len(truth)
    assert np.array_equal(found.label_map() > 0, ids > 0)
    for i, box in enumerate(found.boxes().astype(int)):
        x0, y0, z0, x1, y1, z1 = box
        under = ids[z0:z1, y0:y1, x0:x1][found.label_map()[z0:z1, y0:y1, x0:x1] == i + 1]
        assert (under == under[0]).all()
        assert found.score[i] == score[under[0] - 1]


def _random_network() -> Balls:
    torch.manual_seed(3)
    method = Balls(base=4)
    for each in method.modules():
        if isinstance(each, torch.nn.BatchNorm3d):
            each.running_mean.normal_(0, 0.1)
            each.running_var.uniform_(0.8, 1.2)
    return method.eval()


def test_tiled_outputs_of_a_volume_are_those_of_the_whole():
    method = _random_network()
    volume = np.random.default_rng(0).random((30, 150, 61)).astype(np.float32)
    whole = Predictor(method, GREY, precision="float32", tile=2048).outputs(volume)
    predictor = Predictor(method, GREY, precision="float32", tile=256)
    assert len(predictor._plan(volume)[1]) > 1
    tiled = predictor.outputs(volume)
    assert whole[1] == tiled[1] == (30, 150, 61)
    assert torch.allclose(whole[0]["foreground"], tiled[0]["foreground"], atol=1e-4)


def test_test_time_augmentation_of_volumes_turns_the_planes():
    method = _random_network()
    volume = np.random.default_rng(1).random((6, 24, 24)).astype(np.float32)
    outputs = Predictor(method, GREY, precision="float32", tta="dihedral").outputs(volume)[0]["foreground"]
    turned = Predictor(method, GREY, precision="float32", tta="dihedral").outputs(
        np.ascontiguousarray(np.rot90(volume, 1, (1, 2)))
    )[0]["foreground"]
    assert torch.allclose(torch.rot90(outputs, 1, (-2, -1)), turned, atol=1e-4)


def test_volumes_with_channels_padding_and_one_plane():
    method = Balls(channels=2, base=4).eval()
    preprocessing = replace(GREY, channels=2)
    for size in ((1, 5, 7), (3, 17, 9), (8, 16, 16)):
        image = np.random.default_rng(0).integers(0, 99, (*size, 2)).astype(np.uint16)
        assert Predictor(method, preprocessing)(image).size == size
    with pytest.raises(InputError, match="expected a volume"):
        Predictor(method, preprocessing)(np.zeros((4, 4)))
    with pytest.raises(InputError, match="not finite"):
        Predictor(method, preprocessing)(np.full((2, 8, 8, 2), np.nan))
    with pytest.raises(InputError, match="leave out overlap"):
        Predictor(method, preprocessing, overlap=8)


def test_a_magnified_volume_is_that_of_scipy_and_comes_back():
    ids = balls(3).segments.label_map()
    enlarged = MagnifiedImage(ids[..., None].astype(np.float32), (2.0, 1.5, 1.5))
    assert enlarged.shape == (40, 84, 96, 1)
    window = (slice(3, 30), slice(10, 50), slice(0, 96))
    everything = tuple(slice(None) for _ in range(3))
    assert np.array_equal(enlarged[window], enlarged[everything][window])
    expected = ndimage.zoom(ids.astype(float), (2, 1.5, 1.5), order=1, grid_mode=True, mode="nearest")
    assert np.allclose(enlarged[everything][..., 0], expected, atol=1e-4)
    nearest = ndimage.zoom(ids, (2, 1.5, 1.5), order=0, grid_mode=True, mode="nearest")
    back, lost = restored(Segments(nearest.shape, [0] * ids.max(), LabelMap(nearest.astype(np.int32))), ids.shape)
    assert lost == 0
    assert (back.label_map() == ids).mean() > 0.98


# -- the whole path ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.manual_seed(0)
    model = Model(Balls(), CATEGORIES)
    result = model.train(balls_data(0, 1), balls_data(2), out=tmp_path_factory.mktemp("volumes") / "run", quiet=True)
    return model, result


def test_a_method_of_volumes_learns(trained):
    model, result = trained
    assert result.validation["accuracy@0.5"] >= 0.9
    sample = balls(7, (18, 70, 90))
    found = model.predict(sample.image)
    metric = MatchingMetric(CATEGORIES)
    metric.update(sample.segments, found, "new")
    assert metric.compute()["accuracy@0.5"] >= 0.9
    assert model.evaluate(balls_data(2)).figures["accuracy@0.5"] >= 0.9
    assert len(model.predict(sample.image, tile=160)) == len(found)
    assert model.preview(balls_data(0, 1)).ndim == 3


def test_the_exported_network_takes_volumes_of_any_size(trained, tmp_path):
    model, _ = trained
    worst = export_onnx(model.method, tmp_path / "balls.onnx")
    assert max(worst.values()) < 1e-4


def test_files_of_volumes_get_one_number_an_object(trained, tmp_path):
    model, _ = trained
    sample = balls(8, (18, 56, 64))
    tifffile.imwrite(tmp_path / "a.tif", sample.image[..., 0], imagej=True, metadata={"axes": "ZYX"})
    outputs = ("labels", "ome-tiff", "zarr", "rois", "geojson", "csv", "coco", "overlay")
    written = predict_files(
        model.predict,
        [tmp_path / "a.tif"],
        tmp_path / "out",
        outputs=outputs,
        categories=model.categories,
        volumes=True,
        overlay=draw_overlay,
    )
    found = model.predict(sample.image)
    assert (written.images, written.segments) == (1, len(found))
    ids = tifffile.imread(tmp_path / "out" / "labels" / "a.tif")
    assert np.array_equal(ids, found.label_map())
    assert np.array_equal(np.asarray(open_zarr(tmp_path / "out" / "labels" / "a.zarr"))[..., 0], ids)
    assert np.array_equal(tifffile.imread(tmp_path / "out" / "labels" / "a.ome.tif"), ids)
    with (tmp_path / "out" / "measures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found)
    assert int(rows[0]["area"]) == (ids == 1).sum()
    assert float(rows[0]["centroid_z"]) == pytest.approx(np.argwhere(ids == 1)[:, 0].mean(), rel=1e-4)
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 18
    assert len(list((tmp_path / "out" / "geojson").iterdir())) == 18


def test_zarr_volumes_are_read_tile_by_tile_and_measured_in_pieces(trained, tmp_path):
    model, _ = trained
    image = balls(9, (18, 56, 64)).image
    write_zarr_labels(tmp_path / "a.zarr", list(image[..., 0]), stack=True)
    lazy = open_zarr(tmp_path / "a.zarr")
    assert np.array_equal(lazy[2:5, 3:9, 10:20], image[2:5, 3:9, 10:20])
    assert np.array_equal(
        model.predict(lazy, tile=160).label_map(), model.predict(image.astype(np.uint16), tile=160).label_map()
    )
    for name in ("a.zarr", "b.tif"):
        tifffile.imwrite(tmp_path / "b.tif", image[..., 0].astype(np.uint16))
        predict_files(model.predict, [tmp_path / name], tmp_path / f"out {name}", outputs=["csv"], volumes=True)
    texts = [(tmp_path / f"out {name}" / "measures.csv").read_text() for name in ("a.zarr", "b.tif")]
    assert texts[0].replace("a,0", "b,0") == texts[1]


def test_images_and_time_series_are_no_volumes(trained, tmp_path):
    model, _ = trained
    tifffile.imwrite(tmp_path / "flat.tif", np.zeros((40, 48), np.uint8))
    tifffile.imwrite(tmp_path / "time.tif", np.zeros((5, 40, 48), np.uint8), imagej=True, metadata={"axes": "TYX"})
    for name, words in (("flat", "single image"), ("time", "time series")):
        with pytest.raises(InputError, match=words):
            predict_files(model.predict, [tmp_path / f"{name}.tif"], tmp_path / "out", volumes=True)


def test_wrong_crops_are_told(tmp_path):
    model = Model(Balls(), CATEGORIES)
    with pytest.raises(InputError, match="planes must be a multiple of 2"):
        model.train(balls_data(0), balls_data(1), out=tmp_path / "run", planes=13)


# -- methods of images on volumes --------------------------------------------------------------------------------------


def _joined_by_force(planes, threshold):
    """stitch3D in words: each object goes on from the object before that it is the best partner of."""
    joined_planes, top = [planes[0].copy()], int(planes[0].max())
    for plane in planes[1:]:
        before, new = joined_planes[-1], np.zeros_like(plane)
        names = [each for each in np.unique(before) if each > 0]
        share = np.array(
            [
                [((plane == a) & (before == b)).sum() / ((plane == a) | (before == b)).sum() for b in names]
                for a in range(1, int(plane.max()) + 1)
            ]
        ).reshape(int(plane.max()), len(names))
        share[share < threshold] = 0
        if share.size:
            share[share < share.max(axis=0, keepdims=True)] = 0
        for a in range(1, int(plane.max()) + 1):
            row = share[a - 1] if share.size else np.zeros(0)
            if row.size and row.max() > 0:
                new[plane == a] = names[int(row.argmax())]
            else:
                top += 1
                new[plane == a] = top
        joined_planes.append(new)
    return np.stack(joined_planes)


@pytest.mark.parametrize("seed", range(8))
def test_planes_are_joined_as_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.random((9, 40, 50)), (1.2, 3, 3))
    planes = [ndimage.label(plane > np.quantile(noise, 0.6))[0].astype(np.int32) for plane in noise]
    volume, numbers = join_planes(planes, 0.3)
    expected = _joined_by_force(planes, 0.3)
    pairs = np.unique(np.stack([volume.ravel(), expected.ravel()]), axis=1)
    assert len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
    assert all(len(each) == plane.max() for each, plane in zip(numbers, planes, strict=True))


def test_joining_keeps_classes_apart_and_weighs_scores():
    disc = np.zeros((10, 10), np.int32)
    disc[2:8, 2:8] = 1
    small = np.where(disc & (np.indices(disc.shape)[0] < 5), 1, 0).astype(np.int32)
    planes = [
        Segments(disc.shape, [0], LabelMap(disc), score=[0.9]),
        Segments(disc.shape, [0], LabelMap(small), score=[0.3]),
        Segments(disc.shape, [1], LabelMap(disc), score=[0.5]),
    ]
    found = joined(planes)
    assert found.category.tolist() == [0, 1]
    assert found.score.tolist() == pytest.approx([(36 * 0.9 + 18 * 0.3) / 54, 0.5])
    empty = Segments((4, 4), [], LabelMap(np.zeros((4, 4), np.int32)), score=[])
    assert len(joined([empty, empty])) == 0
    with pytest.raises(InputError, match="above 0"):
        joined(planes, 0.0)


def test_methods_of_images_learn_from_planes_and_predict_volumes(tmp_path):
    planes = in_planes(balls_data(0, 1))
    assert len(planes) == 40
    assert planes[25].name == "balls 1/0005"
    assert np.array_equal(planes[25].image, balls(1).image[5])
    assert np.array_equal(planes[25].segments.label_map() > 0, balls(1).segments.label_map()[5] > 0)
    model = Model("border_unet", CATEGORIES, channels=1, base=8, depth=2)
    model.train(
        balls_data(0, 1), balls_data(2), out=tmp_path / "run", quiet=True, epochs=1, steps_per_epoch=40, crop=32,
        batch_size=8, learning_rate=5e-3, ema=0.9, workers=0, scale=(1.0, 1.0),
    )  # fmt: skip
    sample = balls(3)
    found = model.predict(sample.image, stacks="joined")
    metric = MatchingMetric(CATEGORIES)
    metric.update(sample.segments, found, "volume")
    assert metric.compute()["accuracy@0.5"] >= 0.7
    assert model.evaluate(balls_data(3)).figures["accuracy@0.5"] == metric.compute()["accuracy@0.5"]
    with pytest.raises(InputError, match="cannot join three views"):
        model.predict(sample.image, stacks="views")
    with pytest.raises(InputError, match="distance between planes"):
        model.predict(sample.image, stacks="joined", anisotropy=0)
    with pytest.raises(InputError, match="planez"):
        predict_volume(model.predictor(), sample.image, "planez")  # type: ignore[arg-type]


def test_three_views_of_a_volume_are_joined_by_the_predictor():
    torch.manual_seed(5)
    method = Cellpose(channels=1, base=4, depth=2, min_size=0).eval()
    method.thresholds = {"foreground": -9.0, "flow_error": 0.4}
    predictor = Predictor(method, GREY, precision="float32")
    volume = np.random.default_rng(0).random((9, 14, 18)).astype(np.float32)
    limits = np.array([0.0, 1.0], np.float32)
    found = predict_volume(predictor, volume, "views", limits=limits)
    views = []
    for axis in range(3):
        planes = [predictor.outputs(plane, limits)[0] for plane in np.moveaxis(volume, axis, 0)]
        views.append({name: torch.cat([each[name] for each in planes]) for name in planes[0]})
    joined_outputs = {name: each[..., :9, :14, :18] for name, each in join_views(views).items()}
    (expected,) = method.decode(joined_outputs, [(9, 14, 18)])
    assert len(found) > 0
    assert np.array_equal(found.label_map(), expected.label_map())
    stretched = predict_volume(predictor, volume, "views", limits=limits, anisotropy=2.0)
    assert stretched.size == (9, 14, 18)
    model = Model(method, CATEGORIES, preprocessing=GREY)
    assert model.predict(volume, stacks="views").size == (9, 14, 18)


def test_stacks_on_disk_are_a_data_set_of_volumes(tmp_path):
    for number in range(2):
        sample = balls(number)
        for kind, pixels in (
            ("images", sample.image[..., 0]),
            ("masks", sample.segments.label_map().astype(np.uint16)),
        ):
            (tmp_path / kind).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / kind / f"{number}.tif", pixels)
    data = open_dataset(tmp_path)
    assert isinstance(data, Dataset)
    assert data[0].segments.size == (20, 56, 64)
    assert len(in_planes(data)) == 40
