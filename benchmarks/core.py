"""Time and peak memory of the core: ranking, re-ranking, Jaccard distances with DBSCAN, k-means.

    python benchmarks/core.py --size market                       # every operation, three times, medians
    python benchmarks/core.py --size msmt17 --operations rank     # one operation, once
    python benchmarks/core.py --size market --reference           # also the dense reference: 12 GB at this size
    python benchmarks/core.py --size 1m --operations cluster --backend faiss-ivf --effort 64
    python benchmarks/core.py --growth 10000,20000,50000,100000 --plot docs/growth.svg

Features are synthetic but have the structure of real ones: identity centres, a bias for every camera, log-normal noise
in a space of 96 dimensions, then projected; with junk and distractors in the gallery. Every operation runs in a process
of its own. Beside its time stands that of the bare matrix product it needs ("floor": Q x G for ranking; half of N x N
for neighbours; for k-means, 25 iterations of faiss) in the same process and run. Memory is the peak of the resident
set during the operation, above the inputs and in all; the libraries alone (torch built for CUDA takes 0.7 GB) are told
beside it. Compilation is warmed up before, and told on its own. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from uda_reid.ops.clustering import dbscan_graph, kmeans
from uda_reid.ops.jaccard import encode_features, jaccard, rerank
from uda_reid.ops.neighbours import Backend
from uda_reid.ops.neighbours import neighbours as find_neighbours
from uda_reid.ops.ranking import rank, rank_distances

LATENT = 96


class Size(NamedTuple):
    """How many images a data set has; 0 queries where only clustering is measured."""

    queries: int
    gallery: int
    train: int
    train_identities: int
    identities: int
    cameras: int
    dim: int
    clusters: int


SIZES = {
    "market": Size(3_368, 19_732, 12_936, 751, 750, 6, 2048, 750),
    "duke": Size(2_228, 17_661, 16_522, 702, 702, 8, 2048, 700),
    "msmt17": Size(11_659, 82_161, 32_621, 1_041, 3_060, 15, 2048, 1_000),
    "100k": Size(10_000, 90_000, 100_000, 5_000, 5_000, 20, 256, 5_000),
    "1m": Size(10_000, 990_000, 1_000_000, 50_000, 50_000, 50, 256, 5_000),
}
OPERATIONS = ("rank", "rerank", "neighbours", "cluster", "kmeans")


class People(NamedTuple):
    """Features and whom they show."""

    features: Tensor
    pids: Tensor
    cams: Tensor


def people(number: int, identities: int, cameras: int, dim: int, *, seed: int, others: bool) -> People:
    """Draw features of people; `others`: 14 % of the images are distractors and 19 % junk, as in Market-1501."""
    world, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(seed)
    projection = torch.randn(LATENT, dim, generator=world) / LATENT**0.5
    bias = 0.6 * torch.randn(cameras + 1, LATENT, generator=world)
    centres = torch.randn(identities + 1, LATENT, generator=world)
    pids = torch.randint(1, identities + 1, (number,), generator=own)
    if others:
        kind = torch.rand(number, generator=own)
        pids[kind < 0.14], pids[kind > 0.81] = 0, -1
    cams = torch.randint(1, cameras + 1, (number,), generator=own)
    features = torch.empty(number, dim)
    for rows in torch.split(torch.arange(number), 65_536):
        noise = torch.randn(len(rows), LATENT, generator=own)
        noise *= 1.1 * torch.exp(0.4 * torch.randn(len(rows), 1, generator=own))
        strangers = torch.randn(len(rows), LATENT, generator=own)
        persons = torch.where(pids[rows, None] > 0, centres[pids[rows].clamp_min(0)], strangers)
        features[rows] = (persons + bias[cams[rows]] + noise) @ projection
    return People(features, pids, cams)


class Search(NamedTuple):
    """Queries, a gallery, and their labels as `rank` takes them."""

    query: Tensor
    gallery: Tensor
    labels: dict[str, Any]


def search(size: Size) -> Search:
    """Draw queries and a gallery."""
    query = people(size.queries, size.identities, size.cameras, size.dim, seed=2, others=False)
    gallery = people(size.gallery, size.identities, size.cameras, size.dim, seed=3, others=True)
    labels = {"query_pids": query.pids, "query_cams": query.cams}
    return Search(
        query.features, gallery.features, {**labels, "gallery_pids": gallery.pids, "gallery_cams": gallery.cams}
    )


def product(left: Tensor, right: Tensor) -> float:
    """Return the seconds of the bare product of all rows, in strips of the best height measured."""
    strip = torch.empty(1024 * len(right))
    start = time.perf_counter()
    for rows in torch.split(left, 1024):
        torch.mm(rows, right.T, out=strip[: len(rows) * len(right)].view(len(rows), len(right)))
    return time.perf_counter() - start


def half_product(features: Tensor) -> float:
    """Return the seconds of half of the bare N x N product: strips above the diagonal, scaled to N * N / 2."""
    number, wide = len(features), 16_384
    strip = torch.empty(1024 * min(wide, number))
    done, start = 0, time.perf_counter()
    for first in range(0, number, 1024):
        rows = features[first : first + 1024]
        for begin in range(first, number, wide):
            columns = features[begin : begin + wide]
            torch.mm(rows, columns.T, out=strip[: len(rows) * len(columns)].view(len(rows), len(columns)))
            done += len(rows) * len(columns)
    return (time.perf_counter() - start) * number * number / 2 / done


class Result(NamedTuple):
    """One run: seconds, the floor's seconds, megabytes at the peak, in all and above the inputs, and what was found."""

    seconds: float
    floor: float
    peak: float
    above: float
    found: str


