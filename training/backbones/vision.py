"""The vision stage: trains the small `SiglipVisionModel` in the place of SigLIP2 at the size of EvoTok-mini.

Every patch is classified: thing, colour, background, and whether the middle of a thing is in it. The result is an
ordinary Transformers checkpoint, which the tokenizer stage takes as `model.encoder_checkpoint`.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel, TrainingArguments

from ...data.image_files import to_pixels
from ...data.world.icons import World, load_world
from ...data.world.images import LabelledScenes, held_out_scenes, patch_labels
from ...data.world.palette import COLORS
from ...data.world.scenes import Scene, render_with_masks
from ..recipes import Recipe, num_rows
from ..trainer import EvoTokTrainer


_BACKGROUND_WEIGHT = 0.2  # of patches without a thing, most of a scene, in the loss of things and colours
EVALUATION_SCENES = 512


class PatchClassifier(nn.Module):
    """Vision tower with linear heads on every patch, on its last layer and on the one before.

    EvoTok uses the output of the layer before the last (paper, Sec. 3.1), so both are trained on the labels.

    Args:
        vision_model: the tower.
        num_things: number of things; label 0 is no thing.
    """

    def __init__(self, vision_model: SiglipVisionModel, num_things: int):
        super().__init__()
        self.vision_model = vision_model
        self.sizes = {"things": num_things + 1, "colors": len(COLORS) + 1, "background": len(COLORS), "centers": 1}
        width, outputs = vision_model.config.hidden_size, sum(self.sizes.values())
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList([nn.Linear(width, outputs), nn.Linear(width, outputs)])

    def forward(self, pixel_values: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """Returns the logits of every head, (B, N, classes) each: of the last layer, then of the one before.

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
    """Returns the cross-entropies of one set of heads, by name.

    Args:
        logits: of [`PatchClassifier`], (B, N, classes).
        labels: `things`, `colors`, `centers` (B, N), -100 where unknown, and `background` (B,).
    """
    losses = {}
    for name in ("things", "colors"):
        classes = torch.full((logits[name].shape[-1],), 1.0, device=logits[name].device)
        classes[0] = _BACKGROUND_WEIGHT
        target = labels[name].flatten()
        known = classes[target.clamp(min=0)].masked_fill(target < 0, 0).sum()
        total = F.cross_entropy(logits[name].float().flatten(0, 1), target, classes, reduction="sum")
        losses[name] = total / known.clamp(min=1)  # a batch may have no known label
    background = labels["background"][:, None].expand(logits["background"].shape[:2])
    losses["background"] = F.cross_entropy(
        logits["background"].float().flatten(0, 1), background.flatten(), reduction="sum"
    ) / (background >= 0).sum().clamp(min=1)
    centers = logits["centers"].float().squeeze(-1)
    losses["centers"] = F.binary_cross_entropy_with_logits(centers, labels["centers"].float())
    return losses


class VisionTrainer(EvoTokTrainer):
    """Trainer of [`PatchClassifier`]: sums the losses of all heads; evaluates on scenes of held-out icon styles.

    Args:
        eval_dataset: batches of labels and `pixel_values` by the name of their kind.
    """

    model: PatchClassifier
    eval_dataset: dict[str, dict[str, torch.Tensor]]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns the sum over heads and layers; each term of the last layer is logged."""
        outputs = model(inputs["pixel_values"])
        terms = [patch_losses(logits, inputs) for logits in outputs]
        if model.training:
            self.record_terms(terms[0])
        loss = sum(sum(losses.values()) for losses in terms)
        return (loss, outputs) if return_outputs else loss

    @torch.inference_mode()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Returns the accuracy of things and colours at patches with a thing, by the head on the last but one layer."""
        was_training, metrics = self.model.training, {}
        self.model.eval()
        for kind, batch in self.eval_dataset.items():
            right = {"things": [], "colors": []}
            for start in range(0, len(batch["pixel_values"]), self.args.eval_batch_size):
                part = {k: v[start : start + self.args.eval_batch_size].to(self.args.device) for k, v in batch.items()}
                logits = self.model(part["pixel_values"])[1]
                visible = part["things"] > 0
                for name, values in right.items():
                    values.append((logits[name].argmax(-1) == part[name])[visible].float())
            metrics |= {f"{metric_key_prefix}_{kind}_{name}": torch.cat(v).mean().item() for name, v in right.items()}
        self.model.train(was_training)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def finished_model(self):
        """The tower without the heads."""
        return self.model.vision_model


def labelled_batch(world: World, scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """Renders scenes to `pixel_values` (I, 3, H, W) in [-1, 1] and the labels of their patches."""
    rows = []
    for scene in scenes:
        image, masks = render_with_masks(world, scene)
        labels = {name: torch.as_tensor(value) for name, value in patch_labels(scene, masks).items()}
        rows.append({"pixel_values": to_pixels(image)} | labels)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def build_trainer(recipe: Recipe, arguments: TrainingArguments) -> VisionTrainer:
    """Builds the trainer of this stage."""
    world = load_world(recipe.data.path)
    if recipe.model.checkpoint:
        tower = SiglipVisionModel.from_pretrained(recipe.model.checkpoint, dtype=torch.float32)
    else:
        tower = SiglipVisionModel(SiglipVisionConfig(vision_use_head=False, **recipe.model.config))
    if recipe.model.attn_implementation:
        tower.set_attn_implementation(recipe.model.attn_implementation)
    curriculum = recipe.model.checkpoint is None
    return VisionTrainer(
        model=PatchClassifier(tower, len(world.things)),
        args=arguments,
        recipe=recipe,
        train_dataset=LabelledScenes(world, num_rows(arguments), arguments.seed, curriculum=curriculum),
        eval_dataset={
            "single": labelled_batch(world, held_out_scenes(world, "val", EVALUATION_SCENES, single=True)),
            "scene": labelled_batch(world, held_out_scenes(world, "val", EVALUATION_SCENES)),
        },
    )
