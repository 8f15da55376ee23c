"""Compares the orderings of a paper's results with those of own runs, seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean, stdev
from typing import Any


@dataclass(frozen=True)
class Claim:
    """Figures of the paper for one quantity, and the own metric in its place."""

    metric: str
    """Name of the own metric."""
    paper_metric: str
    paper: dict[str, float]
    """Row -> figure of the paper; rows are compared two by two."""
    higher_is_better: bool = True


def spread(values: Sequence[float]) -> str:
    """Returns mean and standard deviation over seeds as text."""
    return f"{mean(values):.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def compare(claims: Sequence[Claim], runs: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Returns a row for every pair of rows with different figures in the paper.

    A comparison is made within a seed. It *holds* if every seed agrees, is *reversed* if none does, else *undecided*.

    Args:
        runs: row -> metrics of each seed, in the same order of seeds.
    """
    rows = []
    for claim in claims:
        sign = 1 if claim.higher_is_better else -1
        for pair in combinations(claim.paper, 2):
            better, worse = sorted(pair, key=lambda row: -sign * claim.paper[row])
            if claim.paper[better] == claim.paper[worse]:
                continue
            own = [[run[claim.metric] for run in runs[row]] for row in (better, worse)]
            gains = [sign * (a - b) for a, b in zip(*own, strict=True)]
            agree = sum(gain > 0 for gain in gains)
            rows.append(
                {
                    "figure": claim.metric,
                    "better in the paper": better,
                    "worse in the paper": worse,
                    "paper's figures": f"{claim.paper_metric} {claim.paper[better]:g} / {claim.paper[worse]:g}",
                    "here": f"{mean(own[0]):.4g} / {mean(own[1]):.4g}",
                    "seeds that agree": f"{agree} of {len(gains)}",
                    "verdict": "holds" if agree == len(gains) else "undecided" if agree else "reversed",
                }
            )
    return rows


def summarize(rows: Sequence[dict[str, Any]], where: str) -> list[str]:
    """Summarizes the rows of [`compare`] in sentences: how many orderings hold, and which do not."""
    by_verdict: dict[str, list[str]] = {"holds": [], "undecided": [], "reversed": []}
    for row in rows:
        text = f"{row['better in the paper']} over {row['worse in the paper']} in {row['figure']} ({row['here']})"
        by_verdict[row["verdict"]].append(text)
    sentences = [f"{where}: {len(by_verdict['holds'])} of the paper's {len(rows)} orderings hold in every seed."]
    for verdict, what in (
        ("holds", "Hold"),
        ("undecided", "Undecided, seeds disagreeing"),
        ("reversed", "Do not hold, no seed agreeing with the paper"),
    ):
        if by_verdict[verdict]:
            sentences.append(f"{what}: {'; '.join(by_verdict[verdict])}.")
    return sentences
