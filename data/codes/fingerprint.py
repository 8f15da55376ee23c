"""Which tokenizer wrote some codes, and of what."""

import hashlib
import json
from typing import Any

from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel


_PREFIX = "evotok-codes-1"  # changing it makes every file of codes foreign

_PREPARED = (
    "size", "resample", "do_resize", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
)  # fmt: skip


def preparation(image_processor: Any) -> dict[str, Any]:
    """What is done to an image before the encoder sees it: the settings of an image processor, as JSON has them."""
    settings = image_processor.to_dict()
    return json.loads(json.dumps({name: settings.get(name) for name in _PREPARED}))


def fingerprint(model: EvoTokVQModel) -> str:
    """SHA-256 of what an image goes through on its way to codes: encoder and codebooks.

    Tokenizers of equal fingerprint give the same codes, whatever checkpoint they lie in and however they decode.
    """
    digest = hashlib.sha256(f"{_PREFIX}/{model.config.image_size}".encode())
    parts = ("vision_tower.", "to_latent.")
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(parts) or (name.startswith("quantizer.") and name.endswith(".weight")):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()
