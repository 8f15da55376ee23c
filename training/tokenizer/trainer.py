"""Trainer of the image tokenizer, with its discriminator and the frozen teacher (paper, Eq. 5 to 7)."""

from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import get_scheduler
from transformers.utils import logging

from ...eval.reconstruction import evaluate_reconstruction
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...processing.image_loading_evotok import convert_to_images
from ..compilation import compile_blocks
from ..optimizers import keep_settings
from ..recipes import TokenizerLossArguments
from ..trainer import EvoTokTrainer
from .ema import EMACallback, TokenizerEMA
from .losses import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    semantic_loss,
    weighted_sum,
)


logger = logging.get_logger(__name__)

TERMS = ("reconstruction", "perceptual", "adversarial", "semantic", "commitment")


class TokenizerTrainer(EvoTokTrainer):
    """Trainer of the tokenizer: reconstruction, the weighted terms, and from its start step on the discriminator.

    The discriminator has the schedule and warm-up of the weights, counted from its own start. Weights, their EMA and
    the discriminator are in every checkpoint; the finished model is the EMA, where there is one.

    Under DeepSpeed (ZeRO-1 or 2, `training/deepspeed_setup.py`) the engine shards the optimizer of the weights and
    their gradients; codebooks, EMA and discriminator are outside of it, the same on every process.

    Args:
        loss_args: weights of the terms and their settings.
        teacher: module (B, 3, H, W) in [-1, 1] -> (B, N, S), or None when the term has no weight.
        perceptual: function (fake, real) -> distances, or None when the term has no weight.
        ema_decay: as in [`TokenizerEMA`]; 0 for no EMA.
        eval_dataset: images (I, 3, H, W) in [-1, 1], this process's share.
    """

    model: EvoTokVQModel
    eval_dataset: torch.Tensor

    def __init__(
        self,
        *args,
        loss_args: TokenizerLossArguments,
        teacher: nn.Module | None,
        perceptual: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        ema_decay: float = 0.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if not self.is_deepspeed_enabled:  # which flattens all weights
            # Convolutions run faster on channels-last weights, on CPU and GPU alike.
            self.model.pixel_decoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # not in stubs
        self.loss_args = loss_args
        self.weights = {name: weight for name, weight in asdict(loss_args).items() if name in TERMS and weight}
        self.teacher = teacher.to(self.args.device) if teacher is not None else None
        if self.teacher is not None and self.recipe is not None:
            compile_blocks(self.teacher, self.recipe.training)
        self.perceptual = perceptual
        self.ema = None
        if ema_decay:
            self.ema = TokenizerEMA(self.model, ema_decay)
            self.ema.module.to(self.args.device)
            self.add_callback(EMACallback(self.ema, self.model))
        self.discriminator = self.discriminator_optimizer = self.discriminator_scheduler = None
        if "adversarial" in self.weights:
            self.discriminator = PatchDiscriminator(loss_args.discriminator_channels, loss_args.discriminator_layers)
            self.discriminator.to(self.args.device)
            self.discriminator_optimizer = torch.optim.Adam(
                self.discriminator.parameters(), lr=loss_args.discriminator_learning_rate, betas=(0.5, 0.9)
            )

    @property
    def _adversary(self) -> PatchDiscriminator | None:
        """Returns the discriminator from its start step on."""
        return self.discriminator if self.state.global_step >= self.loss_args.adversarial_start_step else None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns the weighted sum of the terms; each term's mean is logged under its own name."""
        pixels = inputs["pixel_values"]
        output = model(pixels)
        fake = output.reconstruction.float()
        part = max(1, round(self.loss_args.teacher_share * len(pixels)))
        terms = {"reconstruction": F.mse_loss(fake, pixels), "commitment": output.vq_loss}
        if "semantic" in self.weights:
            assert self.teacher is not None
            target, folds = self.teacher(pixels[:part]), self.loss_args.semantic_folds
            terms["semantic"] = semantic_loss(output.semantic_features[:part], target, folds)
        if "perceptual" in self.weights:
            assert self.perceptual is not None
            terms["perceptual"] = self.perceptual(fake[:part], pixels[:part]).mean()
        weights: dict[str, float | torch.Tensor] = self.weights
        if (discriminator := self._adversary) is not None:
            # Frozen for this pass: the generator's gradient must not reach the discriminator's weights.
            discriminator.requires_grad_(False)
            terms["adversarial"] = generator_loss(discriminator(fake))
            discriminator.requires_grad_(True)
            if self.loss_args.adversarial_adaptive and model.training:
                weights = weights | {"adversarial": self._adaptive_weight(terms)}
        loss = weighted_sum({name: term for name, term in terms.items() if name in weights}, weights)
        if model.training:
            self._pair = pixels, fake.detach()
            self.record_terms(terms)
        return (loss, output) if return_outputs else loss

    def _adaptive_weight(self, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        pixel_terms = {name: terms[name] for name in ("reconstruction", "perceptual") if name in self.weights}
        last_layer = self.accelerator.unwrap_model(self.model).pixel_decoder.conv_out.weight
        factor = adaptive_weight(weighted_sum(pixel_terms, self.weights), terms["adversarial"], last_layer)
        self.record_terms({"adversarial_factor": factor})
        return self.weights["adversarial"] * factor

    def training_step(self, *args, **kwargs):
        """Takes the generator's step, then the discriminator's; the first backward pass needs its weights unchanged."""
        loss = super().training_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.copy_restarts(self.accelerator.unwrap_model(self.model))
        if (discriminator := self._adversary) is not None:
            self.record_terms({"discriminator": self._train_discriminator(discriminator, *self._pair)})
        return loss

    def _train_discriminator(
        self, discriminator: PatchDiscriminator, real: torch.Tensor, fake: torch.Tensor
    ) -> torch.Tensor:
        assert self.discriminator_optimizer is not None and self.discriminator_scheduler is not None
        real_logits, fake_logits = discriminator(torch.cat([real, fake])).float().chunk(2)
        loss = discriminator_loss(real_logits, fake_logits)
        (loss / self.current_gradient_accumulation_steps).backward()
        if not self.accelerator.sync_gradients:
            return loss
        if self.args.world_size > 1:
            for gradient in (p.grad for p in discriminator.parameters() if p.grad is not None):
                torch.distributed.all_reduce(gradient)
                gradient /= self.args.world_size
        self.discriminator_optimizer.step()
        self.discriminator_optimizer.zero_grad()
        self.discriminator_scheduler.step()
        return loss

    def create_scheduler(self, num_training_steps, optimizer=None):
        """Builds the scheduler as in Transformers, and one of the same kind for the steps of the discriminator."""
        if self.discriminator_optimizer is not None:
            steps = max(1, num_training_steps - self.loss_args.adversarial_start_step)
            self.discriminator_scheduler = get_scheduler(
                self.args.lr_scheduler_type,
                self.discriminator_optimizer,
                num_warmup_steps=self.args.get_warmup_steps(steps),
                num_training_steps=steps,
                scheduler_specific_kwargs=cast("dict | None", self.args.lr_scheduler_kwargs),  # parsed by now
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Measures PSNR, SSIM, semantic cosine and the use of every codebook on the validation images, of the EMA where
        there is one, and writes reconstructions as a PNG."""
        model = self.accelerator.unwrap_model(self.model) if self.ema is None else self.ema.module
        batches = [batch.to(self.args.device) for batch in self.eval_dataset.split(self.args.eval_batch_size)]
        results = evaluate_reconstruction(
            model,
            batches,
            self.teacher,
            semantic_depths=(model.config.num_pixel_codebooks, model.config.num_codebooks),
            with_ssim=find_spec("torchmetrics") is not None,
            sum_up=self._sum_up,
        )
        metrics = {}
        for name in ("usage", "perplexity"):
            levels = cast("list[float]", results.pop(name))
            metrics |= {f"{metric_key_prefix}_{name}_level{i}": value for i, value in enumerate(levels, start=1)}
            metrics[f"{metric_key_prefix}_{name}_min"] = min(levels)
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in results.items()} | metrics
        self.log(metrics)
        if self.is_world_process_zero():
            path = self.output_folder / "samples" / f"step-{self.state.global_step:07d}.png"
            save_reconstructions(model, batches[0][:12], path)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _sum_up(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.args.world_size == 1 else self.accelerator.reduce(tensor.to(self.args.device)).cpu()

    @property
    def finished_model(self):
        """Returns the model with the EMA, if there is one; training resumes from the weights themselves."""
        return None if self.ema is None else self.ema.module

    def _load_best_model(self):
        super()._load_best_model()
        if self.ema is not None:  # which was evaluated
            self.ema.load(Path(cast(str, self.state.best_model_checkpoint)))

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        folder = Path(output_dir)
        if self.ema is not None and self.args.should_save:
            self.ema.save(folder)
        if self.discriminator is not None and self.args.should_save:
            save_file(self.discriminator.state_dict(), folder / "discriminator.safetensors")
            parts = {"optimizer": self.discriminator_optimizer, "scheduler": self.discriminator_scheduler}
            torch.save({name: part.state_dict() for name, part in parts.items()}, folder / "discriminator_optimizer.pt")

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        if self.is_deepspeed_enabled:
            # From a universal checkpoint the engine loads the parameters of its optimizer, which has no codebooks.
            weights, prefix = load_file(folder / "model.safetensors"), "quantizer."
            codebooks = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
            self.accelerator.unwrap_model(self.model).quantizer.load_state_dict(codebooks)
        if self.ema is not None:
            if (folder / self.ema.FILE).is_file():
                self.ema.load(folder)
            else:
                logger.warning(f"{folder}: has no EMA of the weights: a new one starts here.")
        if self.discriminator is not None:
            self._load_discriminator(folder)

    def _load_discriminator(self, folder: Path) -> None:
        if not (folder / "discriminator.safetensors").is_file():
            logger.warning(f"{folder}: has no discriminator: a new one starts here.")
            return
        assert self.discriminator is not None
        assert self.discriminator_optimizer is not None and self.discriminator_scheduler is not None
        self.discriminator.load_state_dict(load_file(folder / "discriminator.safetensors"))
        # To the CPU first: the device of a second process there is `cpu:0`, which torch.load does not accept.
        state = torch.load(folder / "discriminator_optimizer.pt", map_location="cpu", weights_only=True)
        with keep_settings(self.discriminator_optimizer, self.discriminator_scheduler):
            self.discriminator_optimizer.load_state_dict(state["optimizer"])
            self.discriminator_scheduler.load_state_dict(state["scheduler"])


@torch.inference_mode()
def save_reconstructions(model, pixels: torch.Tensor, path: Path) -> None:
    """Saves originals above their reconstructions at depth 1 to L_pix as one PNG."""
    was_training = model.training
    model.eval()
    codes = model.encode(pixels)
    rows = [pixels] + [model.decode_pixels(codes, depth=d + 1) for d in range(model.config.num_pixel_codebooks)]
    model.train(was_training)
    grid = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)  # (3, rows * H, B * W)
    path.parent.mkdir(parents=True, exist_ok=True)
    convert_to_images(grid)[0].save(path)
