"""Images per second of the training loop and of extraction, beside the bare model and a usual loader.

    python benchmarks/train_throughput.py --threads 2                    # CPU: resnet_tiny at 64 x 32
    python benchmarks/train_throughput.py --device cuda --precision bf16 # GPU: resnet50 at 256 x 128
    python benchmarks/train_throughput.py --quick                        # does it run at all

Three ways of the same training step (encoder, classifier, label-smoothed identification and batch-hard triplet loss,
Adam):

a, bare: on one batch of random numbers that lie on the device, without this package's loop and checks;
b, ours: `training.loop.train` with what `pretrain` hands to it: decoded images, augmentation `reid`, its own step;
c, usual: torch's DataLoader whose workers open JPEGs with Pillow and change them one by one by torchvision (resize,
   flip, pad, crop, normalise, erase), with b's step; workers live on between repeats, and batches come pinned.

"Delivered" is without a model: batches of b and of c until they lie on the device. "Extraction" is the bare forward
pass on one batch that lies on the device, and `training.features.extract` on decoded images. Everything is measured
once in every repeat, in turn, after a repeat that does not count; ratios are medians of the ratios within repeats.
JPEGs are synthetic, of 128 x 64 pixels as those of Market-1501, and small enough to stay in the system's memory.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.pixels import draw
from uda_reid import pretraining
from uda_reid.models.encoder import BACKBONES, MEAN, STD, Embedder, EncoderSpec
from uda_reid.ops.losses import batch_hard_triplet, identification
from uda_reid.pretraining import Pretrain
from uda_reid.run import Run
from uda_reid.training.batches import Batches
from uda_reid.training.devices import environment, pick_device, use_threads
from uda_reid.training.features import BATCH, extract
from uda_reid.training.loop import Stateful, train
from uda_reid.types import Batch, Domain, Source, Split

FILE_SIZE = (128, 64)
INSTANCES = 4
"""Images of an identity in a batch, as `Pretrain` has it."""
BARE, OURS = "a  bare step", "b  our loop"
BARE_FORWARD, OUR_EXTRACT = "bare forward", "our extract"
DELIVERED = "our batches alone"


class Training(NamedTuple):
    """What `pretrain` hands to the training loop."""

    source: Source
    step: Callable[[Batch], Mapping[str, Tensor]]
    batches: Callable[[int], Batches]
    parts: Mapping[str, Stateful]
    run: Run

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return int(self.source.encoder.spec["height"]), int(self.source.encoder.spec["width"])

    def some(self, steps: int) -> Batches:
        """Return so many batches of the first epoch, which begins anew at its end."""
        batches = self.batches(0)
        batches.plan = list(islice(cycle(batches.plan), steps))
        return batches


def prepared(folder: Path, images: int, spec: EncoderSpec, batch: int, run: Run) -> Training:
    """Draw JPEGs, and return what `pretrain` would train on them; the images are decoded."""
    drawn = draw(folder, images, *FILE_SIZE)
    split = Split(drawn.paths, np.arange(images, dtype=np.int64) // (2 * INSTANCES), None)
    none = Split((), np.zeros(0, np.int64), None)
    with patch.object(pretraining, "train", return_value=[]) as kept:
        options = Pretrain(batch=batch, instances=INSTANCES, validation=0.0)
        source = pretraining.pretrain(Domain("drawn", folder, split, none, none), options, encoder=spec, run=run)
    step, batches = kept.call_args.args
    return Training(source, step, batches, kept.call_args.kwargs["parts"], run)


def bare(training: Training, batch: int, steps: int) -> Callable[[], None]:
    """Return the updates that nothing but torch and the two losses take part in."""
    model, classifier, optimizer = (training.parts[name] for name in ("encoder", "classifier", "optimizer"))
    assert isinstance(model, Embedder)
    assert isinstance(classifier, nn.Module)
    assert isinstance(optimizer, torch.optim.Optimizer)
    device = training.run.device
    images = torch.rand(batch, 3, *training.size, generator=torch.Generator().manual_seed(0)).to(device)
    labels = (torch.arange(batch) // INSTANCES).to(device)

    def work() -> None:
        model.train()
        classifier.train()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with training.run.autocast():
                pooled = model.pooled(images)
                logits = classifier(model.neck(pooled))
            loss = identification(logits.float(), labels, smoothing=0.1) + batch_hard_triplet(pooled.float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return work


class Files(Dataset[tuple[Tensor, int, int]]):
    """Images one by one, opened and changed as toolkits for re-identification usually do it."""

    def __init__(self, split: Split, height: int, width: int) -> None:
        self.paths, self.pids = split.paths, split.pids
        self.change = transforms.Compose(
            [
                transforms.Resize((height, width)),
                transforms.RandomHorizontalFlip(),
                transforms.Pad(max(2, round(height * 10 / 256))),
                transforms.RandomCrop((height, width)),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                transforms.RandomErasing(),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, int, int]:
        with Image.open(self.paths[row]) as image:
            return self.change(image.convert("RGB")), int(self.pids[row]), row


class Usual:
    """Batches of the usual loader on the device.

    Args:
        split: the files.
        training: whose rows and size they have.
        workers: processes that read.
        steps: how many batches.
    """

    def __init__(self, split: Split, training: Training, workers: int, steps: int) -> None:
        self.device = training.run.device
        plan = [rows.tolist() for rows in training.some(steps).plan]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # more workers than cores are asked for
            self.loader = DataLoader(
                Files(split, *training.size),
                batch_sampler=plan,
                num_workers=workers,
                pin_memory=torch.device(self.device).type == "cuda",
                persistent_workers=workers > 0,
            )

    def __iter__(self) -> Iterator[Batch]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # processes are forked beside torch's threads
            loaded = iter(self.loader)
        for images, labels, rows in loaded:
            yield Batch(images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True), rows)


class Work(NamedTuple):
    """Something to measure: how many images it takes, and its rate is to be how large a part of another's."""

    images: int
    act: Callable[[], object]
    base: str = ""
    bar: float = 0.0


