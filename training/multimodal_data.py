"""Wrappers around data sets of conversation records."""

import hashlib
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from .emoji.dataset import DRAWING_KINDS
from .tokenizer_data import to_pixels


class Indexed(Dataset):
    """Gives every record its place as `index`, which seeds what is random about it."""

    def __init__(self, records):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.records[index] | {"index": index}


class WithCodes(Dataset):
    """Text-to-image records with the codes of the picture instead of the picture: a picture that returns is encoded
    once.

    Args:
        records: conversation records; those of kind `t2i` and `t2i_scene` hold one picture, written by the assistant.
        vq_model: the trained tokenizer.
        remembered: pictures whose codes are kept.
    """

    def __init__(self, records, vq_model: EvoTokVQModel, remembered: int = 20000):
        self.records, self.vq_model, self.remembered = records, vq_model, remembered
        self.codes: dict[bytes, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        if record["kind"] not in DRAWING_KINDS:
            return record
        [image] = record["images"]
        return record | {"images": [], "codes": self._encode(image)}

    def _encode(self, image) -> np.ndarray:
        key = hashlib.sha256(np.asarray(image).tobytes()).digest()
        if key not in self.codes:
            pixels = to_pixels(image)[None].to(next(self.vq_model.parameters()).device)
            levels = self.vq_model.config.num_pixel_codebooks
            with torch.inference_mode():
                codes = self.vq_model.encode(pixels)[0, :, :levels].cpu().numpy()  # (N, L)
            if len(self.codes) >= self.remembered:
                return codes
            self.codes[key] = codes
        return self.codes[key]
