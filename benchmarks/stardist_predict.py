"""Prediction by the official StarDist program and by ours: same weights, same image, in turns on the same processors.

The official program (PyPI ``stardist`` with ``tensorflow-cpu``) needs an environment of its own. It gets the weights of
one of our models; or ours gets those of a trained official model, such as `stardist_training.py` leaves: a folder with
``config.json`` and ``weights_best.h5``.

    python -m venv peer && peer/bin/pip install stardist tensorflow-cpu
    python benchmarks/stardist_predict.py --data ../shared/data/dsb2018/val --peer peer/bin/python --model FILE
    python benchmarks/stardist_predict.py --data ../shared/data/dsb2018/val --peer peer/bin/python --official FOLDER

Prints the largest differences of the raw outputs, whether both decode the same outputs to the same objects, and the
median times of `Model.predict` against `predict_instances`, of the networks, and of the decoders. The image is a mosaic
of 1024 x 1024 pixels of the parts of the images that hold most objects, normalised before the clocks start.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peer import Peer
from PIL import Image
from torch import Tensor

from everymask import Model
from everymask.methods.bottom_up.stardist import StarDist
from everymask.metrics.matching import MatchingMetric
from everymask.ops.stars import candidates, non_maximum_suppression
from everymask.predict.folding import fold_batch_normalisation
from everymask.predict.predictor import Predictor
from everymask.types import Categories, LabelMap, Segments

SIDE, PART = 1024, 256
NORMALISED = np.array([[0.0], [1.0]], np.float32)
"""Intensity limits of an image that is normalised already."""


def mosaic(folder: Path) -> tuple[NDArray[np.float32], int]:
    """A normalised image (1024, 1024) with about 1,000 nuclei, and their number.

    It is made of the 12 parts of fluorescence images with most objects, and the first 4 of them again, mirrored. Each
    part is normalised for itself, since the images differ in brightness a hundredfold.
    """
    parts = []
    for path in sorted((folder / "images").glob("*.png")):
        image = np.asarray(Image.open(path))
        labels = np.asarray(Image.open(folder / "masks" / path.name))
        # Fluorescence: one channel, nuclei brighter than what lies between them.
        if image.ndim != 2 or image[labels > 0].mean() < image[labels == 0].mean():
            continue
        for top in range(0, image.shape[0] - PART + 1, PART):
            for left in range(0, image.shape[1] - PART + 1, PART):
                window = slice(top, top + PART), slice(left, left + PART)
                parts.append((len(np.unique(labels[window])) - 1, path.name, top, left, image[window]))
    parts.sort(key=lambda part: part[:4], reverse=True)
    across = SIDE // PART
    best = parts[: across * (across - 1)]
    chosen = best + [(*part[:-1], part[-1][:, ::-1]) for part in best[:across]]
    whole = np.zeros((SIDE, SIDE), np.float32)
    for i, (*_, pixels) in enumerate(chosen):
        low, high = np.percentile(pixels, [1, 99.8])
        row, column = divmod(i, across)
        whole[row * PART : (row + 1) * PART, column * PART : (column + 1) * PART] = (pixels - low) / (high - low)
    return whole, sum(part[0] for part in chosen)


def counterparts(layers: list[str], depth: int) -> dict[str, str]:
    """Our name -> Keras name of each convolution.

    Args:
        layers: Names of the Keras layers with weights, in the order of the network.
        depth: Poolings of the U-Net.
    """
    # Two convolutions and a pooling for each halving of the grid; Keras numbers them through.
    stem = [name for name in layers if name.startswith("conv2d")]
    names = {f"stem.{3 * (i // 2) + i % 2}.0": name for i, name in enumerate(stem)}
    for level in range(depth):
        names |= {f"body.down.{level}.{i}.0": f"down_level_{level}_no_{i}" for i in (0, 1)}
        names |= {f"body.up.{level}.{i}.0": f"up_level_{level}_no_{2 * i}" for i in (0, 1)}
    names |= {"body.bottom.0.0": "middle_0", "body.bottom.1.0": "middle_2", "features.0": "features"}
    names |= {"probability": "prob", "distances": "dist"}
    if set(names.values()) != set(layers):
        raise SystemExit(f"layers without a counterpart: {sorted(set(names.values()) ^ set(layers))}")
    return names


def with_official_weights(peer: Peer, official: Path, folder: Path) -> tuple[Model, int]:
    """Our network with the weights of a trained official model, and the number of parameters of the latter."""
    opened = peer.ask("open", folder=official, out=folder / "weights.npz")
    config = json.loads((official / "config.json").read_text())
    method = StarDist(
        channels=config["n_channel_in"],
        rays=config["n_rays"],
        grid=config["grid"][0],
        base=config["unet_n_filter_base"],
        depth=config["unet_n_depth"],
        features=config["net_conv_after_unet"],
        norm="none",
    )
    state = {}
    with np.load(folder / "weights.npz") as weights:
        for ours, name in counterparts(opened["layers"], method.body.depth).items():
            # Keras: (height, width, inputs, outputs).
            state[f"{ours}.weight"] = torch.from_numpy(weights[f"{name}/kernel"].transpose(3, 2, 0, 1).copy())
            state[f"{ours}.bias"] = torch.from_numpy(weights[f"{name}/bias"])
    method.load_state_dict(state)
    method.thresholds = opened["thresholds"]
    return Model(method, ["nucleus"]), opened["parameters"]


def with_our_weights(peer: Peer, name: str, folder: Path) -> tuple[Model, int]:
    """One of our models, whose weights the official program takes over, and the number of parameters of the latter."""
    model = Model.load(name)
    method, config = model.method, model.method.config
    if not isinstance(method, StarDist) or method.classes > 1:
        raise SystemExit(f"{name} is no StarDist model of one category")
    created = peer.ask(
        "create",
        n_channel_in=method.channels,
        n_rays=method.rays,
        grid=[method.grid] * 2,
        unet_n_filter_base=config["base"],
        unet_n_depth=config["depth"],
        net_conv_after_unet=config["features"],
    )
    # The official network has no normalisation; in evaluation mode it is a part of the convolution before it.
    network = fold_batch_normalisation(copy.deepcopy(method).eval())
    weights = {}
    for ours, layer in counterparts(created["layers"], config["depth"]).items():
        convolution = network.get_submodule(ours)
        weights[f"{layer}/kernel"] = convolution.weight.detach().numpy().transpose(2, 3, 1, 0)
        weights[f"{layer}/bias"] = convolution.bias.detach().numpy()
    np.savez(folder / "weights.npz", **weights)
    peer.ask("take", weights=folder / "weights.npz")
    return model, created["parameters"]


def compare_outputs(model: Model, peer: Peer, image: NDArray[np.float32], folder: Path) -> None:
    """Prints the largest differences between the raw outputs of both networks in float32."""
    path, answer = folder / f"image_{image.shape[0]}x{image.shape[1]}.npy", folder / "raw.npz"
    np.save(path, image)
    peer.ask("outputs", image=path, out=answer)
    with np.load(answer) as official:
        expected = {name: official[name] for name in official.files}
    predictor = Predictor(model.method, model.preprocessing, device="cpu", precision="float32")
    outputs, (height, width) = predictor.outputs(image, NORMALISED)
    ours = as_official(outputs, (height, width), model.method.grid)
    for name in ("probability", "distances"):
        difference = np.abs(np.maximum(ours[name], 1e-3 if name == "distances" else 0) - expected[name])
        print(
            f"raw {name:<12} of {height} x {width}: largest difference {difference.max():.1e}"
            f", at the border {max(difference[[0, -1]].max(), difference[:, [0, -1]].max()):.1e}"
            f" (values up to {np.abs(expected[name]).max():.3g})"
        )


def as_official(outputs: Mapping[str, Tensor], size: tuple[int, int], grid: int) -> dict[str, NDArray[np.float32]]:
    """Probabilities (h, w) and distances (h, w, R) of our outputs, without the padding."""
    rows, columns = -(-size[0] // grid), -(-size[1] // grid)
    return {
        "probability": outputs["probability"][0, 0, :rows, :columns].sigmoid().numpy(),
        "distances": outputs["distances"][0, :, :rows, :columns].permute(1, 2, 0).contiguous().numpy(),
    }


def same_objects(first: NDArray[np.integer], second: NDArray[np.integer]) -> bool:
    """Whether two label maps divide the pixels in the same way, whatever the numbers."""
    pairs = np.unique(np.stack([first.ravel(), second.ravel()]), axis=1)
    background = (pairs == 0).any(axis=0)
    bijective = pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
    return bijective and bool((pairs[:, background] == 0).all())


def matched_share(first: NDArray[np.integer], second: NDArray[np.integer], threshold: float) -> float:
    """Accuracy TP / (TP + FP + FN) of the objects of one label map against the other's."""

    def segments(labels: NDArray[np.integer]) -> Segments:
        _, ids = np.unique(labels, return_inverse=True)
        ids = ids.reshape(labels.shape).astype(np.int32)
        return Segments(labels.shape, np.ones(ids.max(), int), LabelMap(ids))

    metric = MatchingMetric(Categories(["object"]), (threshold,))
    metric.update(segments(first), segments(second))
    return metric.compute()[f"accuracy@{threshold}"]


