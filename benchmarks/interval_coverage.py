"""How often the matrix's intervals hold the true gain, and how often they call a method harmful that is not.

    python benchmarks/interval_coverage.py

Studies are drawn in which the true gain is 0: every person gains or loses by chance, every query of that person too,
and every seed. Of each it is seen whether the interval by person and seed, and that by query and seed, holds 0, and
whether all of the first is below it. A 95 % interval should hold it 95 times in 100, and be below it 2.5 times.
"""

from __future__ import annotations

import argparse

import numpy as np

from uda_reid.ops.bootstrap import estimate

PEOPLE_SPREAD, QUERY_SPREAD = 0.06, 0.10
STUDIES = ((60, 3, 0.0), (60, 3, 0.01), (60, 3, 0.02), (60, 2, 0.02), (60, 5, 0.02), (10, 3, 0.0))
"""People, seeds, and the standard deviation of seeds."""


def main() -> None:
    """Draw the studies and print a line for every number of people and seeds, and every spread of seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    print("people  seeds  spread of seeds  holds 0 (by person)  holds 0 (by query)  all below 0")
    for people, seeds, spread in STUDIES:
        held, by_query, below = 0, 0, 0
        for study in range(options.studies):
            draws = np.random.default_rng([people, seeds, round(1000 * spread), study])
            persons = np.repeat(np.arange(people), 2)
            of_person = draws.normal(0, PEOPLE_SPREAD, people)[persons]
            of_seed = draws.normal(0, spread, (seeds, 1))
            gains = of_person + of_seed + draws.normal(0, QUERY_SPREAD, (seeds, len(persons)))
            found = estimate(gains, persons, resamples=options.resamples, seed=study)
            held += found.by_identity.low <= 0 <= found.by_identity.high
            by_query += found.by_query.low <= 0 <= found.by_query.high
            below += found.below_zero
        shares = (f"{100 * count / options.studies:.1f} %" for count in (held, by_query, below))
        line = f"{people:6d}  {seeds:5d}  {spread:15.2f}  {next(shares):>19s}  {next(shares):>18s}  {next(shares):>11s}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
