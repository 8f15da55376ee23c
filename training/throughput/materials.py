"""Synthetic materials of the benchmark of training: image files, conversations, code shards, a model's config.

What the figures depend on is real: formats and sizes of files, lengths of rows, shapes of the model. Images, texts,
codes and weights are random.
"""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...data.code_shards import ShardInfo, ShardWriter
from ...data.world.conversations import corpus
from ...data.world.icons import load_world
from ...eval.benchmarks.encoding import synthetic_photo
from ...modeling_evotok.configuration_evotok import EvoTokConfig, EvoTokVQConfig
from ...modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ...processing.processing_evotok import EvoTokProcessor
from ..backbones.text_tokenizer import train_text_tokenizer


class Shapes(NamedTuple):
    """Sizes of a model and of its data.

    Args:
        image_side: least side of the image files in pixels.
        images: number of files.
        words: of a question, of its answer, and of a caption; a word is about one token. With the chat template, rows
            have the lengths that `evotok plan` counts.
        vq, depth, text: fields of the configs; none are the paper's.
    """

    image_side: int
    images: int
    words: tuple[int, int, int]
    vq: dict[str, Any]
    depth: dict[str, Any]
    text: dict[str, Any]


_ENCODER = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "vision_use_head": False,
}  # fmt: skip
SHAPES = {
    "paper": Shapes(448, 256, (32, 95, 40), {}, {}, {}),
    "full": Shapes(96, 128, (32, 95, 20), {}, {}, {}),  # data for EvoTok-mini, whose config is in its checkpoint
    "tiny": Shapes(
        40, 8, (6, 8, 6),
        vq={
            "encoder_config": _ENCODER, "codebook_size": 32, "codebook_dim": 8, "num_codebooks": 4,
            "num_pixel_codebooks": 2, "pixel_latent_channels": 8, "pixel_base_channels": 8,
            "pixel_channel_multipliers": [1, 1, 1, 1], "pixel_num_res_blocks": 1, "pixel_norm_groups": 4,
            "semantic_hidden_size": 16, "semantic_num_hidden_layers": 1, "semantic_num_attention_heads": 2,
            "semantic_feature_dim": 16,
        },
        depth={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
        text={
            "model_type": "qwen2", "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        },
    ),
}  # fmt: skip
_VOCABULARY = 1000
_CODES = 1024  # images of a shard
_QUESTIONS = 8  # about each image


def write_images(folder: Path, shapes: Shapes) -> None:
    """Writes JPEG files of different sizes, each with its caption in `NAME.txt`, as the source `image-folder` reads."""
    folder.mkdir(parents=True)
    rng, noise, words = random.Random(0), np.random.default_rng(0), _words()
    for number in range(shapes.images):
        width, height = (rng.randint(shapes.image_side, shapes.image_side * 3 // 2) for _ in range(2))
        synthetic_photo(width, height, noise).save(folder / f"{number:05d}.jpg", quality=90)
        caption = " ".join(rng.choices(words, k=shapes.words[2]))
        (folder / f"{number:05d}.txt").write_text(caption, encoding="utf-8")


def write_conversations(path: Path, images: Path, shapes: Shapes) -> None:
    """Writes questions with an answer about each image, in LLaVA's format, enough for one epoch."""
    rng, words = random.Random(1), _words()
    question, answer, _ = shapes.words
    rows = []
    for image in _QUESTIONS * sorted(images.glob("*.jpg")):
        texts = [" ".join(rng.choices(words, k=count)) for count in (question, answer)]
        messages = [{"from": "human", "value": f"<image>\n{texts[0]}"}, {"from": "gpt", "value": texts[1]}]
        rows.append({"id": image.stem, "image": image.name, "conversations": messages})
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_codes(folder: Path, vq_model: EvoTokVQModel, processor: EvoTokProcessor, shapes: Shapes) -> None:
    """Writes a code shard of this image tokenizer, with random codes and captions as those of the images."""
    folder.mkdir(parents=True)
    info = ShardInfo.of(vq_model, processor.image_processor, "synthetic")
    rng, words = random.Random(2), _words()
    captions = [" ".join(rng.choices(words, k=shapes.words[2])) for _ in range(_CODES)]
    size = (_CODES, info.positions, info.levels)
    codes = np.random.default_rng(2).integers(0, vq_model.config.codebook_size, size)
    writer = ShardWriter(folder / "00000.parquet", info)
    writer.write([str(number) for number in range(_CODES)], captions, codes)
    writer.close(skipped=0)


def build_processor(shapes: Shapes) -> EvoTokProcessor:
    """Builds a processor with a text tokenizer of its own; the ids are below any vocabulary of [`SHAPES`]."""
    config = EvoTokVQConfig(**shapes.vq)
    tokenizer = train_text_tokenizer(corpus(load_world(), 200), _VOCABULARY)
    return EvoTokProcessor.from_parts(tokenizer, image_size=config.image_size, num_image_tokens=config.num_positions)


def write_config(folder: Path, shapes: Shapes, processor: EvoTokProcessor) -> None:
    """Writes the config of the multimodal model, which `evotok plan` reads, without weights."""
    tokenizer = processor.tokenizer
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    text = (shapes.text or EvoTokConfig().text_config.to_dict()) | ids
    config = EvoTokConfig(vq_config=dict(shapes.vq), depth_decoder_config=dict(shapes.depth), text_config=text)
    for name, token_id in processor.token_ids.items():
        setattr(config, name, token_id)
    config.save_pretrained(folder)


def build_model(folder: Path, device: str) -> EvoTokForConditionalGeneration:
    """Builds the model of a config in float32, with random weights, on a device."""
    torch.manual_seed(0)
    with torch.device(device):
        return EvoTokForConditionalGeneration._from_config(EvoTokConfig.from_pretrained(folder), dtype=torch.float32)


def build_tokenizer(fields: dict[str, Any], device: str) -> EvoTokVQModel:
    """Builds an image tokenizer of these fields of its config, with random weights, on a device."""
    torch.manual_seed(0)
    with torch.device(device):
        return EvoTokVQModel(EvoTokVQConfig(**fields))


def _words() -> list[str]:
    """Returns words of the world's texts, most of which are one token each."""
    return sorted({word for text in corpus(load_world(), 50) for word in text.split() if word.isalpha()})
