"""The official StarDist program, trained for a given time; `stardist_training.py` runs it in an environment of its own.

Follows the official example: percentile normalisation, flips and intensity changes, best weights, tuned thresholds.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from csbdeep.utils import normalize
from PIL import Image
from stardist.models import Config2D, StarDist2D

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
PATCH = 256
RANDOM = np.random.default_rng()


def load(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    images, masks, names = [], [], []
    for path in sorted((folder / "images").glob("*.png")):
        image = np.asarray(Image.open(path))
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, -1)
        images.append(normalize(image[..., :3], 1, 99.8, axis=(0, 1, 2)).astype(np.float32))
        masks.append(np.asarray(Image.open(folder / "masks" / path.name)).astype(np.int32))
        names.append(path.stem)
    return images, masks, names


def augment(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for axis in (0, 1):
        if RANDOM.random() < 0.5:
            x, y = np.flip(x, axis), np.flip(y, axis)
    if RANDOM.random() < 0.5:
        x, y = x.swapaxes(0, 1), y.swapaxes(0, 1)
    x = x * RANDOM.uniform(0.6, 2) + RANDOM.uniform(-0.2, 0.2)
    return x + 0.02 * RANDOM.uniform(0, 1) * RANDOM.normal(0, 1, x.shape), y


class Clock(tf.keras.callbacks.Callback):
    """Stops the training when the time is up."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self.end = end

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if time.time() > self.end:
            self.model.stop_training = True


def main(data: Path, out: Path, seconds: float) -> None:
    started = time.time()
    images, masks, _ = load(data / "train")
    val_images, val_masks, names = load(data / "val")
    # The official program takes no image that is smaller than its patches.
    usable = [i for i in range(len(images)) if min(images[i].shape[:2]) >= PATCH]
    val_usable = [i for i in range(len(val_images)) if min(val_images[i].shape[:2]) >= PATCH][:40]
    config = Config2D(n_rays=32, grid=(2, 2), n_channel_in=3, train_tensorboard=False)
    model = StarDist2D(config, name="official", basedir=str(out))
    model.prepare_for_training()
    model.callbacks.append(Clock(started + seconds))
    history = model.train(
        [images[i] for i in usable],
        [masks[i] for i in usable],
        validation_data=([val_images[i] for i in val_usable], [val_masks[i] for i in val_usable]),
        augmenter=augment,
        epochs=100_000,
        steps_per_epoch=100,
    )
    model.keras_model.load_weights(str(out / "official" / "weights_best.h5"))
    trained = time.time() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    small = [i for i in range(len(val_images)) if val_images[i].size < 2e6]  # its tuning is slow on large images
    model.optimize_thresholds([val_images[i] for i in small], [val_masks[i] for i in small])
    (out / "predictions").mkdir(exist_ok=True)
    for name, image in zip(names, val_images, strict=True):
        labels, _ = model.predict_instances(image)
        Image.fromarray(labels.astype(np.uint16)).save(out / "predictions" / f"{name}.png")
    result = {
        "seconds": trained,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "epochs": len(history.history["loss"]),
        "thresholds": model.thresholds._asdict(),
    }
    (out / "official.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
