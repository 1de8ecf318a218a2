"""Peak memory of streaming a folder of many small images: for a process, and for its workers.

python tests/data/streaming_memory.py FOLDER WORKERS
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

from image_files import picture
from PIL import Image

CLASSES = 10
_VARIANTS = 50


def write_many(root: Path, n: int) -> Path:
    """A folder of ``n`` files in ten classes; they share the content of a few (hard links)."""
    models = root / "models"
    models.mkdir(parents=True)
    for k in range(_VARIANTS):
        Image.fromarray(picture(k, 8)).save(models / f"{k}.png")
    for label in range(CLASSES):
        (root / "data" / f"class-{label}").mkdir(parents=True)
    for i in range(n):
        goal = root / "data" / f"class-{i % CLASSES}" / f"{i:08d}.png"
        # A file system allows so many links to one file, so a copy begins anew now and then.
        source = models / f"{i % _VARIANTS}.png"
        if i // _VARIANTS % 500 == 499:
            content = source.read_bytes()
            source.unlink()
            source.write_bytes(content)
        os.link(source, goal)
    return root / "data"


def peak(of: int = resource.RUSAGE_SELF) -> float:
    """Peak resident memory in MiB."""
    return resource.getrusage(of).ru_maxrss / 1024


def stream(folder: Path, workers: int) -> dict[str, float]:
    """Open a folder and pass over its training images once, in a random order with crops."""
    import torch

    from robustkd.data import Reading, load_folder

    # What the machinery itself takes is there before and after.
    tiny = load_folder(folder.parent / "tiny", Reading(streaming=True, workers=workers))
    one_pass(tiny, torch.Generator())
    before = peak()
    started = time.perf_counter()
    data = load_folder(folder, Reading(streaming=True, workers=workers))
    opened = time.perf_counter() - started
    indexed = peak()
    seen = one_pass(data, torch.Generator())
    total = sum(data.size(split) for split in ("train", "validation", "test"))
    return {
        "files": total,
        "seen": seen,
        "before_mib": round(before, 1),
        "indexed_mib": round(indexed, 1),
        "peak_mib": round(peak(), 1),
        "worker_peak_mib": round(peak(resource.RUSAGE_CHILDREN), 1),
        "open_seconds": round(opened, 2),
        "seconds": round(time.perf_counter() - started, 1),
    }


def one_pass(data, generator) -> int:
    """Images met in one pass over the training split."""
    batches = data.batches("train", batch_size=64, shuffle=generator, augment=generator)
    return sum(len(batch.labels) for batch in batches)


if __name__ == "__main__":
    print(json.dumps(stream(Path(sys.argv[1]), int(sys.argv[2]))))