def clocked(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds and processor seconds of one run."""
    start, busy = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - busy


def compare_times(
    what: str, ours: Callable[[], object], peer: Peer, request: Mapping[str, Any], repeat: int, bar: str = ""
) -> None:
    """Prints medians of runs that alternate, each first in half of the rounds; two rounds more are for warming up."""
    runs = (lambda: clocked(ours), lambda: tuple(peer.ask(**request)["seconds"]))
    times: tuple[list[tuple[float, ...]], ...] = ([], [])
    for i in range(repeat + 2):
        for which in (0, 1) if i % 2 else (1, 0):
            seconds = runs[which]()
            if i >= 2:
                times[which].append(seconds)
    (wall, busy), (official_wall, official_busy) = np.median(times, axis=1)
    print(
        f"{what:<17} ours {1e3 * wall:7.1f} ms   official {1e3 * official_wall:7.1f} ms   "
        f"ratio {official_wall / wall:4.1f}   of processor time {official_busy / busy:4.1f}   {bar}"
    )


def main() -> None:
    """Compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images and masks")
    parser.add_argument(
        "--peer", type=Path, required=True, help="python of the environment with stardist and tensorflow"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="file of one of our StarDist models")
    source.add_argument("--official", type=Path, help="folder of a trained official model")
    parser.add_argument("--repeat", type=int, default=15, help="timed rounds")
    options = parser.parse_args()

    peer = Peer(options.peer, "stardist_predict_peer.py")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            compare(peer, options, folder)
        finally:
            peer.close()


def compare(peer: Peer, options: argparse.Namespace, folder: Path) -> None:
    """All comparisons; files for the peer go to `folder`."""
    if options.official:
        model, parameters = with_official_weights(peer, options.official, folder)
    else:
        model, parameters = with_our_weights(peer, options.model, folder)
    method, thresholds = model.method, model.method.thresholds
    folded = fold_batch_normalisation(copy.deepcopy(method).eval())
    print(f"parameters: ours {sum(each.numel() for each in folded.parameters()):,}, official {parameters:,}")

    grey, true = mosaic(options.data)
    image = np.repeat(grey[..., None], method.channels, axis=2)
    print(f"image {image.shape}: {true} true objects")
    compare_outputs(model, peer, image, folder)
    compare_outputs(model, peer, image[100:617, 300:689], folder)

    # Decoding of the same outputs. In bfloat16 many scores are equal, and the official program sorts those at random.
    exact = Predictor(method, model.preprocessing, device="cpu", precision="float32")
    outputs, size = exact.outputs(image, NORMALISED)
    shared = as_official(outputs, size, method.grid)
    np.savez(folder / "shared.npz", **shared)
    request = {"outputs": folder / "shared.npz", "shape": size, "grid": method.grid, **thresholds}
    found = peer.ask("decode", **request, out=folder / "decoded.npz")
    decoded = method.decode(outputs, [size])[0]
    points, scores, lengths = candidates(**shared, threshold=thresholds["probability"], grid=method.grid)
    kept = points[non_maximum_suppression(points, scores, lengths, thresholds["overlap"])]
    with np.load(folder / "decoded.npz") as official:
        same_points = set(map(tuple, kept.astype(int).tolist())) == set(map(tuple, official["points"].tolist()))
        same_pixels = same_objects(decoded.label_map(), official["labels"])
    print(f"same outputs, {len(points)} candidates: ours keeps {len(kept)}, the official program {found['objects']}")
    print(f"  same set kept: {same_points}; same label map: {same_pixels}")

    # From image to objects, with the numbers that each program takes by default.
    name = folder / f"image_{SIDE}x{SIDE}.npy"
    peer.ask("predict", image=name, **thresholds, out=folder / "labels.npy")
    official_labels = np.load(folder / "labels.npy")
    predicted = model.predict(image, limits=NORMALISED, device="cpu").label_map()
    shares = ", ".join(f"{matched_share(official_labels, predicted, t):.4f} at IoU {t}" for t in (0.5, 0.9))
    print(
        f"end to end, ours in {'bfloat16' if model.predictor(device='cpu').bfloat16 else 'float32'}: accuracy {shares}"
    )

    def predict() -> Segments:
        return model.predict(image, limits=NORMALISED, device="cpu")

    predicting = {"do": "predict", "image": name, **thresholds}
    compare_times("image to objects", predict, peer, predicting, options.repeat, "(bar: 2)")
    predictor, network = model.predictor(device="cpu"), {"do": "network", "image": name}
    compare_times("network", lambda: predictor.outputs(image, NORMALISED), peer, network, options.repeat)
    decoding = {"do": "decode", **request}
    compare_times("decoding", lambda: method.decode(outputs, [size]), peer, decoding, options.repeat, "(bar: 10)")


if __name__ == "__main__":
    main()
