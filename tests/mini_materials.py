"""Tiny model of the world's image size, with a vision tower that fits its tokenizer."""

import torch
from conftest import TINY_VQ, build_tiny_model, tiny_config
from transformers import SiglipVisionConfig, SiglipVisionModel

from evotok import EvoTokProcessor
from evotok.data.world.conversations import corpus
from evotok.training.backbones.text_tokenizer import train_text_tokenizer


LEVELS, PIXEL_LEVELS = TINY_VQ["num_codebooks"], TINY_VQ["num_pixel_codebooks"]


def save_mini(folder, world, guidance_min_p: float = 0.3) -> str:
    """Saves random weights for 64 px in `folder/gen`, which is returned, and the tower in `folder/vision`."""
    encoder = TINY_VQ["encoder_config"] | {"image_size": 64}
    tokenizer = train_text_tokenizer(corpus(world, 40), vocab_size=400)
    processor = EvoTokProcessor.from_parts(tokenizer, image_size=64, num_image_tokens=64)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = tiny_config({"vocab_size": len(tokenizer), "max_position_embeddings": 512} | ids)
    config.vq_config = type(config.vq_config)(**TINY_VQ | {"encoder_config": encoder})
    for name, token_id in processor.token_ids.items():
        setattr(config, name, token_id)
    model = build_tiny_model(config)
    model.generation_config.guidance_min_p = guidance_min_p
    model.save_pretrained(folder / "gen")
    processor.save_pretrained(folder / "gen")
    save_tower(folder / "vision", TINY_VQ["semantic_feature_dim"])
    return str(folder / "gen")


def save_tower(folder, width: int) -> None:
    """Saves a random vision tower of two layers for 64 px, patches of 8."""
    torch.manual_seed(0)
    sizes = TINY_VQ["encoder_config"] | {"image_size": 64, "hidden_size": width, "num_hidden_layers": 2}
    SiglipVisionModel(SiglipVisionConfig(**sizes)).save_pretrained(folder)
