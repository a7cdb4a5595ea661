"""The published YOLOX-nano finds as much through the package as its ONNX file does in onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from everymask.formats import open_dataset
from everymask.metrics import make_metric
from everymask.model import Model
from everymask.predict.predictor import Predictor
from everymask.types import Segments

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
cv2 = pytest.importorskip("cv2", reason="OpenCV, which resizes images in the official program, is not installed")

SIDE, SCORE, OVERLAP = 416, 0.001, 0.65  # as the official evaluation


def official(session: ort.InferenceSession, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
    """Boxes, scores and classes as in the official demo: letterbox, network, cells, class-wise suppression."""
    height, width = image.shape[:2]
    factor = min(SIDE / height, SIDE / width)
    small = cv2.resize(image, (int(width * factor), int(height * factor)), interpolation=cv2.INTER_LINEAR)
    padded = np.full((SIDE, SIDE, 3), 114, np.float32)
    padded[: small.shape[0], : small.shape[1]] = small
    raw = session.run(None, {"images": np.ascontiguousarray(padded.transpose(2, 0, 1)[None, ::-1])})[0][0]
    cells = []
    for stride in (8, 16, 32):
        y, x = np.indices((SIDE // stride, SIDE // stride)).reshape(2, -1)
        cells.append(np.stack([x, y, np.full_like(x, stride)], axis=1))
    grid = np.concatenate(cells).astype(np.float32)
    centre, side = (raw[:, :2] + grid[:, :2]) * grid[:, 2:], np.exp(raw[:, 2:4]) * grid[:, 2:]
    boxes = np.concatenate([centre - side / 2, centre + side / 2], axis=1) / factor
    kind = raw[:, 5:].argmax(axis=1)
    score = raw[:, 4] * raw[np.arange(len(raw)), kind + 5]
    likely = score >= SCORE
    boxes, score, kind = boxes[likely], score[likely], kind[likely]
    kept = batched_nms(*(torch.from_numpy(each) for each in (boxes, score, kind)), OVERLAP).numpy()
    return boxes[kept], score[kept], kind[kept]


def test_yolox_nano_is_as_precise_as_its_onnx_file(shared_data: Path) -> None:
    weights = shared_data.parent / "weights" / "yolox_nano.onnx"
    if not weights.exists():
        pytest.skip("the weights of YOLOX nano are not there")
    data = open_dataset(shared_data / "coco" / "tiny160")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(str(weights), options)
    model = Model.load("yolox_nano", weights=weights)
    model.method.thresholds["score"] = SCORE
    predictor = Predictor(model.method, model.preprocessing, "cpu", "float32")
    ids = np.array([category.id for category in data.categories])
    ours, theirs = (make_metric("coco_boxes", data.categories) for _ in range(2))
    for sample in data:
        size = sample.image.shape[:2]
        found = predictor(sample.image)
        ours.update(sample.segments, Segments(size, ids[found.category], score=found.score, box=found.boxes()))
        image = np.broadcast_to(sample.image, (*size, 3)) if sample.image.shape[-1] == 1 else sample.image
        boxes, score, kind = official(session, image)
        cut = np.clip(boxes, 0, [size[1], size[0], size[1], size[0]])
        theirs.update(sample.segments, Segments(size, ids[kind], score=score, box=cut))
    wanted = theirs.compute()["ap"]
    assert wanted > 0.28
    assert ours.compute()["ap"] == pytest.approx(wanted, abs=0.002)
