"""Trainer of the image tokenizer: owns the discriminator, its optimizer and the frozen teacher (paper, Eq. 5 to 7)."""

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, get_scheduler
from transformers.utils import logging

from ...eval.reconstruction import evaluate_reconstruction
from ..recipes import TokenizerLossArguments
from ..resuming.checkpoints import room_on_disk
from ..resuming.recipe_changes import keeping_settings
from ..trainer import EvoTokTrainer
from .discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from .ema import AveragedTokenizer
from .losses import adaptive_weight, semantic_loss, weighted_sum


logger = logging.get_logger(__name__)

TERMS = ("reconstruction", "perceptual", "adversarial", "semantic", "commitment")


class AverageCallback(TrainerCallback):
    """Takes the weights into their average after every step."""

    def __init__(self, average: AveragedTokenizer, model: nn.Module):
        self.average, self.model = average, model

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.average.update_parameters(self.model)


class TokenizerTrainer(EvoTokTrainer):
    """One step: encode and decode, weigh the terms, then, from its start step on, teach the discriminator.

    The discriminator learns with the weights' schedule and warm-up, counted from its own start. Weights, their average
    and the discriminator are in every checkpoint; the finished model is the average, where there is one.

    Under DeepSpeed (ZeRO-1 or 2, `training/deepspeed_configs.py`) the engine shards the optimizer of the weights and
    their gradients; codebooks, average and discriminator are the same on every process and none of its business.

    Args:
        loss_args: weights of the terms and what they need.
        teacher: module (B, 3, H, W) in [-1, 1] -> (B, N, S).
        perceptual: function (fake, real) -> distances, or None when the term has no weight.
        held_out: images (I, 3, H, W) in [-1, 1] that `evaluate` measures and draws, this process's share.
        average_decay: as in [`AveragedTokenizer`]; 0 for no average.
    """

    def __init__(
        self,
        *args,
        loss_args: TokenizerLossArguments,
        teacher: nn.Module | None,
        perceptual=None,
        held_out: torch.Tensor | None = None,
        average_decay: float = 0.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if not self.is_deepspeed_enabled:  # an engine lays all weights out flat
            # Convolutions run faster on channels-last weights, on CPU and GPU alike.
            self.model.pixel_decoder.to(memory_format=torch.channels_last)
        self.loss_args = loss_args
        self.weights = {name: weight for name, weight in asdict(loss_args).items() if name in TERMS and weight}
        self.teacher = teacher.to(self.args.device) if teacher is not None else None
        self.perceptual = perceptual
        self.held_out = held_out
        self.average = None
        if average_decay:
            self.average = AveragedTokenizer(self.model, average_decay)
            self.average.module.to(self.args.device)
            self.add_callback(AverageCallback(self.average, self.model))
        self.discriminator = self.discriminator_optimizer = self.discriminator_scheduler = None
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
            terms["perceptual"] = self.perceptual(fake[:seen], pixels[:seen]).mean()
        weights = self.weights
        if self._adversarial:
            # Frozen for this pass: the generator's gradient must not reach the discriminator's weights.
            self.discriminator.requires_grad_(False)
            terms["adversarial"] = generator_loss(self.discriminator(fake))
            self.discriminator.requires_grad_(True)
            if self.loss_args.adversarial_adaptive and model.training:
                weights = weights | {"adversarial": self._adaptive_weight(terms)}
        loss = weighted_sum({name: term for name, term in terms.items() if name in weights}, weights)
        if model.training:
            self._pair = pixels, fake.detach()
            self.note_terms(terms)
        return (loss, output) if return_outputs else loss

    def _adaptive_weight(self, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        pixel_terms = {name: terms[name] for name in ("reconstruction", "perceptual") if name in self.weights}
        last_layer = self.accelerator.unwrap_model(self.model).pixel_decoder.conv_out.weight
        factor = adaptive_weight(weighted_sum(pixel_terms, self.weights), terms["adversarial"], last_layer)
        self.note_terms({"adversarial_factor": factor})
        return self.weights["adversarial"] * factor

    def training_step(self, *args, **kwargs):
        """The generator's step; the discriminator's comes after its backward pass, which still needs the weights."""
        loss = super().training_step(*args, **kwargs)
        if self.average is not None:
            self.average.follow_restarts(self.accelerator.unwrap_model(self.model))
        if self._adversarial:
            self.note_terms({"discriminator": self._teach_discriminator(*self._pair)})
        return loss

    def _teach_discriminator(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        real_logits, fake_logits = self.discriminator(torch.cat([real, fake])).float().chunk(2)
        loss = discriminator_loss(real_logits, fake_logits)
        (loss / self.current_gradient_accumulation_steps).backward()
        if not self.accelerator.sync_gradients:
            return loss
        if self.args.world_size > 1:
            for parameter in self.discriminator.parameters():
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.args.world_size
        self.discriminator_optimizer.step()
        self.discriminator_optimizer.zero_grad()
        self.discriminator_scheduler.step()
        return loss

    def create_scheduler(self, num_training_steps, optimizer=None):
        """As in Transformers; the discriminator gets one of the same kind for the steps that it has."""
        if self.discriminator is not None:
            steps = max(1, num_training_steps - self.loss_args.adversarial_start_step)
            self.discriminator_scheduler = get_scheduler(
                self.args.lr_scheduler_type,
                self.discriminator_optimizer,
                num_warmup_steps=self.args.get_warmup_steps(steps),
                num_training_steps=steps,
                scheduler_specific_kwargs=self.args.lr_scheduler_kwargs,
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """PSNR, SSIM, semantic cosine and the use of every codebook on the held-out images, and a sheet of samples as
        PNG; of the average, where there is one."""
        if self.held_out is None:
            return {}
        model = self.accelerator.unwrap_model(self.model) if self.average is None else self.average.module
        batches = [batch.to(self.args.device) for batch in self.held_out.split(self.args.eval_batch_size)]
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
            levels = results.pop(name)
            metrics |= {f"{metric_key_prefix}_{name}_level{i}": value for i, value in enumerate(levels, start=1)}
            metrics[f"{metric_key_prefix}_{name}_min"] = min(levels)
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in results.items()} | metrics
        self.log(metrics)
        if self.is_world_process_zero():
            path = Path(self.args.output_dir) / "samples" / f"step-{self.state.global_step:07d}.png"
            write_sheet(model, batches[0][:12], path)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _sum_up(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.args.world_size == 1 else self.accelerator.reduce(tensor.to(self.args.device)).cpu()

    def save_model(self, output_dir=None, _internal_call=False):
        """As in Transformers, but of the average, where there is one; training goes on from the weights themselves, so
        a checkpoint keeps both."""
        if self.average is None or _internal_call:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            with room_on_disk(folder):
                self.average.module.save_pretrained(folder)

    def _load_best_model(self):
        """As in Transformers; where there is an average, it is what was the best."""
        super()._load_best_model()
        if self.average is not None:
            self.average.load(Path(self.state.best_model_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        folder = Path(output_dir)
        if self.average is not None and self.args.should_save:
            self.average.save(folder)
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
            # Of a universal checkpoint an engine takes what its optimizer moves, and the codebooks are not among that.
            weights, prefix = load_file(folder / "model.safetensors"), "quantizer."
            codebooks = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
            self.accelerator.unwrap_model(self.model).quantizer.load_state_dict(codebooks)
        if self.average is not None:
            if (folder / self.average.FILE).is_file():
                self.average.load(folder)
            else:
                logger.warning(f"{folder}: no average of the weights in it: one begins here.")
        if self.discriminator is not None:
            self._load_discriminator(folder)

    def _load_discriminator(self, folder: Path) -> None:
        if not (folder / "discriminator.safetensors").is_file():
            logger.warning(f"{folder}: no discriminator in it: one begins here.")
            return
        self.discriminator.load_state_dict(load_file(folder / "discriminator.safetensors"))
        # To the CPU first: a second process there calls its device `cpu:0`, which nothing can be loaded to.
        state = torch.load(folder / "discriminator_optimizer.pt", map_location="cpu", weights_only=True)
        with keeping_settings(self.discriminator_optimizer, self.discriminator_scheduler):
            self.discriminator_optimizer.load_state_dict(state["optimizer"])
            self.discriminator_scheduler.load_state_dict(state["scheduler"])


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
