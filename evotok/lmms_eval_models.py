"""What `lmms-eval --model evotok --model_args pretrained=CHECKPOINT` makes: a checkpoint to be asked."""

from evotok.commands.checkpoints import load_multimodal
from evotok.data.processes import Workers
from evotok.eval.harness import EvoTokChat, EvoTokSimple


class FromCheckpoint:
    """Loads what `pretrained` names: a folder, a Hub id, or `mini`.

    Args:
        batch_size: `--batch_size`.
        device: `--device`; the accelerator of this process, or the CPU, when None.
        max_batch_size: `--max_batch_size`, for the harness's `auto`, which is not supported.
    """

    def __init__(
        self,
        pretrained: str = "mini",
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        Workers()  # joins the other processes, and makes this one's device the current one
        model, processor = load_multimodal(pretrained)
        super().__init__(model if device is None else model.to(device), processor, batch_size)


class Chat(FromCheckpoint, EvoTokChat):
    """The model that the harness takes by default."""


class Simple(FromCheckpoint, EvoTokSimple):
    """The model that it takes with `--force_simple`."""