def works(training: Training, split: Split, options: argparse.Namespace) -> dict[str, Work]:
    """Return everything that is measured, by what it is called."""
    batch, steps, run = options.batch, options.steps, training.run
    images, cuda = batch * steps, torch.device(run.device).type == "cuda"
    bar = 0.90 if cuda else 0.85
    usual = {workers: Usual(split, training, workers, steps) for workers in options.workers}

    def ours(batches: Batches | Usual) -> object:
        return train(training.step, lambda _: batches, epochs=1, parts=training.parts, name="pretrain", run=run)

    def delivered(batches: Batches | Usual) -> None:
        for _ in batches:
            pass

    found = {
        BARE: Work(images, bare(training, batch, steps)),
        OURS: Work(images, lambda: ours(training.some(steps)), BARE, bar),
    }
    for workers, loader in usual.items():
        found[f"c  usual loop, {workers} workers"] = Work(images, partial(ours, loader), BARE)
    found[DELIVERED] = Work(images, lambda: delivered(training.some(steps)))
    for workers, loader in usual.items():
        least = 3.0 if cuda and workers == 4 else 0.0
        name = f"usual loader alone, {workers} workers"
        found[name] = Work(images, partial(delivered, loader), DELIVERED, least)
    return found | extraction(training, steps, bar)


def extraction(training: Training, steps: int, bar: float) -> dict[str, Work]:
    """Return the two ways of embedding images."""
    model, run = training.source.encoder, training.run
    rows = torch.arange(steps * BATCH) % len(training.source.images)
    pictures = torch.rand(BATCH, 3, *training.size, generator=torch.Generator().manual_seed(0)).to(run.device)

    def forward() -> None:
        model.eval()
        with torch.inference_mode(), run.autocast():
            for _ in range(steps):
                model(pictures)

    def extracted() -> Tensor:
        return extract(model, training.source.images, rows=rows, run=run)

    return {BARE_FORWARD: Work(len(rows), forward), OUR_EXTRACT: Work(len(rows), extracted, BARE_FORWARD, bar)}


