"""EvoTok in vLLM: a plugin that vLLM loads by the entry point `vllm.general_plugins`; nothing else imports it.

    __init__      registers the model with vLLM
    generation    which rows of a batch are of which image, and the codes of a step; needs no vLLM
    model         the model: reading as Transformers does, and the depth decoder after the language model
    worker        gives the model the rows of images in the batch of a step
    scheduler     the two rows of a guided image as one unit
    engine        the engine of `evotok serve --engine vllm`

Reading images needs this module and `model` alone (`vllm serve CHECKPOINT`); generating them all of it.
"""

import multiprocessing
import signal


def register() -> None:
    """Registers configuration, processor and model; vLLM calls it in each of its processes."""
    from vllm import ModelRegistry

    import evotok  # noqa: F401 - which registers with the Auto classes of Transformers

    name = "EvoTokForConditionalGeneration"
    ModelRegistry.register_model(name, f"evotok.vllm.model:{name}")


def ignore_interrupts() -> None:
    """Makes a process that vLLM started ignore SIGINT, which Ctrl+C in a terminal sends to all of the server's.

    vLLM's would drop the open requests; the server answers them first, and then ends these processes.
    """
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
