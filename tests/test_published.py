"""Models that others publish, by name: from a server on this machine, or from a file."""

from __future__ import annotations

import http.server
import json
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from everymask import weights
from everymask.cli import main
from everymask.errors import InputError
from everymask.formats.images import write_image
from everymask.model import Model


@pytest.fixture
def file(shared_data):
    pytest.importorskip("onnx")
    path = shared_data.parent / "weights" / "yolox_nano.onnx"
    if not path.exists():
        pytest.skip("the published weights are not in the shared folder")
    return path


@pytest.fixture
def served(file, monkeypatch, tmp_path):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(file.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/yolox_nano.onnx"
    monkeypatch.setitem(weights.PUBLISHED, "yolox_nano", replace(weights.PUBLISHED["yolox_nano"], url=url))
    monkeypatch.setenv("EVERYMASK_CACHE", str(tmp_path / "cache"))
    yield url
    server.shutdown()
    server.server_close()


def _photo(shared_data):
    from everymask.formats.images import read_image

    return read_image(sorted((shared_data / "coco" / "tiny160" / "val2017").glob("*.jpg"))[3])


def test_a_published_model_is_downloaded_and_finds_things(served, file, shared_data, tmp_path, capsys):
    photo = _photo(shared_data)
    downloaded, local = Model.load("yolox_nano"), Model.load("yolox_nano", file)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    found, same = downloaded.predict(photo), local.predict(photo)
    assert np.array_equal(found.boxes(), same.boxes())
    assert {each.id for each in local.categories} <= set(range(1, 91))
    write_image(tmp_path / "photo.png", photo)
    code = main(
        [
            "predict",
            str(tmp_path / "photo.png"),
            "--model",
            "yolox_nano",
            "--out",
            str(tmp_path / "out"),
            "--score",
            "0.2",
        ]
    )
    assert code == 0
    capsys.readouterr()
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    likely = found[found.score >= 0.2]
    assert len(written["annotations"]) == len(likely)
    assert all(each["score"] >= 0.2 for each in written["annotations"])
    assert len(written["categories"]) == 80
    assert (tmp_path / "out" / "overlays" / "photo.png").exists()


def test_weights_of_another_model_are_refused(file, tmp_path):
    with pytest.raises(InputError, match="has its own"):
        Model.load("nuclei", file)
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(InputError, match=r"broken\.onnx"):
        Model.load("yolox_nano", tmp_path / "broken.onnx")
    with pytest.raises(InputError, match="yolox_nano"):
        Model.load("yolox_nanu")
