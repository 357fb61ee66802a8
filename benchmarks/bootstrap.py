"""Does the 95 % interval hold the truth in 95 % of experiments, and is p < 0.05 in 5 % of those without a difference?

    python -m benchmarks.bootstrap

Experiments are simulated: a question's rank under the base model is geometric, so that many are first and many beyond
the first ten; the tuned model finds some better, some worse, most alike. A score is nDCG@10 with one relevant passage:
eleven values, a third of them 0, most differences exactly 0. The true difference is the mean over two million
questions. Prints a table; takes about a minute.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.common import peak
from factory.metrics import compare

POPULATION = 2_000_000
GAINS = {"no difference": 0.0, "a small gain": 0.6, "a large gain": 0.95}


def ndcg(ranks: np.ndarray) -> np.ndarray:
    """nDCG@10 of a question with one relevant passage at that rank."""
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0)


def differences(rng: np.random.Generator, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """Tuned − base: six questions in ten keep their rank; of the others a share of (1 + gain) / 2 gets a better one.

    Without a gain the two models are exchangeable: which of them is called tuned is drawn for each question.
    """
    hard = rng.beta(0.7, 0.7, shape)
    base = rng.geometric(np.clip(1 - 0.97 * hard, 0.03, 1))
    steps = rng.geometric(0.25, shape)
    moved = np.where(rng.random(shape) < (1 + gain) / 2, np.maximum(1, base - steps), base + steps)
    change = ndcg(np.where(rng.random(shape) < 0.4, moved, base)) - ndcg(base)
    return change if gain else change * rng.choice([-1, 1], shape)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--experiments", type=int, default=1000)
    p.add_argument("--questions", type=int, nargs="+", default=[50, 200, 1000])
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    rng = np.random.default_rng(a.seed)
    print(f"{'':14} questions  true, points  interval holds it  half width  p < 0.05")
    for name, gain in GAINS.items():
        truth = differences(rng, (POPULATION,), gain).mean() if gain else 0.0
        for n in a.questions:
            drawn = differences(rng, (n, a.experiments), gain)
            intervals, p = compare(drawn)
            low, high = intervals.T
            holds = ((low <= truth) & (truth <= high)).mean()
            found = (p < 0.05).mean()
            print(
                f"{name:14} {n:9}  {100 * truth:12.2f}  {100 * holds:15.1f} %  {50 * (high - low).mean():10.2f}  "
                f"{100 * found:6.1f} %",
                flush=True,
            )
    print(f"peak memory {peak():.2f} GiB")


if __name__ == "__main__":
    main()
