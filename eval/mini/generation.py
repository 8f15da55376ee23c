"""Text to image: GenEval's tasks in the world, with seen and with held-out pairs of thing and colour."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from ...data.image_files import to_pixels
from ...data.world.evaluation import prompt_set
from ...data.world.icons import World
from ...data.world.prompts import TASKS, Prompt
from ...data.world.scenes import render
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...processing.image_loading_evotok import convert_to_images, load_image
from ..suite import Evaluation
from ..text_to_image.geneval import scores
from ..text_to_image.images import DrawingOptions, Wanted, draw_missing, in_numbered_folders
from ..text_to_image.scene_detector import SceneDetector, contradict, faults
from ..text_to_image.verdicts import sample_sheet, write_verdicts
from .figures import Part


@dataclass(frozen=True)
class Cell:
    """How one set of prompts is generated from."""

    name: str
    """Of the folder of images."""
    suffix: str
    """Of the figures."""
    held_out: bool
    guidance_scale: float = 7.5
    guidance_min_p: float | None = None
    """The checkpoint's own when None."""


def composition_cells(guard: float) -> list[Cell]:
    """What is generated: seen and held-out pairs, then held-out pairs without guidance, and without its guard.

    Args:
        guard: `guidance_min_p` of the checkpoint; without one, the last cell is that of held-out pairs.
    """
    cells = [
        Cell("seen", "", False),
        Cell("held_out", "_held", True),
        Cell("held_out_cfg1", "_held_cfg1", True, guidance_scale=1.0),
    ]
    if guard:
        cells.append(Cell("held_out_no_min_p", "_held_no_min_p", True, guidance_min_p=0.0))
    return cells


class Composition:
    """Generates and judges the prompts of all tasks.

    Args:
        evaluation: whose `load` is cheap; its options are the suite's.
        world: the drawings.
    """

    def __init__(self, evaluation: Evaluation, world: World):
        self.evaluation, self.workers, self.world = evaluation, evaluation.workers, world
        self.detector = SceneDetector(world)

    def prompts(self, held_out: bool) -> list[Prompt]:
        """Prompts of all tasks, as many of each."""
        options = self.evaluation.options
        return [p for task in TASKS for p in prompt_set(self.world, task, options.prompts, held_out, options.seed)]

    def measure(self, cell: Cell) -> Part:
        """Share of images that show what the prompt says, of every task; verdicts and a sheet lie in the folder."""
        prompts, folder = self.prompts(cell.held_out), self.evaluation.folder
        found = self._generate(cell, prompts)
        right = _shares(prompts, [not fault for fault in found])
        compared_only = cell.suffix not in ("", "_held")
        tasks = () if compared_only else TASKS
        figures = {f"geneval_{task}{cell.suffix}": right[task] for task in ("overall", *tasks)}
        figures[f"geneval_overall{cell.suffix}_n"] = len(prompts)
        if self.workers.is_main:
            records = [{"tag": prompt.kind, "prompt": prompt.text} for prompt in prompts]
            verdicts = [[fault] for fault in found]
            write_verdicts(folder / f"verdicts_{cell.name}.jsonl", records, verdicts)
            if not compared_only:
                sheet = sample_sheet(folder / "pictures" / cell.name, records, verdicts, each=4)
                sheet.quantize(256).save(folder / f"{cell.name}.png", optimize=True)
        rows = [{"images": cell.name} | {task: right[task] for task in ("overall", *TASKS)}]
        return Part(figures, {"geneval": rows})

    def _generate(self, cell: Cell, prompts: list[Prompt]) -> list[list[str]]:
        """Faults of each image."""
        name, wanted = f"pictures/{cell.name}", in_numbered_folders([prompt.text for prompt in prompts], 1)
        draw_cell(self.evaluation, cell, name, wanted)
        pairs = list(zip(prompts, wanted, strict=True))
        folder = self.evaluation.folder / name
        judge = lambda pair: faults(self.world, pair[0], self.detector(load_image(folder / pair[1].file)))  # noqa: E731
        return self.workers.map(judge, pairs, f"judging {cell.name}")

    def measure_detector(self, held_out: bool, tokenizer: EvoTokVQModel) -> Part:
        """The detector on the real scenes of the prompts, and on those after the image tokenizer: the ceiling."""
        prompts, suffix = self.prompts(held_out), "_held" if held_out else ""
        near = [self._neighbour(prompts, index) for index in range(len(prompts))]

        def judge(pair: tuple[Prompt, Prompt]) -> tuple[bool, bool, bool]:
            prompt, other = pair
            real = render(self.world, prompt.scene)
            sight = self.detector(real)
            copy = self.detector(through(tokenizer, Image.fromarray(real)))
            refused = bool(faults(self.world, contradict(prompt, other), sight))
            return not faults(self.world, prompt, sight), refused, not faults(self.world, prompt, copy)

        found = self.workers.map(judge, list(zip(prompts, near, strict=True)), "judging real scenes")
        accepted, refused, ceiling = (_shares(prompts, list(column)) for column in zip(*found, strict=True))
        name = "held_out" if held_out else "seen"
        rows = [
            {"images": f"{name}, {what}"} | {task: shares[task] for task in ("overall", *TASKS)}
            for what, shares in (
                ("real scenes accepted", accepted),
                ("contradictions refused", refused),
                ("real scenes after the tokenizer", ceiling),
            )
        ]
        figures = {
            f"geneval_detector{suffix}": (accepted["overall"] + refused["overall"]) / 2,
            f"geneval_ceiling{suffix}": ceiling["overall"],
        }
        return Part(figures, {"geneval": rows})

    def _neighbour(self, prompts: list[Prompt], index: int) -> Prompt:
        """Another prompt of the same task."""
        after = prompts[(index + 1) % len(prompts)]
        return after if after.kind == prompts[index].kind else prompts[index - 1]


def draw_cell(evaluation: Evaluation, cell: Cell, name: str, wanted: Sequence[Wanted]) -> None:
    """Generates the images of a cell that its folder lacks, with the options of the cell."""
    options = evaluation.options
    drawing = DrawingOptions(
        batch_size=options.batch_size,
        seed=options.seed,
        images=1,
        guidance_scale=cell.guidance_scale,
        guidance_min_p=cell.guidance_min_p,
    )
    draw_missing(replace(evaluation, options=drawing), {name: wanted})


@torch.inference_mode()
def through(tokenizer: EvoTokVQModel, image: Image.Image) -> Image.Image:
    """An image after the image tokenizer, at the depth that is generated."""
    pixels = to_pixels(np.asarray(image))[None].to(tokenizer.device)
    return convert_to_images(tokenizer.decode_pixels(tokenizer.encode(pixels)))[0]


def _shares(prompts: list[Prompt], right: list[bool]) -> dict[str, float]:
    return scores([prompt.kind for prompt in prompts], right)