def resident(field: str) -> float:
    """Return a field of the process' memory in megabytes: `VmRSS` now, `VmHWM` at its peak."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1e3
    raise RuntimeError(f"/proc/self/status has no {field}")


def measured(work: Callable[[], str], floor: Callable[[], float]) -> Result:
    """Time the floor and then the work, and watch its memory."""
    bare = floor()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what generators have freed would hide what the work takes
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - start
    peak = resident("VmHWM")
    return Result(seconds, bare, peak, peak - before, found)


def operation(name: str, size: Size, backend: Backend, effort: int) -> tuple[Callable[[], str], Callable[[], float]]:
    """Return an operation on fresh data, and its floor."""
    if name in ("rank", "rerank"):
        query, gallery, labels = search(size)

        def ranked() -> str:
            found = (
                rank(query, gallery, **labels)
                if name == "rank"
                else rank_distances(rerank(query, gallery, k1=20, k2=6), **labels)
            )
            share = found.mean(found.average_precision)
            return f"mAP {100 * share:.2f}, rank-1 {100 * found.cmc((1,))[1]:.2f}, {found.near.sum()} near-ties"

        def products() -> float:
            once = product(query, gallery)
            return once if name == "rank" else once + half_product(torch.cat([query, gallery]))

        return ranked, products
    train = people(size.train, size.train_identities, size.cameras, size.dim, seed=4, others=False).features
    if name == "kmeans":
        return lambda: k_means(train, size.clusters), lambda: faiss_k_means(train, size.clusters)

    def clustered() -> str:
        found = find_neighbours(train, 30, backend=backend, effort=effort)
        if name == "neighbours":
            return f"{found.backend}, recall {found.recall:.4f}"
        graph = jaccard(encode_features(train, k1=30, k2=6, found=found), most=0.6)
        labels = dbscan_graph(graph, eps=0.6, min_samples=4)
        clusters = int(labels.max()) + 1
        told = f"{found.backend}, recall {found.recall:.4f}, " if found.recall < 1 else ""
        return f"{told}{clusters:,} clusters, {int((labels < 0).sum()):,} outliers"

    return clustered, lambda: half_product(train) if size.train <= 200_000 else math.nan


def k_means(features: Tensor, clusters: int) -> str:
    """Cluster to convergence."""
    found = kmeans(features, clusters, generator=torch.Generator().manual_seed(0))
    return f"inertia {found.inertia:.6g}, {found.iterations} iterations, converged {found.converged}"


def faiss_k_means(features: Tensor, clusters: int) -> float:
    """Return the seconds of faiss' 25 iterations, which are not told to stop early."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    machine = faiss.Kmeans(
        features.shape[1], clusters, niter=25, seed=1, min_points_per_centroid=1, max_points_per_centroid=len(features)
    )
    start = time.perf_counter()
    machine.train(features.numpy())
    seconds = time.perf_counter() - start
    inertia = kmeans_inertia(features, torch.from_numpy(machine.centroids))
    print(f"faiss: inertia {inertia:.6g} after 25 iterations", file=sys.stderr)
    return seconds


