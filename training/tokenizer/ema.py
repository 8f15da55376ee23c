"""An EMA of the tokenizer's weights, which often decodes better than the weights themselves."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback

from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel


class TokenizerEMA(AveragedModel):
    """Exponential moving average of all weights of a tokenizer; `module` is the averaged model.

    Codebooks are averaged like the other weights. An entry is a mean of recent encoder outputs, so the mean of the
    outputs of the averaged encoder is, to first order, the EMA of the entries; the current entries would be ahead of an
    averaged encoder and averaged decoders. The values between a restarted entry and its former value have no
    meaning, so its EMA restarts from the new value. Counts of uses are those of the model.

    Args:
        model: the tokenizer to average.
        decay: share of the EMA that stays at each step, in (0, 1); less in the first steps, so that the random
            initialization loses its weight soon.
    """

    FILE = "average.safetensors"

    module: EvoTokVQModel

    def __init__(self, model: EvoTokVQModel, decay: float):
        super().__init__(model, multi_avg_fn=self._average)
        self.decay = decay
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def _average(self, averages, weights, _) -> None:
        steps = int(self.n_averaged)  # on the CPU: no synchronization
        torch._foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + steps) / (10 + steps)))

    @torch.no_grad()
    def copy_restarts(self, model: EvoTokVQModel) -> None:
        """Copies restarted entries; to be called after every forward pass in training, because the next one may remove
        the mark of a restart."""
        for average, codebook in zip(self.module.quantizer.codebooks, model.quantizer.codebooks, strict=True):
            if codebook.restart_threshold:
                restarted = codebook.cluster_size[:, None] == codebook.restart_threshold  # only a restart
                average.weight.copy_(torch.where(restarted, codebook.weight, average.weight))

    @torch.no_grad()
    def update_parameters(self, model: EvoTokVQModel) -> None:
        """Takes one step of the EMA."""
        super().update_parameters(model)
        for average in self.module.quantizer.codebooks:
            if average.vector_sum is not None:  # buffers are copied, but its entries were averaged
                average.vector_sum.copy_(average.weight * average.cluster_size[:, None])

    def save(self, folder: Path) -> None:
        """Saves the EMA into a checkpoint."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / self.FILE)

    def load(self, folder: Path) -> None:
        """Loads the EMA of a checkpoint."""
        self.load_state_dict(load_file(folder / self.FILE))


class EMACallback(TrainerCallback):
    """Updates the EMA after every step."""

    def __init__(self, ema: TokenizerEMA, model: EvoTokVQModel):
        self.ema, self.model = ema, model

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.ema.update_parameters(self.model)
