"""EvoTok: a unified image tokenizer and multimodal model, native to Hugging Face Transformers.

Importing this package registers the model with the Auto classes. The folders beside it (`modeling_evotok`,
`processing`, `training`, `eval`, `configs`, `assets`) are its subpackages: mapped by `setup.py` when installed, found
through `__path__` in a checkout.
"""

from pathlib import Path as _Path


__version__ = "0.1.0"

_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "modeling_evotok").is_dir():
    __path__.append(str(_checkout))

from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from evotok.modeling_evotok.configuration_evotok import (  # noqa: E402
    EvoTokConfig,
    EvoTokDepthDecoderConfig,
    EvoTokVQConfig,
)
from evotok.modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration, EvoTokModel  # noqa: E402
from evotok.modeling_evotok.modeling_evotok_depth import EvoTokDepthDecoder  # noqa: E402
from evotok.modeling_evotok.modeling_evotok_vq import EvoTokVQModel  # noqa: E402
from evotok.processing.processing_evotok import EvoTokProcessor  # noqa: E402


for _config in (EvoTokConfig, EvoTokVQConfig, EvoTokDepthDecoderConfig):
    AutoConfig.register(_config.model_type, _config)
AutoModel.register(EvoTokConfig, EvoTokModel)
AutoModel.register(EvoTokVQConfig, EvoTokVQModel)
AutoModel.register(EvoTokDepthDecoderConfig, EvoTokDepthDecoder)
AutoModelForImageTextToText.register(EvoTokConfig, EvoTokForConditionalGeneration)
AutoModelForMultimodalLM.register(EvoTokConfig, EvoTokForConditionalGeneration)
AutoProcessor.register(EvoTokConfig, EvoTokProcessor)

# Saved folders carry the code, so that `trust_remote_code=True` loads them where this package is not installed.
for _config in (EvoTokConfig, EvoTokVQConfig, EvoTokDepthDecoderConfig):
    _config.register_for_auto_class()
EvoTokModel.register_for_auto_class("AutoModel")
EvoTokVQModel.register_for_auto_class("AutoModel")
EvoTokDepthDecoder.register_for_auto_class("AutoModel")
EvoTokForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
EvoTokProcessor.register_for_auto_class()

__all__ = [
    "EvoTokConfig",
    "EvoTokDepthDecoder",
    "EvoTokDepthDecoderConfig",
    "EvoTokForConditionalGeneration",
    "EvoTokModel",
    "EvoTokProcessor",
    "EvoTokVQConfig",
    "EvoTokVQModel",
]
