"""Runs every benchmark in one process each, and prints one table; `benchmarks/README.md` keeps a run of it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

# `skip` trains for some minutes; run it by itself.
BENCHMARKS = ("confusion", "panoptic", "augment", "training", "models", "paste", "mask_rcnn", "cleanup")


def main() -> None:
    """Prints the machine and each benchmark's rows."""
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n", flush=True)
    root = Path(__file__).resolve().parents[1]
    for name in BENCHMARKS:
        print(f"\n## {name}\n", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=root, check=True)


if __name__ == "__main__":
    main()
