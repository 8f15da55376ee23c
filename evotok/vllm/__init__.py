"""Plugin for vLLM, which loads it by the entry point `vllm.general_plugins`.

    __init__      registers the model with vLLM
    generation    the rows of images in a batch, and the codes of a step; needs no vLLM
    model         the model: input images as in Transformers, and the depth decoder after the language model
    worker        the worker, which passes the rows of images in each step to the model
    scheduler     the scheduler, which treats the two rows of a guided image as one unit
    engine        the engine of `evotok serve --engine vllm`

Input images need only this module and `model` (`vllm serve CHECKPOINT`); image generation needs all modules.
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
    """Ignores SIGINT in a process that vLLM started; Ctrl+C in a terminal sends it to all processes of the server.

    vLLM's processes would drop the open requests; the server completes them first, and then stops the processes.
    """
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
