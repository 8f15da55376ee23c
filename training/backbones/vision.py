"""The vision stage: trains the small `SiglipVisionModel` that stands in for SigLIP2 at the size of EvoTok-mini.

Every patch is classified: thing, colour, background, and whether the middle of a thing is in it. The result is an
ordinary Transformers checkpoint, which the tokenizer stage takes as `model.encoder_checkpoint`.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel, TrainingArguments

from ...data.image_files import to_pixels
from ...data.world.icons import load_world
from ...data.world.images import LabelledScenes, held_out_scenes, patch_labels
from ...data.world.palette import COLORS
from ...data.world.scenes import render_with_masks
from ..optimizers import optimizer_choice
from ..recipes import Recipe, num_samples
from ..time_box import time_box
from ..trainer import EvoTokTrainer
from ..trainer_options import check_length


_BACKGROUND_WEIGHT = 0.2  # of patches without a thing, most of a scene, in the loss of things and colours
_EVALUATED = 512


class PatchClassifier(nn.Module):
    """A vision tower with linear heads on every patch, on its last layer and on the one before.

    EvoTok takes the output of the layer before the last (paper, Sec. 3.1), so both learn the labels.

    Args:
        vision_model: the tower.
        num_things: number of things; label 0 is none.
    """

    def __init__(self, vision_model: SiglipVisionModel, num_things: int):
        super().__init__()
        self.vision_model = vision_model
        self.sizes = {"things": num_things + 1, "colors": len(COLORS) + 1, "background": len(COLORS), "centers": 1}
        width, outputs = vision_model.config.hidden_size, sum(self.sizes.values())
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList([nn.Linear(width, outputs), nn.Linear(width, outputs)])

    def forward(self, pixel_values: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """Logits of every head, (B, N, classes) each: of the last layer, then of the one before.

        Args:
            pixel_values: (B, 3, H, W) in [-1, 1].
        """
        output = self.vision_model(pixel_values, output_hidden_states=True)
        features = output.last_hidden_state, self.norm(output.hidden_states[-2])
        return [
            dict(zip(self.sizes, head(x).split(list(self.sizes.values()), dim=-1), strict=True))
            for head, x in zip(self.heads, features, strict=True)
        ]


def patch_losses(logits: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cross-entropies of one set of heads, by name.

    Args:
        logits: as [`PatchClassifier`] gives them, (B, N, classes).
        labels: `things`, `colors`, `centers` (B, N), -100 where unknown, and `background` (B,).
    """
    losses = {}
    for name in ("things", "colors"):
        classes = torch.full((logits[name].shape[-1],), 1.0, device=logits[name].device)
        classes[0] = _BACKGROUND_WEIGHT
        target = labels[name].flatten()
        known = classes[target.clamp(min=0)].masked_fill(target < 0, 0).sum()
        total = F.cross_entropy(logits[name].float().flatten(0, 1), target, classes, reduction="sum")
        losses[name] = total / known.clamp(min=1)  # a batch may hold no known label
    background = labels["background"][:, None].expand(logits["background"].shape[:2])
    losses["background"] = F.cross_entropy(
        logits["background"].float().flatten(0, 1), background.flatten(), reduction="sum"
    ) / (background >= 0).sum().clamp(min=1)
    centers = logits["centers"].float().squeeze(-1)
    losses["centers"] = F.binary_cross_entropy_with_logits(centers, labels["centers"].float())
    return losses


class VisionTrainer(EvoTokTrainer):
    """Sums the losses of all heads; evaluates on scenes of icon families that are not trained on.

    Args:
        held_out: batches of labels and `pixel_values` by the name of their kind.
    """

    def __init__(self, *args, held_out: dict[str, dict[str, torch.Tensor]], **kwargs):
        super().__init__(*args, **kwargs)
        self.held_out = held_out

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Sum over heads and layers; each term of the last layer is logged."""
        outputs = model(inputs["pixel_values"])
        terms = [patch_losses(logits, inputs) for logits in outputs]
        if model.training:
            self.note_terms(terms[0])
        loss = sum(sum(losses.values()) for losses in terms)
        return (loss, outputs) if return_outputs else loss

    @torch.inference_mode()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Share of patches with a thing whose thing and colour are named right, by the head before the last layer."""
        was_training, metrics = self.model.training, {}
        self.model.eval()
        for kind, batch in self.held_out.items():
            right = {"things": [], "colors": []}
            for start in range(0, len(batch["pixel_values"]), self.args.eval_batch_size):
                part = {k: v[start : start + self.args.eval_batch_size].to(self.args.device) for k, v in batch.items()}
                logits = self.model(part["pixel_values"])[1]
                shown = part["things"] > 0
                for name, values in right.items():
                    values.append((logits[name].argmax(-1) == part[name])[shown].float())
            metrics |= {f"{metric_key_prefix}_{kind}_{name}": torch.cat(v).mean().item() for name, v in right.items()}
        self.model.train(was_training)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _labelled(world, scenes) -> dict[str, torch.Tensor]:
    rows = []
    for scene in scenes:
        image, masks = render_with_masks(world, scene)
        labels = {name: torch.as_tensor(value) for name, value in patch_labels(scene, masks).items()}
        rows.append({"pixel_values": to_pixels(image)} | labels)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def train_vision(recipe: Recipe, arguments: TrainingArguments, resume_from: str | None) -> dict[str, float]:
    """Train as the recipe says; the tower is saved in `output_dir`. Returns the metrics."""
    check_length(recipe, arguments.max_steps)
    world = load_world(recipe.data.path)
    if recipe.model.checkpoint:
        tower = SiglipVisionModel.from_pretrained(recipe.model.checkpoint, dtype=torch.float32)
    else:
        tower = SiglipVisionModel(SiglipVisionConfig(vision_use_head=False, **recipe.model.config))
    if recipe.model.attn_implementation:
        tower.set_attn_implementation(recipe.model.attn_implementation)
    model = PatchClassifier(tower, len(world.things))
    trainer = VisionTrainer(
        model=model,
        args=arguments,
        callbacks=time_box(recipe, arguments),
        recipe=recipe,
        train_dataset=LabelledScenes(
            world, num_samples(arguments), arguments.seed, curriculum=recipe.model.checkpoint is None
        ),
        eval_dataset=[],
        held_out={
            "single": _labelled(world, held_out_scenes(world, "val", _EVALUATED, single=True)),
            "scene": _labelled(world, held_out_scenes(world, "val", _EVALUATED)),
        },
        **optimizer_choice(recipe.optimizer, arguments),
    )
    result = trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_metrics("train", result.metrics)
    metrics = trainer.evaluate()
    if arguments.should_save:
        tower.save_pretrained(arguments.output_dir)
    return {"step": result.global_step} | result.metrics | metrics
