"""EvoTok in vLLM: a plugin that vLLM loads by the entry point `vllm.general_plugins`; nothing else imports it.

    __init__      tells vLLM of the model
    drawing       images on their way: which rows of a batch are whose, the codes of a step; needs no vLLM
    model         the model: reading as Transformers does, and the depth decoder after the language model
    worker        lets the model look at the batch of a step
    scheduler     the two rows of a guided image as one unit
    engine        the engine of `evotok serve --engine vllm`

Reading images needs this module and `model` alone (`vllm serve CHECKPOINT`); generating them all of it.
"""


def register() -> None:
    """Registers configuration, processor and model; vLLM calls it in each of its processes."""
    from vllm import ModelRegistry

    import evotok  # noqa: F401 - its import tells the Auto classes of Transformers

    name = "EvoTokForConditionalGeneration"
    ModelRegistry.register_model(name, f"evotok.vllm.model:{name}")
