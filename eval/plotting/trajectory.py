"""Plots and contact sheets of `evotok eval trajectory`."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...processing.image_loading_evotok import convert_to_images
from ..clusters import Clusters
from .sheets import BLUE, GREY, INK, RED, Cell, draw_sheet
from .style import figure, save


CLUSTERS_SHOWN, IMAGES_SHOWN = 3, 8
NEIGHBOURS = 12  # paths in the magnified part
PANELS = {  # figure -> title, unit, digits
    "psnr": ("Pixels: PSNR of the reconstruction", "dB", 1),
    "probe": ("Semantics: things read by a linear probe", "accuracy", 2),
    "fd": ("Pixels: Frechet distance to the originals, less is better", "distance", 0),
    "similarity_pixels": ("Pixels: the reconstruction in the teacher's features", "cosine to the original", 3),
    "similarity_semantics": ("Semantics: decoded, in the teacher's features", "cosine to the teacher", 3),
}


def plot_depths(folder: Path, rows: list[dict[str, float]], pixel_levels: int) -> None:
    """Plots figures by depth to `trajectory.png` and `.svg` (Fig. 5b): pixels on the left, semantics on the right.

    Without a probe, its panel shows the Frechet distance. Both cosines have one scale, from 0 to 1, so that gains can
    be compared.

    Args:
        rows: `depth` from 1 on, and figures of `PANELS`.
        pixel_levels: number of levels that the pixel decoder is trained from.
    """
    from matplotlib.patches import Patch

    depths = [int(row["depth"]) for row in rows]
    second = "probe" if "probe" in rows[0] else "fd"
    panels = {name: PANELS[name] for name in ("psnr", second, "similarity_pixels", "similarity_semantics")}
    lowest = min(row[name] for row in rows for name in panels if name.startswith("similarity"))
    shade = {"color": BLUE, "alpha": 0.1, "linewidth": 0}
    with figure(2, 2, width=4.6, height=3.2) as (canvas, axes):
        for axis, (name, (title, unit, digits)) in zip(axes.flat, panels.items(), strict=True):
            color = RED if title.startswith("Semantics") else BLUE
            values = [row[name] for row in rows]
            side = "top" if values[-1] > values[0] else "bottom"  # of a number, away from the curve
            axis.axvspan(min(depths) - 0.5, pixel_levels + 0.5, **shade)
            axis.plot(depths, values, "o-", color=color)
            for depth in sorted({depths[0], pixel_levels, depths[-1]}):
                axis.annotate(
                    f"{values[depth - 1]:.{digits}f}",
                    (depth, values[depth - 1]),
                    (0 if depth == depths[-1] else 3, -7 if side == "top" else 7),
                    textcoords="offset points",
                    color=color,
                    weight="bold",
                    ha="center" if depth == depths[-1] else "left",
                    va=side,
                )
            axis.set(title=title, ylabel=unit, xlim=(min(depths) - 1, max(depths) + 1))
            axis.set_xticks([depth for depth in depths if depth == 1 or depth % 4 == 0])
            axis.margins(y=0.16)  # room for the numbers
            if name == "probe":
                axis.set_ylim(bottom=0)
        for axis in axes[1]:
            axis.set(xlabel="levels summed", ylim=(min(0.0, 1.2 * lowest), 1.0))
        known = f"levels 1 to {pixel_levels}, which the pixel decoder is trained from"
        canvas.legend(handles=[Patch(**shade, label=known)], loc="outside lower center")
        for suffix in ("png", "svg"):
            save(canvas, folder / f"trajectory.{suffix}")


def plot_paths(folder: Path, points: np.ndarray) -> None:
    """Plots the t-SNE of sums of entries to `tsne.png` and `.svg`: all paths, and some neighbouring ones magnified.

    The dots of a path shrink with the depth, so that a later dot does not hide an earlier one.

    Args:
        points: (T, D, 2), a path through D depths for each of T positions.
    """
    from matplotlib.patches import Rectangle

    levels = points.shape[1]
    longest = int(np.linalg.norm(np.diff(points, axis=1), axis=2).sum(1).argmax())
    near = points[np.linalg.norm(points[:, -1] - points[longest, -1], axis=1).argsort()[:NEIGHBOURS]]
    low, high = near.min((0, 1)), near.max((0, 1))
    low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)
    with figure(1, 2, width=4.8, height=4.4) as (canvas, axes):
        whole, part = axes[0]
        for axis, shown, size in ((whole, points, 34), (part, near, 110)):
            for path in shown:
                axis.plot(*path.T, color=GREY, linewidth=size / 110, alpha=0.6, zorder=1)
            for level in range(levels):  # the first depth at the bottom
                dots = axis.scatter(
                    *shown[:, level].T,
                    c=np.full(len(shown), level + 1),
                    cmap="coolwarm",
                    vmin=1,
                    vmax=levels,
                    s=size * (1 - 0.85 * level / levels),
                    linewidths=0,
                    zorder=2,
                    rasterized=True,
                )
            axis.set(xticks=[], yticks=[])
        whole.set_title(f"{len(points)} positions of images")
        whole.add_patch(Rectangle(low, *(high - low), fill=False, edgecolor=INK, linewidth=0.8, zorder=3))
        part.set(title=f"{len(near)} of them, in the frame", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        canvas.suptitle(
            "Sums of entries from level to level (t-SNE): the first entry large and blue, the sum of all small and red"
        )
        canvas.colorbar(dots, ax=part, label="levels summed", ticks=[1, *range(4, levels + 1, 4)])
        for suffix in ("png", "svg"):
            save(canvas, folder / f"tsne.{suffix}")


def cluster_sheet(pixels: torch.Tensor, clusters: dict[int, Clusters]) -> Image.Image:
    """Renders some clusters of each depth, the largest first, with the images nearest to their centres.

    Args:
        pixels: (I, 3, H, W) in [-1, 1].
        clusters: depth -> clusters of the same images.
    """
    cells, labels = [], []
    for depth, own in clusters.items():
        for members in own.largest(CLUSTERS_SHOWN):
            labels.append((f"depth {depth}", f"{len(members)} images"))
            shown = [Cell(image) for image in convert_to_images(pixels[members[:IMAGES_SHOWN]])]
            cells += shown + [Cell(Image.new("RGB", (8, 8), "white"))] * (IMAGES_SHOWN - len(shown))
    groups = max(int(own.assigned.max()) + 1 for own in clusters.values())
    title = "Images of the same clusters, by depth"
    subtitle = (
        f"K-means sorts {len(pixels)} images into {groups} groups by the sum of their entries, averaged over the "
        f"positions. A row is a group, shown by the images nearest to its centre; of each depth the {CLUSTERS_SHOWN} "
        "largest."
    )
    return draw_sheet(cells, IMAGES_SHOWN, title, subtitle, side=72, row_labels=labels)


def reconstruction_sheet(
    originals: torch.Tensor, decoded: dict[int, torch.Tensor], psnr: dict[int, float], pixel_levels: int
) -> Image.Image:
    """Renders images and their reconstructions, a row for each depth.

    Args:
        originals: (I, 3, H, W) in [-1, 1].
        decoded: depth -> reconstructions, of the same shape.
        psnr: depth -> mean in dB.
        pixel_levels: number of levels that the pixel decoder is trained from.
    """
    cells = [Cell(image) for row in (originals, *decoded.values()) for image in convert_to_images(row)]
    labels = [("original", ""), *((f"depth {depth}", f"{psnr[depth]:.1f} dB") for depth in decoded)]
    title = "Reconstructed from more and more levels"
    subtitle = (
        "Depth is how many levels are summed; beside it the mean PSNR of all images. The pixel decoder is trained from "
        f"{pixel_levels} levels: deeper codes are input that it was never trained on."
    )
    return draw_sheet(cells, len(originals), title, subtitle, side=96, row_labels=labels)
