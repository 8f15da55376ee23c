"""Trainer of the language model's stages: both losses in the log, the image tokenizer in fp32, generated samples."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers.modeling_utils import unwrap_model

from ...eval.inference import generate_images
from ...eval.plotting.sheets import Cell, Line, draw_sheet
from ...modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration, EvoTokModel
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...processing.processing_evotok import EvoTokProcessor
from ..trainer import EvoTokTrainer


_TERMS = ("text_loss", "image_loss")


def share_tokenizer(model: EvoTokModel, vq_model: EvoTokVQModel) -> None:
    """Replaces the image tokenizer of `model` by this one, which is not among its modules."""
    del model.vq_model
    object.__setattr__(model, "vq_model", vq_model)


def add_code_noise(pixel_projector: nn.Module, share: float) -> None:
    """Registers noise on the codes of generated images that the language model gets as input in training.

    A memorized image is determined by its first codes, and the prompt is ignored. Where some of the input codes are
    those of other positions and images, only the prompt determines the next ones. The target codes are not changed.

    Each image has its own rate, uniform from 0 to 2 * `share`: nearly clean ones are among them, as in generation.

    Args:
        pixel_projector: its input are features (I, N, C) of I images with N positions.
        share: mean share of positions with the feature of another position, in [0, 0.5].

    Raises:
        ValueError: `share` out of range.
    """
    if not 0.0 <= share <= 0.5:
        raise ValueError(f"data.code_noise={share} must be in [0, 0.5]: some images get twice as much.")

    def exchange(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if not module.training:
            return None
        [features] = inputs
        rows = features.flatten(0, -2)
        others = rows[torch.randperm(rows.shape[0], device=rows.device)].view_as(features)
        rates = 2 * share * torch.rand(features.shape[0], 1, 1, device=features.device)
        noisy = torch.rand(*features.shape[:-1], 1, device=features.device) < rates
        return (torch.where(noisy, others, features),)

    pixel_projector.register_forward_pre_hook(exchange)


class MultimodalTrainer(EvoTokTrainer):
    """`Trainer` for `EvoTokForConditionalGeneration`.

    Images are encoded to codes before the forward pass, and DeepSpeed never gets the image tokenizer: it would cast it
    to half precision, which changes 4% of the codes, and shard it, so that processes whose batches have different kinds
    of rows would wait for each other forever. It is saved with the model all the same.

    Args:
        sample_prompts: prompts whose images are generated into one PNG at every checkpoint.
        code_noise: as in [`add_code_noise`].
    """

    processing_class: EvoTokProcessor

    def __init__(self, *args, sample_prompts: list[str] | tuple[str, ...] = (), code_noise: float = 0.0, **kwargs):
        super().__init__(*args, **kwargs)
        if code_noise:
            add_code_noise(self._inner(self.model).model.pixel_projector, code_noise)
        self.sample_prompts = list(sample_prompts)
        self.vq_model = self._inner(self.model).model.vq_model
        self._excludes_tokenizer = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if self._excludes_tokenizer:
            share_tokenizer(self._inner(self.model).model, self.vq_model.float().to(self.args.device))

    @staticmethod
    def _inner(model: nn.Module) -> EvoTokForConditionalGeneration:
        inner = cast(Any, unwrap_model(model))
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        levels = self.vq_model.config.num_pixel_codebooks
        if "pixel_values" in inputs:
            inputs["image_codes"] = self.vq_model.encode(inputs.pop("pixel_values"))
        if "generation_pixel_values" in inputs:
            inputs["generation_codes"] = self.vq_model.encode(inputs.pop("generation_pixel_values"), levels)
        return inputs

    def _get_num_items_in_batch(self, batch_samples, device):
        """Counts text targets and positions of generated images, (2,), over all processes and accumulated batches.

        Each count divides the loss of its kind, so that the result does not depend on how rows are split.
        """
        if not batch_samples or "labels" not in batch_samples[0] or not self.model_accepts_loss_kwargs:
            return None
        count = self._inner(self.model).count_targets
        counts = sum(count(batch["input_ids"], batch["labels"], batch.get("shift_labels")) for batch in batch_samples)
        counts = counts.to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.gather(counts[None]).sum(0)
        return counts / (self.get_tp_size() * self.get_cp_size() * self.get_sp_size())

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns the model's weighted sum; its two terms, and the image loss of every level, are logged beside it."""
        if num_items_in_batch is not None:
            names = ("num_items_in_batch", "num_image_positions_in_batch")
            inputs = inputs | dict(zip(names, num_items_in_batch.unbind(), strict=True))
        outputs = model(**inputs)
        loss = outputs.loss
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Shares of the processes add up to the loss, but their gradients will be averaged.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        if model.training:
            self.record_terms({name: outputs[name] for name in _TERMS if outputs.get(name) is not None})
            levels = outputs.get("image_level_losses")
            if levels is not None:
                self.record_terms({f"image_loss_level{level}": loss for level, loss in enumerate(levels, start=1)})
        return (loss, outputs) if return_outputs else loss

    def _reduce_terms(self):
        """Reduces as in [`EvoTokTrainer`], but the losses of the model are shares of one mean, which add up within a
        step."""
        own = {}
        for name, recorded in self._terms.items():
            if name.startswith(_TERMS):
                shares = torch.stack([share.float() for _, share in recorded]).tolist()
                own[name] = list(zip([step for step, _ in recorded], shares, strict=True))
        steps = defaultdict(Counter)
        for gathered in gather_object([own]):
            for name, shares in gathered.items():
                for step, share in shares:
                    steps[name][step] += share
        divisor = 1 if self.args.average_tokens_across_devices else self.args.world_size  # then they are means
        means = {name: sum(sums.values()) / len(sums) / divisor for name, sums in steps.items()}
        return super()._reduce_terms() | means

    def _save(self, output_dir=None, state_dict=None):
        if self._excludes_tokenizer and state_dict is not None:
            weights = self.vq_model.state_dict(prefix="model.vq_model.")
            state_dict = state_dict | {name: tensor.clone() for name, tensor in weights.items()}
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.sample_prompts and self.is_world_process_zero() and not self.is_deepspeed_enabled:
            self._save_samples(self.output_folder / "samples" / f"step-{self.state.global_step:07d}.png")

    def _save_samples(self, path: Path) -> None:
        model, prompts = self._inner(self.model), self.sample_prompts
        # Matrices that are rounded to half precision (LoRA) work under autocast only.
        rounded = any(p.dtype == torch.bfloat16 for p in model.model.language_model.parameters())
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=rounded, cache_enabled=False):
            images = generate_images(
                model, self.processing_class, prompts, batch_size=len(prompts), seed=self.args.seed
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = [Cell(image, [Line(prompt)]) for image, prompt in zip(images, prompts, strict=True)]
        draw_sheet(cells, columns=4, title=f"Step {self.state.global_step:,}").save(path)