def settle(device: str) -> None:
    """Wait until a GPU has done everything."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def rate(work: Work, device: str) -> float:
    """Return images per second, with all that the device was given to do."""
    settle(device)
    start = time.perf_counter()
    work.act()
    settle(device)
    return work.images / (time.perf_counter() - start)


def ratio(name: str, works: Mapping[str, Work], rates: Mapping[str, list[float]]) -> float:
    """Return the median over repeats of a rate divided by its base; of our batches, by the usual loader's.

    >>> nothing = {"x": Work(1, print), "y": Work(1, print, "x"), DELIVERED: Work(1, print)}
    >>> nothing["usual"] = Work(1, print, DELIVERED, 3.0)
    >>> rates = {"x": [1.0, 2.0, 4.0], "y": [1.0, 1.0, 1.0], DELIVERED: [4.0], "usual": [1.0]}
    >>> ratio("y", nothing, rates), ratio("usual", nothing, rates)
    (0.5, 4.0)
    """
    base = works[name].base
    own, other = (rates[base], rates[name]) if base == DELIVERED else (rates[name], rates[base])
    return statistics.median(mine / theirs for mine, theirs in zip(own, other, strict=True))


def table(works: Mapping[str, Work], rates: Mapping[str, list[float]]) -> Table:
    """Return medians, spreads, ratios, and whether they are what they are to be."""
    made = Table(box=SIMPLE_HEAD)
    for column in ("", "images / s", "least to most", "ratio", "bar", ""):
        made.add_column(column, justify="left" if not column else "right")
    for name, work in works.items():
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        words = [name, f"{statistics.median(rates[name]):,.0f}", spread]
        if work.base:
            found = ratio(name, works, rates)
            words.append(f"{'ours / it' if work.base == DELIVERED else work.base.split()[0]} {found:.3f}")
        if work.bar:
            words += [f"{work.bar:.2f}", "holds" if found >= work.bar else "MISSED"]
        made.add_row(*words)
        if list(works)[-1] != name and not list(works.values())[list(works).index(name) + 1].base:
            made.add_section()
    return made


def arguments() -> argparse.ArgumentParser:
    """Return what the command line is read by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.add_argument("--backbone", choices=BACKBONES, help="default: resnet50 on cuda, resnet_tiny elsewhere")
    parser.add_argument("--batch", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="compile the encoder's blocks, in all ways alike")
    parser.add_argument("--threads", type=int, default=0, help="of torch (default: its own choice)")
    parser.add_argument("--steps", type=int, default=50, help="batches of every measurement (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=4_000, help="JPEGs to draw (default: %(default)s)")
    parser.add_argument("--workers", default="2,4,16", help="of the usual loader (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few of everything: the numbers mean nothing")
    return parser


def chosen(words: list[str]) -> argparse.Namespace:
    """Return what was asked for, filled in.

    >>> options = chosen(["--device", "cpu", "--quick"])
    >>> options.spec.backbone, options.spec.height, options.steps, options.workers
    ('resnet_tiny', 64, 2, [2])
    """
    options = arguments().parse_args(words)
    options.device = pick_device(options.device)
    backbone = options.backbone or ("resnet50" if options.device.startswith("cuda") else "resnet_tiny")
    if options.quick:
        backbone, options.batch, options.steps, options.repeat = "resnet_tiny", 16, 2, 1
        options.images, options.workers = 64, "2"
    height, width = (64, 32) if backbone == "resnet_tiny" else (256, 128)
    options.spec = EncoderSpec(backbone=backbone, height=height, width=width, weights="none")
    options.workers = [int(workers) for workers in options.workers.split(",")]
    return options


def measured(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Work], dict[str, list[float]]]:
    """Measure everything in turn, as often as asked for; JPEGs and decoded images lie in a folder meanwhile."""
    run = Run(device=options.device, precision=options.precision, compiled=options.compile)
    with patch.dict(os.environ, {"UDA_REID_CACHE": str(folder / "cache")}):
        training = prepared(folder, options.images, options.spec, options.batch, run)
        split = Split(tuple(sorted(folder.glob("*.jpg"))), training.source.pids.numpy(), None)
        planned = works(training, split, options)
        rates: dict[str, list[float]] = {name: [] for name in planned}
        for number in range(options.repeat + 1):
            print(f"repeat {number} of {options.repeat}" if number else "warming up", file=sys.stderr, flush=True)
            for name, work in planned.items():
                found = rate(work, options.device)
                if number:  # the first time warms up
                    rates[name].append(found)
    return planned, rates


def main(words: list[str] | None = None) -> None:
    """Measure and print a table."""
    words = sys.argv[1:] if words is None else words
    options = chosen(words)
    use_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        planned, rates = measured(options, Path(folder))
    output = Console(width=110, highlight=False)
    spec = options.spec
    output.print(f"python benchmarks/train_throughput.py {shlex.join(words)}".rstrip())
    output.print(
        f"{spec.backbone} at {spec.height} x {spec.width}, {options.precision}{', compiled' * options.compile}; "
        f"batches of {options.batch} ({BATCH} for extraction), {options.steps} a measurement, {options.repeat} repeats"
    )
    told = environment(options.device)
    output.print(", ".join(f"{name} {value}" for name, value in told.items()) + f", cores {os.cpu_count()}")
    output.print(table(planned, rates))


if __name__ == "__main__":
    main()
