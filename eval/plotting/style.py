"""Style of all plots; text stays text in SVG."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .sheets import BLUE, CARD, EDGE, GREEN, GREY, INK, RED


COLORS = (BLUE, RED, GREEN, "#b7791f", "#7b4fb5", "#1f8a93", GREY)
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": EDGE,
    "axes.facecolor": CARD,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.facecolor": CARD,
    "font.size": 10,
    "grid.color": EDGE,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "evotok",  # the same plot is the same file
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


@contextmanager
def figure(rows: int = 1, columns: int = 1, width: float = 4.2, height: float = 3.0) -> Iterator[tuple]:
    """Creates a figure without a window; yields it and its axes (rows, columns).

    Args:
        width, height: of one pair of axes, in inches.
    """
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "axes.prop_cycle": cycler(color=COLORS)}):
        canvas = Figure((columns * width, rows * height), layout="constrained")
        yield canvas, canvas.subplots(rows, columns, squeeze=False)


def save(canvas, path: Path) -> None:
    """Saves a figure in the format of the suffix, without the date: equal figures are equal files."""
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    canvas.savefig(path, dpi=150, metadata=metadata)
