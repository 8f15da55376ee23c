"""A moving average of the tokenizer's weights, which often decodes better than the weights themselves."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel


class AveragedTokenizer(AveragedModel):
    """Exponential moving average of all weights of a tokenizer; `module` is a model like any other.

    Codebooks are averaged like the weights. An entry is a mean of what the encoder gave lately, so the mean of what the
    averaged encoder gives is, to first order, the average of the entries; those of today would be ahead of an encoder,
    and of decoders, that lag behind by the length of the average. An entry that was restarted has jumped, and between
    two places there is nothing: its average begins anew where it went. Counts of uses are today's.

    Args:
        model: to be averaged.
        decay: share of the average that stays at each step, in (0, 1); less of it in the first steps, or the random
            beginning would weigh for long.
    """

    FILE = "average.safetensors"

    def __init__(self, model: EvoTokVQModel, decay: float):
        super().__init__(model, multi_avg_fn=self._average)
        self.decay = decay
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def _average(self, averages, weights, _) -> None:
        steps = int(self.n_averaged)  # lives on the CPU: nothing waits
        torch._foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + steps) / (10 + steps)))

    @torch.no_grad()
    def follow_restarts(self, model: EvoTokVQModel) -> None:
        """To be called after every forward pass that teaches the codebooks: one pass may undo the mark of the last."""
        for average, codebook in zip(self.module.quantizer.codebooks, model.quantizer.codebooks, strict=True):
            if codebook.restart_threshold:
                restarted = codebook.cluster_size[:, None] == codebook.restart_threshold  # nothing else leaves it there
                average.weight.copy_(torch.where(restarted, codebook.weight, average.weight))

    @torch.no_grad()
    def update_parameters(self, model: EvoTokVQModel) -> None:
        """One step of the average."""
        super().update_parameters(model)
        for average in self.module.quantizer.codebooks:
            if average.vector_sum is not None:  # copied, like all buffers; what it is the sum of was averaged
                average.vector_sum.copy_(average.weight * average.cluster_size[:, None])

    def save(self, folder: Path) -> None:
        """Write all of it into a checkpoint."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / self.FILE)

    def load(self, folder: Path) -> None:
        """Go on where a checkpoint left off."""
        self.load_state_dict(load_file(folder / self.FILE))
