"""Models of the lmms-eval harness, for `lmms-eval --model evotok --model_args pretrained=CHECKPOINT`."""

from evotok.commands.checkpoints import load_multimodal
from evotok.data.processes import Workers
from evotok.eval.harness import EvoTokChat, EvoTokSimple


class FromCheckpoint:
    """Model loaded from `pretrained`: a folder, a Hub id, or `mini`.

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
        Workers()  # joins the process group, and sets the device of this process
        model, processor = load_multimodal(pretrained)
        super().__init__(model if device is None else model.to(device), processor, batch_size)


class Chat(FromCheckpoint, EvoTokChat):
    """The model of the harness by default, which takes conversations."""


class Simple(FromCheckpoint, EvoTokSimple):
    """The model of the harness with `--force_simple`."""
