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
from ..suite import Evaluation, Report
from ..text_to_image.geneval import task_shares
from ..text_to_image.geneval_layout import image_file, plan_images, render_samples, write_verdicts
from ..text_to_image.images import GenerationOptions, generate_missing
from .scene_detector import SceneDetector, contradict, faults


@dataclass(frozen=True)
class Variant:
    """Set of prompts and the guidance that images are generated with."""

    name: str
    """Of the folder of images."""
    suffix: str
    """Of the figures."""
    held_out: bool = False
    guidance_scale: float = 7.5
    guidance_min_p: float | None = None
    """The checkpoint's own when None."""


def composition_variants(guidance_min_p: float) -> list[Variant]:
    """Returns the variants of seen and held-out pairs; held-out pairs also without guidance and `guidance_min_p`.

    Args:
        guidance_min_p: of the checkpoint; if it is 0, the last variant would repeat that of held-out pairs.
    """
    variants = [
        Variant("seen", ""),
        Variant("held_out", "_held", held_out=True),
        Variant("held_out_cfg1", "_held_cfg1", held_out=True, guidance_scale=1.0),
    ]
    if guidance_min_p:
        variants.append(Variant("held_out_no_min_p", "_held_no_min_p", held_out=True, guidance_min_p=0.0))
    return variants


class Composition:
    """Generates and judges the prompts of all tasks.

    Args:
        evaluation: its options are those of the suite.
        world: whose canonical icons the images show.
    """

    def __init__(self, evaluation: Evaluation, world: World):
        self.evaluation, self.workers, self.world = evaluation, evaluation.workers, world
        self.detector = SceneDetector(world)

    def prompts(self, held_out: bool) -> list[Prompt]:
        """Returns the prompts of all tasks, as many of each."""
        options = self.evaluation.options
        return [p for task in TASKS for p in prompt_set(self.world, task, options.prompts, held_out, options.seed)]

    def measure(self, variant: Variant) -> Report:
        """Measures the share of right images of every task; writes verdicts and, with standard guidance, a sheet."""
        folder = self.evaluation.folder
        prompts, image_folder = self.prompts(variant.held_out), folder / "pictures" / variant.name
        generate_variant(self.evaluation, variant, [prompt.text for prompt in prompts])

        def judge(case: tuple[int, Prompt]) -> list[str]:
            index, prompt = case
            return faults(self.world, prompt, self.detector(load_image(image_folder / image_file(index))))

        found = self.workers.map(judge, list(enumerate(prompts)), f"judging {variant.name}")
        shares = _shares(prompts, [not fault for fault in found])
        is_standard = variant.suffix in ("", "_held")
        names = ("overall", *TASKS) if is_standard else ("overall",)
        figures = {f"geneval_{task}{variant.suffix}": shares[task] for task in names}
        figures[f"geneval_overall{variant.suffix}_n"] = len(prompts)
        if self.workers.is_main:
            records = [{"tag": prompt.kind, "prompt": prompt.text} for prompt in prompts]
            verdicts = [[fault] for fault in found]
            write_verdicts(folder / f"verdicts_{variant.name}.jsonl", records, verdicts)
            if is_standard:
                sheet = render_samples(image_folder, records, verdicts, each=4)
                sheet.quantize(256).save(folder / f"{variant.name}.png", optimize=True)
        return Report(figures, {"geneval": [_row(variant.name, shares)]})

    def measure_detector(self, held_out: bool, tokenizer: EvoTokVQModel) -> Report:
        """Measures the detector on real scenes of the prompts, and on those after the image tokenizer: the ceiling."""
        prompts, suffix = self.prompts(held_out), "_held" if held_out else ""

        def judge(index: int) -> tuple[bool, bool, bool]:
            prompt, other = prompts[index], self._neighbour(prompts, index)
            real = render(self.world, prompt.scene)
            seen = self.detector(real)
            copy = self.detector(reconstruct(tokenizer, Image.fromarray(real)))
            refused = bool(faults(self.world, contradict(prompt, other), seen))
            return not faults(self.world, prompt, seen), refused, not faults(self.world, prompt, copy)

        found = self.workers.map(judge, range(len(prompts)), "judging real scenes")
        accepted, refused, ceiling = (_shares(prompts, list(column)) for column in zip(*found, strict=True))
        name = "held_out" if held_out else "seen"
        rows = [
            _row(f"{name}, real scenes accepted", accepted),
            _row(f"{name}, contradictions refused", refused),
            _row(f"{name}, real scenes after the tokenizer", ceiling),
        ]
        figures = {
            f"geneval_detector{suffix}": (accepted["overall"] + refused["overall"]) / 2,
            f"geneval_ceiling{suffix}": ceiling["overall"],
        }
        return Report(figures, {"geneval": rows})

    def _neighbour(self, prompts: list[Prompt], index: int) -> Prompt:
        """Returns another prompt of the same task."""
        after = prompts[(index + 1) % len(prompts)]
        return after if after.kind == prompts[index].kind else prompts[index - 1]


def generate_variant(evaluation: Evaluation, variant: Variant, prompts: Sequence[str]) -> None:
    """Generates the images that the folder of a variant lacks, one for each prompt."""
    options = GenerationOptions(
        batch_size=evaluation.options.batch_size,
        seed=evaluation.options.seed,
        images=1,
        guidance_scale=variant.guidance_scale,
        guidance_min_p=variant.guidance_min_p,
    )
    generate_missing(replace(evaluation, options=options), {f"pictures/{variant.name}": plan_images(prompts, 1)})


@torch.inference_mode()
def reconstruct(tokenizer: EvoTokVQModel, image: Image.Image) -> Image.Image:
    """Encodes and decodes an image, at the depth that is generated."""
    pixels = to_pixels(np.asarray(image))[None].to(tokenizer.device)
    return convert_to_images(tokenizer.decode_pixels(tokenizer.encode(pixels)))[0]


def _shares(prompts: list[Prompt], right: list[bool]) -> dict[str, float]:
    return task_shares([prompt.kind for prompt in prompts], right)


def _row(images: str, shares: dict[str, float]) -> dict[str, str | float]:
    return {"images": images} | {task: shares[task] for task in ("overall", *TASKS)}
