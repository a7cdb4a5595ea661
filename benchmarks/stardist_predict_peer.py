"""The official StarDist program as a server for `stardist_predict.py`, so that both stay warm and run in turns.

It runs in an environment of its own (``pip install stardist tensorflow-cpu``) and must not import everymask. Each line
on standard input is a request, a JSON object; each line on standard output the answer to one. Arrays travel in files.
Times are pairs of the clock's and the processor's seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from stardist.geometry import polygons_to_label
from stardist.models import Config2D, StarDist2D
from stardist.nms import non_maximum_suppression


class Server:
    """Answers requests with one official model; the method names are those of the requests."""

    def __init__(self) -> None:
        self.model: StarDist2D | None = None
        self._arrays: dict[str, Any] = {}

    def create(self, **config: Any) -> dict[str, Any]:
        """Makes a network with the given arguments of `Config2D`; lists its layers with weights in order."""
        self.model = StarDist2D(Config2D(**config), basedir=None)
        return {"layers": [layer.name for layer in self._layers()], "parameters": self.model.keras_model.count_params()}

    def open(self, folder: str, out: str) -> dict[str, Any]:
        """Loads a trained model; writes kernel and bias of its layers as ``LAYER/kernel`` and ``LAYER/bias``."""
        path = Path(folder)
        self.model = StarDist2D(None, name=path.name, basedir=str(path.parent))
        arrays = {}
        for layer in self._layers():
            arrays[f"{layer.name}/kernel"], arrays[f"{layer.name}/bias"] = layer.get_weights()
        np.savez(out, **arrays)
        probability, overlap = self.model.thresholds
        return {
            "layers": [layer.name for layer in self._layers()],
            "parameters": self.model.keras_model.count_params(),
            "thresholds": {"probability": float(probability), "overlap": float(overlap)},
        }

    def take(self, weights: str) -> dict[str, Any]:
        """Takes over weights, named as `open` writes them."""
        arrays = self._load(weights)
        for layer in self._layers():
            layer.set_weights([arrays[f"{layer.name}/kernel"], arrays[f"{layer.name}/bias"]])
        return {}

    def outputs(self, image: str, out: str) -> dict[str, Any]:
        """Writes the probabilities (h, w) and distances (h, w, R) of a normalised image (H, W, C)."""
        probability, distances = self.model.predict(self._load(image), show_tile_progress=False)
        np.savez(out, probability=probability, distances=distances)
        return {}

    def predict(self, image: str, probability: float, overlap: float, out: str | None = None) -> dict[str, Any]:
        """Times `predict_instances` on a normalised image; writes the label map if wanted."""
        pixels = self._load(image)
        start, busy = time.perf_counter(), time.process_time()
        labels, _ = self.model.predict_instances(
            pixels, prob_thresh=probability, nms_thresh=overlap, show_tile_progress=False
        )
        seconds = time.perf_counter() - start, time.process_time() - busy
        if out is not None:
            np.save(out, labels)
        return {"seconds": seconds}

    def network(self, image: str) -> dict[str, Any]:
        """Times the network alone."""
        batch = self._load(image)[np.newaxis]
        start, busy = time.perf_counter(), time.process_time()
        self.model.keras_model.predict(batch, verbose=0)
        return {"seconds": (time.perf_counter() - start, time.process_time() - busy)}

    def decode(
        self, outputs: str, shape: list[int], grid: int, probability: float, overlap: float, out: str | None = None
    ) -> dict[str, Any]:
        """Times suppression and rendering on given outputs; writes label map and kept points if wanted."""
        given = self._load(outputs)
        start, busy = time.perf_counter(), time.process_time()
        points, scores, distances = non_maximum_suppression(
            given["distances"], given["probability"], (grid, grid), nms_thresh=overlap, prob_thresh=probability
        )
        labels = polygons_to_label(distances, points, tuple(shape), prob=scores)
        seconds = time.perf_counter() - start, time.process_time() - busy
        if out is not None:
            np.savez(out, labels=labels, points=points)
        return {"seconds": seconds, "objects": len(points)}

    def _layers(self) -> list[Any]:
        return [layer for layer in self.model.keras_model.layers if layer.weights]

    def _load(self, path: str) -> Any:
        """An array, or the arrays of an archive by name; read once."""
        if path not in self._arrays:
            read = np.load(path)
            self._arrays[path] = read if isinstance(read, np.ndarray) else dict(read)
        return self._arrays[path]


def main() -> None:
    """Serves until standard input ends."""
    # TensorFlow and the official program print; only answers may reach the pipe.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(server, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
