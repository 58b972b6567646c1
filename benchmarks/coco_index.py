"""What opening a COCO file of full size takes: time, memory at its peak and afterwards, and memory of two workers.

The file is made up: as many pictures, annotations and coordinates as `instances_train2017.json` has, in a temporary
folder of about half a gigabyte; all pictures are links to one. Each figure is of a process of its own.

    python -m benchmarks.coco_index [--share 1.0] [--peer]

`--share` makes a smaller file, `--peer` opens it with pycocotools' `COCO` as well (about 4 GB). Linux.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np

IMAGES, ANNOTATIONS = 118_000, 860_000
HEIGHT, WIDTH = 480, 640
POINTS = 15.1  # of a polygon, on average: 26 million coordinates in all
SHAPES = 20_000  # different polygons
READ = 500  # samples per worker
MIB = 2**20


def write_data(root: Path, share: float) -> Path:
    """A data set in COCO's layout with this share of the pictures and annotations; returns its JSON file."""
    rng = np.random.default_rng(0)
    images, annotations = round(IMAGES * share), round(ANNOTATIONS * share)
    folder, path = root / "train2017", root / "annotations" / "instances_train2017.json"
    folder.mkdir(parents=True)
    path.parent.mkdir()
    one = root / "one.jpg"
    cv2.imwrite(str(one), rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    shapes = [_shape(rng) for _ in range(SHAPES)]
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {"description": "made up"}, "images": [')
        for number in range(images):
            name = f"{number:012d}.jpg"
            (folder / name).symlink_to(one)
            more = {"license": 1, "coco_url": f"http://images.example/{name}", "date_captured": "2013-11-14 17:02:52"}
            entry = {**more, "file_name": name, "height": HEIGHT, "width": WIDTH, "id": number}
            file.write(", " * (number > 0) + json.dumps(entry))
        file.write('], "annotations": [')
        places = rng.integers(0, images, annotations).tolist()
        for number, place in enumerate(places):
            shape = shapes[number % SHAPES]
            entry_text = f'{{{shape}, "iscrowd": 0, "image_id": {place}, "category_id": {number % 80}, "id": {number}}}'
            file.write(", " * (number > 0) + entry_text)
        file.write('], "categories": ' + json.dumps([{"id": i, "name": f"class {i}"} for i in range(80)]) + "}")
    return path


def _shape(rng: np.random.Generator) -> str:
    points = 3 + rng.poisson(POINTS - 3)
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    radius = rng.uniform(5, 60) * rng.uniform(0.7, 1, points)
    center = rng.uniform([70, 70], [WIDTH - 70, HEIGHT - 70])
    ring = np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None] + center
    left, top = ring.min(0)
    right, bottom = ring.max(0)
    box = [round(float(v), 2) for v in (left, top, right - left, bottom - top)]
    flat = ring.ravel().round(2).tolist()
    return f'"segmentation": {json.dumps([flat])}, "area": {box[2] * box[3] / 2:.6f}, "bbox": {json.dumps(box)}'


def memory(process: int | str = "self") -> dict[str, float]:
    """MiB of a process: all that it maps (rss), its part of what is shared (pss), and what is its own alone (uss)."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text("ascii").splitlines()[1:]
    sizes = {name.strip(): int(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return {"rss": sizes["Rss"], "pss": sizes["Pss"], "uss": sizes["Private_Clean"] + sizes["Private_Dirty"]}


def open_kirie(root: Path) -> Any:
    """The data set as kirie opens it."""
    from kirie.data import open_dataset

    return open_dataset(root)


def open_peer(root: Path) -> Any:
    """The same JSON file in pycocotools."""
    from pycocotools.coco import COCO

    return COCO(str(root / "annotations" / "instances_train2017.json"))


def measure(opener: Callable[[Path], Any], root: Path, workers: int, out: Connection) -> None:
    """Sends seconds and MiB of opening in this process, and then of workers that it forks."""
    import kirie.data.coco  # noqa: F401  so that imports are not part of what is measured

    before, started = memory(), time.perf_counter()
    dataset = opener(root)
    row: dict[str, Any] = {"seconds": time.perf_counter() - started, "before": before["rss"], "after": memory()["rss"]}
    row["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(workers)]
    running = [context.Process(target=_read, args=(dataset, seed, pipe[1])) for seed, pipe in enumerate(pipes)]
    for process in running:
        process.start()
    row["read"] = [pipe[0].recv() for pipe in pipes]  # all have read before any is measured
    row["workers"] = [memory(int(process.pid or 0)) for process in running]
    for process, pipe in zip(running, pipes, strict=True):
        pipe[0].send(None)
        process.join()
    out.send(row)


def _read(dataset: Any, seed: int, pipe: Connection) -> None:
    cv2.setNumThreads(0)
    rng = np.random.default_rng(seed)
    started = time.perf_counter()
    objects = sum(len(dataset[int(i)].truth) for i in rng.integers(0, len(dataset), READ))
    pipe.send((READ / (time.perf_counter() - started), objects))
    pipe.recv()


def _in_child(opener: Callable[[Path], Any], root: Path, workers: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=measure, args=(opener, root, workers, there))
    process.start()
    there.close()
    row: dict[str, Any] = here.recv()
    process.join()
    return row


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--peer", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_data(Path(folder), given.share)
        length = os.path.getsize(path) / MIB
        print(f"{length:.0f} MiB of JSON\n")
        print("| opened by | seconds | MiB/s | before | peak | afterwards |\n|---|---|---|---|---|---|")
        rows = {"kirie": _in_child(open_kirie, Path(folder), 2)}
        if given.peer:
            rows["pycocotools"] = _in_child(open_peer, Path(folder), 0)
        for name, row in rows.items():
            mib = " | ".join(f"{row[key]:.0f} MiB" for key in ("before", "peak", "after"))
            print(f"| {name} | {row['seconds']:.1f} | {length / row['seconds']:.0f} | {mib} |")
        print()
        for number, (worker, (rate, objects)) in enumerate(
            zip(rows["kirie"]["workers"], rows["kirie"]["read"], strict=True), start=1
        ):
            sizes = ", ".join(f"{key} {value:.0f} MiB" for key, value in worker.items())
            print(f"worker {number}: {sizes}; {rate:.0f} samples a second ({objects} objects)")


if __name__ == "__main__":
    main()
