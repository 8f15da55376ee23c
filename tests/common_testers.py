"""Model testers as in Transformers: a tiny configuration and inputs for each model class.

`test_common_*.py` and `huggingface_mixins.py` build their models here. Images have 16 px, 2 x 2 positions, and 4 levels
of 32 entries, 2 of them pixel levels.
"""

import torch
from conftest import TINY_DEPTH, TINY_TEXT, TINY_VQ

from evotok import (
    EvoTokConfig,
    EvoTokDepthDecoder,
    EvoTokDepthDecoderConfig,
    EvoTokForConditionalGeneration,
    EvoTokModel,
    EvoTokVQConfig,
    EvoTokVQModel,
)


IMAGE, GENERATED, START, END = 4, 5, 6, 7
POSITIONS = 4
BATCH = 3
ENCODER = TINY_VQ["encoder_config"] | {"image_size": 16, "num_hidden_layers": 2}
VQ = TINY_VQ | {"encoder_config": ENCODER}
DEPTH = TINY_DEPTH | {"initializer_range": 0.02}
TEXT = TINY_TEXT | {"vocab_size": 99, "initializer_range": 0.02}


def random_floats(*shape: int) -> torch.Tensor:
    """Generates floats in [-1, 1]."""
    return torch.rand(shape) * 2 - 1


class ModelTester:
    """Base of the testers; the sizes are those of the layers whose states a model returns."""

    model_classes: tuple[type, ...]
    is_training = True
    batch_size = BATCH
    num_hidden_layers = 2
    seq_length: int
    hidden_size: int
    num_attention_heads: int

    def __init__(self, parent=None):
        self.parent = parent

    def get_config(self):
        raise NotImplementedError

    def prepare_config_and_inputs_for_common(self) -> tuple:
        raise NotImplementedError


class VQModelTester(ModelTester):
    """Tester of the image tokenizer; the states are its encoder's."""

    model_classes = (EvoTokVQModel,)
    seq_length = POSITIONS
    hidden_size = ENCODER["hidden_size"]
    num_attention_heads = ENCODER["num_attention_heads"]

    def get_config(self) -> EvoTokVQConfig:
        return EvoTokVQConfig(**VQ)

    def prepare_config_and_inputs_for_common(self) -> tuple:
        return self.get_config(), {"pixel_values": random_floats(BATCH, 3, 16, 16)}


class DepthDecoderTester(ModelTester):
    """Tester of the depth decoder; its sequence is the levels."""

    model_classes = (EvoTokDepthDecoder,)
    seq_length = VQ["num_pixel_codebooks"]
    hidden_size = DEPTH["hidden_size"]
    num_attention_heads = DEPTH["num_attention_heads"]

    def get_config(self) -> EvoTokDepthDecoderConfig:
        sizes = {"codebook_size": 32, "codebook_dim": 8, "num_codebooks": 2, "backbone_hidden_size": 24}
        return EvoTokDepthDecoderConfig(**DEPTH, **sizes)

    def prepare_config_and_inputs_for_common(self) -> tuple:
        inputs = {"hidden_states": random_floats(BATCH, 24), "code_embeddings": random_floats(BATCH, 2, 8)}
        return self.get_config(), inputs


class MultimodalTester(ModelTester):
    """Tester of both multimodal models: an input image, then text; the states are the language model's."""

    model_classes = (EvoTokModel, EvoTokForConditionalGeneration)
    seq_length = POSITIONS + 7
    hidden_size = TEXT["hidden_size"]
    num_attention_heads = TEXT["num_attention_heads"]
    text_config = TEXT
    vision_config = ENCODER

    def get_config(self) -> EvoTokConfig:
        return EvoTokConfig(
            vq_config=dict(VQ),
            depth_decoder_config=dict(DEPTH),
            text_config=dict(TEXT),
            image_token_id=IMAGE,
            image_generation_token_id=GENERATED,
            vision_start_token_id=START,
            vision_end_token_id=END,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple:
        ids = torch.randint(END + 1, TEXT["vocab_size"], (BATCH, self.seq_length))
        ids[:, :POSITIONS] = IMAGE
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": random_floats(BATCH, 3, 16, 16),
        }
        return self.get_config(), inputs


TESTERS = (VQModelTester, DepthDecoderTester, MultimodalTester)
