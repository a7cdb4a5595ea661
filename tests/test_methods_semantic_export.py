"""Semantic methods and the classifier as ONNX: the exporter itself compares the outputs, for two sizes of images."""

from __future__ import annotations

from pathlib import Path

import pytest
from semantic_toys import randomise, small

from everymask.export.onnx import export_onnx
from everymask.methods.classify.classifier import Classifier

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize(
    "name",
    ["unet on a backbone", "res_unet", "fcn", "fcn with skips", "deeplabv3", "deeplabv3plus", "pspnet"],
)
def test_exported_networks_agree(name: str, tmp_path: Path) -> None:
    method = small(name)
    randomise(method)
    differences = export_onnx(method, tmp_path / "network.onnx")
    assert set(differences) == {"classes"} and differences["classes"] < 1e-4


def test_an_exported_classifier_agrees(tmp_path: Path) -> None:
    method = Classifier(classes=3, backbone="test_resnet", size=64)
    randomise(method)
    assert export_onnx(method, tmp_path / "network.onnx")["classes"] < 1e-4
