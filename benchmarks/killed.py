"""Kills a matrix at random moments, starts it again, and compares everything with a matrix that nobody has killed.

    python benchmarks/killed.py                                     # one pair of scenes, all recipes, three moments
    python benchmarks/killed.py --recipes pul,daam --kills 20 --draw 7

`kill -9` hits the command and all its processes, wherever they are: reading, training, scoring, writing. Records,
without their times, and the bytes of all models must be equal in the end; the exit code is 1 where they are not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RECIPES = "source_only,adabn,pul,cluster,daam_v1,daam_v2,adda,guided_dropout"
FEWEST = 5.0
"""Seconds that a start has at least before it is killed: python alone needs some to begin."""


def arguments() -> argparse.ArgumentParser:
    """Return what the command line is read by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="plaza:campus", help="source:target (default: %(default)s)")
    parser.add_argument("--recipes", default=RECIPES, help="default: %(default)s")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--kills", type=int, default=3, help="how often it is killed (default: %(default)s)")
    parser.add_argument("--draw", type=int, default=0, help="seed of the moments")
    parser.add_argument("--out", type=Path, default=Path("runs/killed"), help="folder for both matrices; a new one")
    return parser


def start(options: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    """Start the matrix, in a process group of its own."""
    words = ["-m", "uda_reid", "matrix", "--pairs", options.pair, "--recipes", options.recipes, "--seeds", options.seed]
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, *words, "--out", str(out)], stderr=log, stdout=log, process_group=0)


def to_its_end(options: argparse.Namespace, out: Path) -> float:
    """Let the matrix end, and return how long it took."""
    began, running = time.monotonic(), start(options, out)
    if running.wait() != 0:
        raise SystemExit(f"the matrix in {out} failed; see {out}.log")
    return time.monotonic() - began


def kept(out: Path) -> dict[str, Any]:
    """Return everything that must repeat: records without their times and commands, and digests of all models."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("record.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found[str(path.relative_to(out))] = {**record, "seconds": None, "command": None}
    for path in sorted(out.rglob("*.safetensors")):
        found[str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def main() -> int:
    """Make both matrices and compare them."""
    options = arguments().parse_args()
    if options.kills < 1:
        raise SystemExit(f"--kills {options.kills}: nothing would be killed; give at least 1")
    if options.out.exists():
        raise SystemExit(f"--out {options.out}: is there already; remove it, or give another folder")
    options.out.mkdir(parents=True)
    whole, broken = options.out / "whole", options.out / "killed"
    took = to_its_end(options, whole)
    print(f"without a kill: {took:.0f} s", flush=True)
    draws, killed = random.Random(options.draw), 0
    moments = [max(FEWEST, draws.uniform(0, took / options.kills)) for _ in range(options.kills)]
    began = time.monotonic()
    for moment in moments:
        running = start(options, broken)
        try:
            running.wait(timeout=moment)
            print(f"it ended before second {moment:.1f}, after {killed} kills", flush=True)
            break
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            killed += 1
            done = len(list(broken.glob("*/record.json")))
            print(f"killed after {moment:.1f} s, {done} runs finished", flush=True)
    to_its_end(options, broken)
    print(f"with {killed} kills: {time.monotonic() - began:.0f} s", flush=True)
    expected, found = kept(whole), kept(broken)
    different = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    runs, models = (sum(name.endswith(end) for name in expected) for end in ("record.json", ".safetensors"))
    if killed < options.kills:
        different.append(f"(only {killed} of {options.kills} kills)")
    verdict = "all equal" if not different else f"DIFFERENT: {', '.join(different)}"
    print(f"{runs} records and {models} models: {verdict}")
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