def kmeans_inertia(features: Tensor, centroids: Tensor) -> float:
    """Return the sum of squared distances to the nearest centroids."""
    total = 0.0
    for rows in torch.split(features, 1024):
        total += float(torch.cdist(rows, centroids).min(1).values.double().square().sum())
    return total


def warm_up(name: str, backend: Backend) -> float:
    """Run an operation on little data, and return its seconds: compilation, or reading what was compiled before."""
    start = time.perf_counter()
    operation(name, Size(50, 300, 300, 10, 10, 3, 32, 5), "tiles" if backend == "auto" else backend, 0)[0]()
    return time.perf_counter() - start


def worker(options: argparse.Namespace) -> None:
    """Measure one operation in this process and print the results as JSON lines."""
    torch.set_num_threads(options.threads)
    libraries = resident("VmRSS")
    size = SIZES[options.size]._replace(**({"train": options.train} if options.train else {}))
    compiling = warm_up(options.worker, options.backend)
    work, floor = operation(options.worker, size, options.backend, options.effort)
    for _ in range(options.repeat):
        told = {"compiling": compiling, "libraries": libraries}
        print(json.dumps({**measured(work, floor)._asdict(), **told}), flush=True)


def reference(options: argparse.Namespace) -> None:
    """Measure the dense reference of an operation in this process, once."""
    from benchmarks import reference as dense

    size = SIZES[options.size]
    if options.reference_worker == "cluster":
        train = people(size.train, size.train_identities, size.cameras, size.dim, seed=4, others=False).features.numpy()
        result = measured(lambda: f"{dense.cluster(train).max() + 1:,} clusters", lambda: math.nan)
    else:
        query, gallery, labels = search(size)
        names = ("query_pids", "gallery_pids", "query_cams", "gallery_cams")
        columns: Any = tuple(labels[name].numpy() for name in names)

        def work() -> str:
            if options.reference_worker == "rank":
                scores = dense.rank(query.numpy(), gallery.numpy(), columns)
            else:
                scores = dense.measure(dense.rerank(query.numpy(), gallery.numpy()), columns)
            return f"mAP {100 * scores[0]:.2f}, rank-1 {100 * scores[1]:.2f}"

        result = measured(work, lambda: math.nan)
    print(json.dumps({**result._asdict(), "compiling": 0.0, "libraries": math.nan}), flush=True)


def run(options: argparse.Namespace, *more: str) -> list[dict[str, Any]]:
    """Measure in a new process, and return its results."""
    command = [sys.executable, __file__, "--size", options.size, "--backend", options.backend]
    command += ["--effort", str(options.effort), "--threads", str(options.threads), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines()]


def told(name: str, size: str, results: list[dict[str, Any]]) -> str:
    """Return a line of the table: medians."""
    seconds, floor = (statistics.median(result[key] for result in results) for key in ("seconds", "floor"))
    ratio = statistics.median(result["seconds"] / result["floor"] for result in results)
    peak, above = (max(result[key] for result in results) for key in ("peak", "above"))
    return (
        f"{name:<20} {size:<8} {seconds:9.2f} s  floor {floor:8.2f} s  ratio {ratio:5.2f}  "
        f"peak {above / 1e3:5.2f} GB above the inputs, {peak / 1e3:5.2f} in all "
        f"({results[0]['libraries'] / 1e3:.2f} of it libraries)  {results[-1]['found']}"
        f"  (first call {results[0]['compiling']:.1f} s)"
    )


