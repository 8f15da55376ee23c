"""Classes that `lmms-eval --model evotok --model_args pretrained=CHECKPOINT` instantiates."""

from evotok.commands.checkpoints import load_multimodal
from evotok.data.processes import Workers
from evotok.eval.harness import EvoTokChat, EvoTokSimple


class FromCheckpoint:
    """Model that is loaded from a checkpoint.

    Args:
        pretrained: folder, Hub id, or `mini`.
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
        Workers()  # initializes the distributed processes, and selects this one's device
        model, processor = load_multimodal(pretrained)
        model = model if device is None else model.to(device)
        super().__init__(model, processor, batch_size)  # pyright: ignore[reportCallIssue]  # of the class beside this one


class Chat(FromCheckpoint, EvoTokChat):
    """Default model of the harness."""


class Simple(FromCheckpoint, EvoTokSimple):
    """Model of the harness with `--force_simple`."""
