"""Pictures larger than memory: time and peak memory for 20,000 x 20,000 and 20,000 x 40,000 pixels.

    python -m benchmarks.large FOLDER --semantic RUN --instance RUN

The pictures are those of a folder, set side by side until the large one is full, as a tiled TIFF; RUN is a model file
or a run. Each prediction is a process of its own, whose peak the system tells. `--side 5000` makes smaller pictures.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

from kirie.data.layouts import list_pictures
from kirie.reading.images import read_image

TILE = 256


def mosaic(folder: Path, path: Path, height: int, width: int) -> None:
    """Writes the pictures of a folder as one large TIFF, each repeated and mirrored where it ends."""
    pictures = [read_image(folder / name) for name in list_pictures(folder, deep=False)]
    block = 1024
    squares = [np.pad(p, [(0, max(0, block - p.shape[0])), (0, max(0, block - p.shape[1])), (0, 0)], "symmetric")[
        :block, :block] for p in pictures[:100]]  # fmt: skip
    across = -(-width // block)

    def tiles():
        for row in range(0, height, TILE):
            band = np.concatenate(
                [squares[(row // block * across + column) % len(squares)][row % block : row % block + TILE]
                 for column in range(across)], 1)[:, :width]  # fmt: skip
            for left in range(0, width, TILE):
                part = band[: height - row, left : left + TILE]
                yield np.pad(part, [(0, TILE - part.shape[0]), (0, TILE - part.shape[1]), (0, 0)])

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(tiles(), shape=(height, width, 3), dtype=np.uint8, tile=(TILE, TILE), compression="zlib",
                   photometric="rgb")  # fmt: skip


def predict(model: str, picture: str, out: str, task: str, save: str) -> None:
    """Predicts in this process, and prints how long it took and its peak memory."""
    from kirie.cli_results import load_model
    from kirie.prediction.predict import shown_predictor
    from kirie.prediction.predict_files import predict_files

    predictor = shown_predictor(load_model(Path(model), task=task), tile="auto")
    begun = time.perf_counter()
    (outcome,) = predict_files(predictor, [picture], out, kinds=save.split(","))
    taken = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = {"seconds": taken, "peak_mb": peak * 1024 / 1e6, "error": outcome.error, "tile": predictor.tiles.side}
    print(json.dumps(facts))


def main() -> None:
    """Makes the pictures, predicts them and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--semantic")
    parser.add_argument("--instance")
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        predict(*given.one)
        return
    work = Path(tempfile.mkdtemp(prefix="kirie-large-"))
    try:
        for height in (given.side, 2 * given.side):
            picture = work / f"{height}.tif"
            mosaic(given.folder, picture, height, given.side)
            size = picture.stat().st_size / 1e9
            print(f"{height:,} x {given.side:,} pixels, {size:.2f} GB as TIFF")
            for task, model, save in (
                ("semantic", given.semantic, "labels"),
                ("instance", given.instance, "coco,csv,geojson"),
            ):
                if model is None:
                    continue
                out = work / f"{height}-{task}"
                command = [sys.executable, "-m", "benchmarks.large", ".", "--one", model, str(picture), str(out), task,
                           save]  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                facts = json.loads(done.stdout.splitlines()[-1])
                found = ""
                if (out / "counts.csv").exists():
                    found = ", objects " + (out / "counts.csv").read_text().splitlines()[1].split(",")[1]
                speed = height * given.side / 1e6 / facts["seconds"]
                told = f"{facts['seconds']:.0f} s, {speed:.2f} megapixels a second, peak {facts['peak_mb']:.0f} MB"
                print(f"  {task}: {told}, tiles of {facts['tile']}{found}, error {facts['error']}")
            picture.unlink()
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
