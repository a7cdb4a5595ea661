"""Official StarDist against ours: trained at the same time, one core each, for the same wall time, on the same images.

The official program (PyPI ``stardist`` with ``tensorflow-cpu``) needs an environment of its own:

    python -m venv peer && peer/bin/pip install stardist tensorflow-cpu
    python benchmarks/stardist_training.py --data ../shared/data/dsb2018 --peer peer/bin/python --minutes 40 --out out

Both get RGB input, 32 rays, grid 2, U-Net depth 3 and base 32 (1.43 M parameters), optimise their thresholds on the
validation images, and are scored by the same metric on the same label images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

OFFICIAL = Path(__file__).with_name("stardist_training_peer.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and val")
    parser.add_argument(
        "--peer", type=Path, required=True, help="python of the environment with stardist and tensorflow"
    )
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40, help="ours: chosen to end within the minutes")
    parser.add_argument("--config", type=Path, help="ours: recipe file")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    peer = subprocess.Popen(
        ["taskset", "-c", "0", options.peer, OFFICIAL, options.data, options.out, str(60 * options.minutes)],
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        stdout=(options.out / "official.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    started = time.time()
    command = [
        "taskset",
        "-c",
        "1",
        sys.executable,
        "-m",
        "everymask",
        "train",
        "stardist",
        "--data",
        options.data / "train",
    ]
    command += [
        "--val",
        options.data / "val",
        "--out",
        options.out / "ours",
        "--epochs",
        str(options.epochs),
        "--quiet",
    ]
    command += ["--workers", "0"]
    if options.config:
        command += ["--config", options.config]
    subprocess.run(command, env=environment, check=True)
    print(f"ours: trained and tuned in {(time.time() - started) / 60:.1f} minutes")
    if peer.wait():
        sys.exit(f"the official program failed; see {options.out / 'official.log'}")
    print("official:", (options.out / "official.json").read_text())
    scores = {}
    for name, source in [
        ("ours", ["--model", options.out / "ours" / "model.safetensors"]),
        ("official", ["--predictions", options.out / "predictions"]),
    ]:
        command = [sys.executable, "-m", "everymask", "evaluate", "--data", options.data / "val", *source, "--json"]
        scores[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
