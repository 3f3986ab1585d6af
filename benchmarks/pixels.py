"""Images per second of decoding, of writing the file of decoded images, and of reading from it.

    python benchmarks/pixels.py                                  # 4,000 JPEGs of 256 x 128, medians of five
    python benchmarks/pixels.py --images 20000 --batches 500

JPEGs are synthetic: coarse random colours, enlarged, with a little noise, at quality 90. Batches have 64 random rows,
as in training. Reading is measured from what the system has in memory of the file, as after building it, and (Linux)
right after the system was told to forget it, as on another day. A process compares the checksum of every image that it
reads for the first time: "each for the first time" has that, and the line after it has not. "Finding" is what a second
process does in place of decoding: it reads all image files for their digests and opens the file that is there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from uda_reid.data.images import Photographs
from uda_reid.types import Split

BATCH = 64
IN_MEMORY = 1 << 62
"""A limit that no images reach."""


def draw(folder: Path, images: int, height: int, width: int) -> Split:
    """Write JPEGs into a folder."""
    draws, paths = np.random.default_rng(0), []
    for number in range(images):
        coarse = Image.fromarray(draws.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = fine + draws.integers(-6, 7, fine.shape, dtype=np.int16)
        paths.append(folder / f"{number:06d}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return Split(tuple(paths), np.zeros(images, np.int64), None)


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def batch_seconds(photographs: Photographs, size: tuple[int, int], batches: int) -> float:
    """Return the median seconds of reading a batch of random rows."""
    draws = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, len(photographs), (BATCH,), generator=draws) for _ in range(batches)]
    return statistics.median(seconds(lambda row=row: photographs.read(row, *size)) for row in rows)  # type: ignore[misc]


def first_seconds(photographs: Photographs, size: tuple[int, int]) -> float:
    """Return the median seconds of reading a batch of rows none of which was read before."""
    order = torch.randperm(len(photographs), generator=torch.Generator().manual_seed(0))
    rows = [batch for batch in torch.split(order, BATCH) if len(batch) == BATCH]
    return statistics.median(seconds(lambda row=row: photographs.read(row, *size)) for row in rows)  # type: ignore[misc]


def forget(file: Path) -> None:
    """Tell the system to drop what it has of a file in memory."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def told(name: str, rates: list[float]) -> None:
    """Print images per second: the median, and the least and the most."""
    print(f"{name:<44} {statistics.median(rates):>10,.0f}   ({min(rates):,.0f} to {max(rates):,.0f})", flush=True)


def arguments() -> argparse.ArgumentParser:
    """Return what the command line is read by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4_000, help="default: %(default)s")
    parser.add_argument("--height", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--batches", type=int, default=100, help="per repeat (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where the files lie meanwhile (default: the temporary folder)")
    return parser


def main() -> None:
    """Measure and print a table."""
    options = arguments().parse_args()
    size, count = (options.height, options.width), options.images
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        split = draw(folder, count, *size)
        jpegs = sum(path.stat().st_size for path in split.paths)
        print(
            f"{count:,} JPEGs, {jpegs / count / 1e3:.1f} kB each; decoded {count * 3 * size[0] * size[1] / 1e6:,.0f} MB"
        )
        print(f"{'':<44} images / s")
        rates: dict[str, list[float]] = {}
        for number in range(options.repeat):
            for what, rate in measured(split, folder / f"cache{number}", size, options.batches).items():
                rates.setdefault(what, []).append(rate)
        for what, several in rates.items():
            told(what, several)


def in_memory(split: Split, size: tuple[int, int], batches: int) -> dict[str, float]:
    """Return images per second of what is done without a file."""
    decoding = Photographs(split, cache_bytes=0, mapped_above=IN_MEMORY)
    kept = Photographs(split, cache_bytes=IN_MEMORY, mapped_above=IN_MEMORY)
    return {
        "decoding, batches of 64": BATCH / batch_seconds(decoding, size, max(1, batches // 10)),
        "decoding all into memory": len(split) / seconds(lambda: kept.preload(*size)),
        "reading from memory, batches of 64": BATCH / batch_seconds(kept, size, batches),
    }


def built(split: Split, size: tuple[int, int], batches: int) -> dict[str, float]:
    """Return images per second of building a file and of reading from it."""
    mapped = Photographs(split, mapped_above=0)
    return {
        "building the file (digests, decoding, fsync)": len(split) / seconds(lambda: mapped.preload(*size)),
        "reading from it, each for the first time": BATCH / first_seconds(mapped, size),
        "reading from the file, batches of 64": BATCH / batch_seconds(mapped, size, batches),
    }


def found(split: Split, size: tuple[int, int], batches: int) -> dict[str, float]:
    """Return images per second of finding a file that is there, and of reading from it for the first time."""
    mapped = Photographs(split, mapped_above=0)
    finding = {"finding the file (digests)": len(split) / seconds(lambda: mapped.preload(*size))}
    if not hasattr(os, "posix_fadvise"):
        return finding
    return {**finding, "the same, forgotten by the system": BATCH / batch_seconds(mapped, size, batches // 2)}


def measured(split: Split, cache: Path, size: tuple[int, int], batches: int) -> dict[str, float]:
    """Return images per second of everything, once; the cache folder is a new one."""
    os.environ["UDA_REID_CACHE"] = str(cache)
    rates = {**in_memory(split, size, batches), **built(split, size, batches)}
    [file] = (cache / "pixels").glob("*.pixels")
    if hasattr(os, "posix_fadvise"):
        forget(file)
    rates.update(found(split, size, batches))
    file.unlink()
    return rates


if __name__ == "__main__":
    main()
