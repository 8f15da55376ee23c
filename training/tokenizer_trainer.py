"""Trainer of the image tokenizer: owns the discriminator, its optimizer and the frozen teacher (paper, Eq. 5 to 7)."""

from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from ..eval.reconstruction import evaluate_reconstruction
from .arguments import TokenizerLossArguments
from .discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from .losses import semantic_loss, weighted_sum
from .trainer import EvoTokTrainer


TERMS = ("reconstruction", "perceptual", "adversarial", "semantic", "commitment")


class TokenizerTrainer(EvoTokTrainer):
    """One step: encode and decode, weigh the terms, then, from its start step on, teach the discriminator.

    Args:
        loss_args: weights of the terms and what they need.
        teacher: module (B, 3, H, W) in [-1, 1] -> (B, N, S).
        perceptual: function (fake, real) -> scalar, or None when the term has no weight.
        held_out: images (I, 3, H, W) in [-1, 1] that `evaluate` measures and draws.
    """

    def __init__(
        self,
        *args,
        loss_args: TokenizerLossArguments,
        teacher: nn.Module | None,
        perceptual=None,
        held_out: torch.Tensor | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        # Convolutions run faster on channels-last weights, on CPU and GPU alike.
        self.model.pixel_decoder.to(memory_format=torch.channels_last)
        self.loss_args = loss_args
        self.weights = {name: weight for name, weight in asdict(loss_args).items() if name in TERMS and weight}
        self.teacher = teacher.to(self.args.device) if teacher is not None else None
        self.perceptual = perceptual
        self.held_out = held_out
        self.discriminator = self.discriminator_optimizer = None
        if "adversarial" in self.weights:
            self.discriminator = PatchDiscriminator(loss_args.discriminator_channels, loss_args.discriminator_layers)
            self.discriminator.to(self.args.device)
            self.discriminator_optimizer = torch.optim.Adam(
                self.discriminator.parameters(), lr=loss_args.discriminator_learning_rate, betas=(0.5, 0.9)
            )

    @property
    def _adversarial(self) -> bool:
        return self.discriminator is not None and self.state.global_step >= self.loss_args.adversarial_start_step

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Weighted sum of the terms; each term's mean is logged under its own name."""
        pixels = inputs["pixel_values"]
        output = model(pixels)
        fake = output.reconstruction.float()
        seen = max(1, round(self.loss_args.teacher_share * len(pixels)))
        terms = {"reconstruction": F.mse_loss(fake, pixels), "commitment": output.vq_loss}
        if "semantic" in self.weights:
            # What the teacher said already comes with the images.
            target = inputs["semantic_target"][:seen] if "semantic_target" in inputs else self.teacher(pixels[:seen])
            terms["semantic"] = semantic_loss(output.semantic_features[:seen], target, self.loss_args.semantic_folds)
        if "perceptual" in self.weights:
            terms["perceptual"] = self.perceptual(fake[:seen], pixels[:seen])
        if self._adversarial:
            # Frozen for this pass: the generator's gradient must not reach the discriminator's weights.
            self.discriminator.requires_grad_(False)
            terms["adversarial"] = generator_loss(self.discriminator(fake))
            self.discriminator.requires_grad_(True)
        loss = weighted_sum(terms, self.weights)
        if model.training:
            self._pair = pixels, fake.detach()
            self.note_terms(terms)
        return (loss, output) if return_outputs else loss

    def training_step(self, *args, **kwargs):
        """The generator's step; the discriminator's comes after its backward pass, which still needs the weights."""
        loss = super().training_step(*args, **kwargs)
        if self._adversarial:
            self.note_terms({"discriminator": self._teach_discriminator(*self._pair)})
        return loss

    def _teach_discriminator(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        real_logits, fake_logits = self.discriminator(torch.cat([real, fake])).float().chunk(2)
        loss = discriminator_loss(real_logits, fake_logits)
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        for parameter in self.discriminator.parameters():
            if parameter.grad is not None and self.args.world_size > 1:
                torch.distributed.all_reduce(parameter.grad, op=torch.distributed.ReduceOp.SUM)
                parameter.grad /= self.args.world_size
        self.discriminator_optimizer.step()
        return loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """PSNR, semantic cosine and codebook usage on the held-out images, and a sheet of samples as PNG."""
        if self.held_out is None:
            return {}
        model = self.accelerator.unwrap_model(self.model)
        batches = [batch.to(self.args.device) for batch in self.held_out.split(64)]
        depths = (model.config.num_pixel_codebooks, model.config.num_codebooks)
        results = evaluate_reconstruction(model, batches, self.teacher, semantic_depths=depths)
        usage = results.pop("usage")
        results.pop("perplexity")
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in results.items()}
        metrics[f"{metric_key_prefix}_usage_min"] = min(usage)
        self.log(metrics)
        if self.is_world_process_zero():
            path = Path(self.args.output_dir) / "samples" / f"step-{self.state.global_step:07d}.png"
            write_sheet(model, batches[0][:12], path)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.discriminator is not None and self.is_world_process_zero():
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            save_file(self.discriminator.state_dict(), folder / "discriminator.safetensors")
            torch.save(self.discriminator_optimizer.state_dict(), folder / "discriminator_optimizer.pt")

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.discriminator is not None:
            folder = Path(checkpoint)
            self.discriminator.load_state_dict(load_file(folder / "discriminator.safetensors"))
            state = torch.load(folder / "discriminator_optimizer.pt", map_location=self.args.device, weights_only=True)
            self.discriminator_optimizer.load_state_dict(state)


@torch.inference_mode()
def write_sheet(model, pixels: torch.Tensor, path: Path) -> None:
    """Originals above their reconstructions at depth 1 to L_pix, as one PNG."""
    was_training = model.training
    model.eval()
    codes = model.encode(pixels)
    rows = [pixels] + [model.decode_pixels(codes, depth=d + 1) for d in range(model.config.num_pixel_codebooks)]
    model.train(was_training)
    grid = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)  # (3, rows * H, B * W)
    image = ((grid.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
