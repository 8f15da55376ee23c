"""EvoTok: a unified image tokenizer and multimodal model, native to Hugging Face Transformers.

Importing this package registers its models with the Auto classes, whether Transformers is imported before or later.
Torch and Transformers are imported when a class is first used.

The folders beside it (`modeling_evotok`, `processing`, `data`, `training`, `eval`, `configs`, `assets`) are its
subpackages: mapped by `setup.py` when installed, found through `__path__` in a checkout.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING


__version__ = "0.1.0"

_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "modeling_evotok").is_dir():
    __path__.append(str(_checkout))

from evotok import auto_classes as _auto_classes  # noqa: E402


if _TYPE_CHECKING:
    from evotok.commands.checkpoints import checkpoint_folder
    from evotok.modeling_evotok.configuration_evotok import EvoTokConfig, EvoTokDepthDecoderConfig, EvoTokVQConfig
    from evotok.modeling_evotok.int8_evotok import EvoTokInt8Config
    from evotok.modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration, EvoTokModel
    from evotok.modeling_evotok.modeling_evotok_depth import EvoTokDepthDecoder
    from evotok.modeling_evotok.modeling_evotok_vq import EvoTokVQModel
    from evotok.processing.processing_evotok import EvoTokProcessor

_MODULES = {
    "EvoTokConfig": "modeling_evotok.configuration_evotok",
    "EvoTokDepthDecoder": "modeling_evotok.modeling_evotok_depth",
    "EvoTokDepthDecoderConfig": "modeling_evotok.configuration_evotok",
    "EvoTokForConditionalGeneration": "modeling_evotok.modeling_evotok",
    "EvoTokInt8Config": "modeling_evotok.int8_evotok",
    "EvoTokModel": "modeling_evotok.modeling_evotok",
    "EvoTokProcessor": "processing.processing_evotok",
    "EvoTokVQConfig": "modeling_evotok.configuration_evotok",
    "EvoTokVQModel": "modeling_evotok.modeling_evotok_vq",
    "checkpoint_folder": "commands.checkpoints",
}
__all__ = [
    "EvoTokConfig",
    "EvoTokDepthDecoder",
    "EvoTokDepthDecoderConfig",
    "EvoTokForConditionalGeneration",
    "EvoTokInt8Config",
    "EvoTokModel",
    "EvoTokProcessor",
    "EvoTokVQConfig",
    "EvoTokVQModel",
    "checkpoint_folder",
]


def __getattr__(name: str):
    """Imports a public class or function when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'evotok' has no attribute {name!r}")
    globals()[name] = getattr(_import_module(f"evotok.{_MODULES[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_auto_classes.register()