def growth(options: argparse.Namespace) -> None:
    """Measure clustering at several sizes of 256 dimensions, fit its growth, and draw it."""
    sizes = [int(size) for size in options.growth.split(",")]
    options.size = "100k"
    points = []
    for number in sizes:
        result = run(options, "--worker", "cluster", "--train", str(number), "--repeat", "1")[0]
        points.append((number, result["seconds"], result["above"]))
        print(f"N {number:>9,}  {result['seconds']:8.2f} s  {result['above'] / 1e3:.2f} GB", flush=True)
    for name, place in (("time", 1), ("memory", 2)):
        slope, _ = statistics.linear_regression(
            [math.log(point[0]) for point in points], [math.log(point[place]) for point in points]
        )
        print(f"{name} grows as N ** {slope:.2f}")
    if options.plot:
        options.plot.write_text(plot([(number, seconds) for number, seconds, _ in points]), encoding="utf-8")


def plot(points: list[tuple[int, float]]) -> str:
    """Return an SVG of seconds against rows, both logarithmic, with the lines of N and of N * N through the first."""
    width, height, edge = 560, 360, 56
    low, high = math.log10(points[0][0]), math.log10(points[-1][0])
    top = math.log10(points[0][1]) + 2 * (high - low)
    bottom = min(math.log10(seconds) for _, seconds in points) - 0.2

    def at(number: float, seconds: float) -> tuple[float, float]:
        x = edge + (math.log10(number) - low) / (high - low) * (width - 2 * edge)
        return x, height - edge - (math.log10(seconds) - bottom) / (top - bottom) * (height - 2 * edge)

    def line(values: list[tuple[float, float]], style: str) -> str:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*value) for value in values))
        return f'<polyline points="{path}" fill="none" {style}/>'

    first, last = points[0], points[-1]
    box = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {box}>']
    parts.append(f'<rect width="{width}" height="{height}" fill="#fff"/>')
    for power, name in ((1, "N"), (2, "N²")):
        end = (last[0], first[1] * (last[0] / first[0]) ** power)
        parts.append(line([first, end], 'stroke="#999" stroke-dasharray="4 4"'))
        x, y = at(*end)
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}" fill="#666">{name}</text>')
    parts.append(line([*points], 'stroke="#0b5fa5" stroke-width="2"'))
    for number, seconds in points:
        x, y = at(number, seconds)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#0b5fa5"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">{seconds:.3g} s</text>')
        parts.append(f'<text x="{x:.1f}" y="{height - edge + 24}" text-anchor="middle">{number:,}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 10}" text-anchor="middle">images (256 dimensions)</text>')
    parts.append(f'<text x="{edge}" y="24">Jaccard distances and DBSCAN, exact: seconds</text></svg>')
    return "\n".join(parts) + "\n"


def arguments() -> argparse.ArgumentParser:
    """Return what the command line is read by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="market")
    parser.add_argument("--operations", default=",".join(OPERATIONS))
    parser.add_argument("--repeat", type=int, default=0, help="default: 3 at market and duke, 1 above")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--backend", default="auto", help="of the search for neighbours")
    parser.add_argument("--effort", type=int, default=0, help="of an approximate search, see ops.neighbours")
    parser.add_argument("--reference", action="store_true", help="also the dense reference")
    parser.add_argument("--growth", help="numbers of rows to cluster, with commas between")
    parser.add_argument("--plot", type=Path, help="file for the plot of --growth")
    parser.add_argument("--worker", choices=OPERATIONS, help=argparse.SUPPRESS)
    parser.add_argument("--reference-worker", choices=("rank", "rerank", "cluster"), help=argparse.SUPPRESS)
    parser.add_argument("--train", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measure what was asked for and print a table."""
    options = arguments().parse_args()
    options.repeat = options.repeat or (3 if options.size in ("market", "duke") else 1)
    if options.worker:
        worker(options)
    elif options.reference_worker:
        reference(options)
    elif options.growth:
        growth(options)
    else:
        for name in options.operations.split(","):
            print(told(name, options.size, run(options, "--worker", name, "--repeat", str(options.repeat))), flush=True)
            if options.reference and options.size in ("market", "duke") and name in ("rank", "rerank", "cluster"):
                dense = run(options, "--reference-worker", name)[0]
                print(
                    f"  dense reference: {dense['seconds']:.2f} s, peak {dense['peak'] / 1e3:.2f} GB, {dense['found']}"
                )


if __name__ == "__main__":
    main()
