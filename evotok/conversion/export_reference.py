"""Writes a checkpoint of EvoTok in the release's format: `last.pt`, and for a full model also `rqtransformer.bin` and a
folder each for understanding and for generation, which the release runs as two models.

Tensors that the release's loaders need and its models never run (the encoder's last layer and head, classifiers beyond
the pixel levels, padding rows of the codebooks) are zeros.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, PreTrainedTokenizerBase

from evotok import EvoTokConfig, EvoTokDepthDecoderConfig, EvoTokProcessor, EvoTokVQConfig
from evotok.conversion.key_maps import (
    DEPTH_RULES,
    LANGUAGE_RULES,
    PROJECTOR_RULES,
    TOKENIZER_RULES,
    add_prefix,
    convert_to_reference,
    select_prefix,
)
from evotok.conversion.language import APPENDED, EMBEDDING, LM_HEAD


_USAGE_ROWS = 131072  # of the release's record of recent codes
_SHARD = "5GB"
# Of Transformers 5, for a `tokenizer.json` of no particular model.
_GENERIC_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerBase", None)
_TOWER, _DEPTH, _PROJECTOR = (
    "model.vision_tower.vision_tower.",
    "model.vision_tower.rqtransformer.",
    "model.mm_projector.",
)


def export_reference(source: Path, out: Path, final: Path) -> None:
    """Converts the checkpoint in `source` into files in the folder `out`.

    Args:
        source: folder of an image tokenizer or a full model.
        out: folder to write into.
        final: its path after it is renamed, for the path of `last.pt` in the language models' configs.

    Raises:
        ValueError: the weights do not fit the config.
    """
    weights: dict[str, Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        weights |= load_file(path)
    kind = json.loads((source / "config.json").read_text(encoding="utf-8"))["model_type"]
    config = None if kind == EvoTokVQConfig.model_type else EvoTokConfig.from_pretrained(source)
    vq_config = EvoTokVQConfig.from_pretrained(source) if config is None else config.vq_config
    try:
        tower = _tokenizer(select_prefix(weights, "" if config is None else "model.vq_model."), vq_config)
        arguments = _arguments(vq_config, None if config is None else config.depth_decoder_config)
        torch.save({"model": tower, "steps": 0, "args": arguments}, out / "last.pt")
        if config is not None:
            _write_models(weights, config, tower, source, out, final)
    except KeyError as error:
        raise ValueError(f"{source}: the weights lack {error}: they are not of this config.json.") from None


def _write_models(
    weights: dict[str, Tensor], config: EvoTokConfig, tower: dict[str, Tensor], source: Path, out: Path, final: Path
) -> None:
    processor = EvoTokProcessor.from_pretrained(source) if (source / "tokenizer_config.json").is_file() else None
    depth = add_prefix(_DEPTH, _depth_decoder(select_prefix(weights, "depth_decoder."), config))
    torch.save(depth, out / "rqtransformer.bin")
    language = add_prefix("language_model.", select_prefix(weights, "model.language_model."))
    language |= {name: x for name, x in weights.items() if name == LM_HEAD}
    language = convert_to_reference(LANGUAGE_RULES, language)
    language, size, appended = _with_image_tokens_last(language, config, processor)
    for mode, name in (("understanding", "semantic_projector"), ("generation", "pixel_projector")):
        folder = out / mode
        folder.mkdir()
        projector = convert_to_reference(PROJECTOR_RULES, select_prefix(weights, f"model.{name}."))
        torch.save(add_prefix(_PROJECTOR, projector), folder / "mm_projector.bin")
        tensors = language | add_prefix(_PROJECTOR, projector) | add_prefix(_TOWER, tower)
        tensors |= depth if mode == "generation" else {}
        # Tensors that share a storage (tied tables, a layer of zeros) are written under each name.
        save_torch_state_dict(tensors, folder, max_shard_size=_SHARD)
        fields = _config(config, mode, size, language[EMBEDDING].dtype, projector["0.weight"].shape[1])
        fields["mm_use_im_start_end"] = mode == "generation" or _frames_images(processor)
        fields["mm_vision_tower"] = str(final / "last.pt")
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        if processor is not None:
            _write_text_tokenizer(processor.tokenizer, folder, size, appended)


def _tokenizer(ours: dict[str, Tensor], config: EvoTokVQConfig) -> dict[str, Tensor]:
    ours = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in ours.items()}
    for level in range(config.num_codebooks):
        book = f"quantizer.codebooks.{level}."
        if not config.codebook_keeps_sums:
            ours[book + "vector_sum"] = ours[book + "weight"] * ours[book + "cluster_size"][:, None]
    theirs = convert_to_reference(TOKENIZER_RULES, ours)
    for name, shape in _unused_encoder(config).items():
        theirs.setdefault(f"encoder_vqkd.{name}", torch.zeros(shape))
    theirs = {name.replace("encoder_vqkd.", "encoder_vqkd.vision_model.", 1): x for name, x in theirs.items()}
    theirs["quantize.codebook_used"] = torch.zeros(_USAGE_ROWS, config.num_codebooks)
    return theirs | {f"scaling_layer.{name}": torch.full((1, 3, 1, 1), 0.5) for name in ("shift", "scale")}


def _unused_encoder(config: EvoTokVQConfig) -> dict[str, torch.Size]:
    """Returns names and shapes of a SigLIP encoder with its last layer and its head."""
    fields = config.encoder_config.to_dict()
    fields |= {"num_hidden_layers": fields["num_hidden_layers"] + 1, "vision_use_head": True}
    with torch.device("meta"):
        model = AutoModel.from_config(type(config.encoder_config)(**fields))
    return {name.removeprefix("vision_model."): tensor.shape for name, tensor in model.state_dict().items()}


def _depth_decoder(ours: dict[str, Tensor], config: EvoTokConfig) -> dict[str, Tensor]:
    theirs = convert_to_reference(DEPTH_RULES, ours)
    for level in range(config.vq_config.num_pixel_codebooks, config.vq_config.num_codebooks):
        for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
            theirs[f"classifiers.{level}.{name}"] = torch.zeros_like(theirs[f"classifiers.0.{name}"])
    return theirs


def _arguments(config: EvoTokVQConfig, depth: EvoTokDepthDecoderConfig | None) -> argparse.Namespace:
    """Returns the sizes that no tensor has, for the conversion back."""
    heads = {} if depth is None else {"depth_heads": depth.num_attention_heads}
    return argparse.Namespace(
        teacher=f"siglip_{config.image_size}",
        image_size=config.image_size,
        encoder_heads=config.encoder_config.num_attention_heads,
        semantic_heads=config.semantic_num_attention_heads,
        pixel_levels=config.num_pixel_codebooks,
        **heads,
    )


def _with_image_tokens_last(
    language: dict[str, Tensor], config: EvoTokConfig, processor: EvoTokProcessor | None
) -> tuple[dict[str, Tensor], int, bool]:
    """Returns tables whose last two rows are the start and end of image, as in the release; their rows; whether rows
    were appended.

    In a model that was converted these rows are the last ones, but for placeholders of EvoTok. Otherwise a padding row
    and copies of the two rows are appended.
    """
    start, end = config.vision_start_token_id, config.vision_end_token_id
    size = config.text_config.vocab_size if processor is None else len(processor.tokenizer)
    placeholders = {config.image_token_id, config.image_generation_token_id}
    tables = {name: language[name] for name in (EMBEDDING, LM_HEAD) if name in language}
    named = processor is None or (processor.vision_start_token, processor.vision_end_token) == APPENDED[1:]
    if named and end == start + 1 and set(range(end + 1, size)) <= placeholders:
        return language | {name: table[: end + 1].clone() for name, table in tables.items()}, end + 1, False
    for name, table in tables.items():
        padding = table[:size].float().mean(0, keepdim=True).to(table.dtype)
        tables[name] = torch.cat([table[:size], padding, table[start][None], table[end][None]])
    return language | tables, size + len(APPENDED), True


def _frames_images(processor: EvoTokProcessor | None) -> bool:
    """Returns whether input images are between start and end tokens, as in all but some converted models."""
    if processor is None:
        return True
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)
    return processor.vision_start_token in text


def _config(config: EvoTokConfig, mode: str, size: int, dtype: torch.dtype, width: int) -> dict[str, Any]:
    """Builds `config.json` as Transformers 4 and the release write it."""
    fields = config.text_config.to_dict()
    rope = fields.pop("rope_parameters")
    for name in ("layer_types", "dtype", "transformers_version", "_name_or_path"):
        fields.pop(name, None)
    if rope.get("rope_type", "default") != "default":
        fields["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return fields | {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "vocab_size": size,
        "rope_theta": rope["rope_theta"],
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "mm_hidden_size": width,
        "mm_projector_type": "mlp2x_gelu",
        # The release's code reads these without a default. It ignores the first two; the third would add a token, and
        # shift the id of the start of images by one.
        "mm_vision_select_layer": -2,
        "mm_use_vi_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_vision_vq_type": "EVOTOK",
        "mm_vision_vq_model_type": f"siglip_{config.vq_config.image_size}",
        "mm_with_depth_transformer": mode == "generation",
    }


def _write_text_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, size: int, appended: bool) -> None:
    """Writes a tokenizer of exactly `size` tokens: the release counts them to find its image tokens."""
    if appended:
        tokenizer.add_tokens([token for token in APPENDED if token not in tokenizer.get_vocab()], special_tokens=True)
    tokenizer.save_pretrained(folder)
    _as_transformers_4(folder / "tokenizer_config.json")
    beyond = {token for token, index in tokenizer.get_vocab().items() if index >= size}
    if not beyond:
        return
    for name in ("tokenizer.json", "tokenizer_config.json"):  # placeholders of EvoTok, at the end
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8"))
        for key in ("added_tokens", "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"):
            if key in content:
                content[key] = _without(content[key], beyond)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _as_transformers_4(path: Path) -> None:
    """Renames fields of a tokenizer's config as in the release's version of Transformers, 4.51."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("tokenizer_class") in _GENERIC_CLASSES:
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(content.get("extra_special_tokens"), list):  # a dict there, of tokens with names
        content["additional_special_tokens"] = content.pop("extra_special_tokens")
    content = {
        name: value
        for name, value in content.items()
        if name not in ("backend", "is_local") and not (name == "add_prefix_space" and value is None)
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without(listed: list | dict, tokens: set[str]) -> list | dict:
    def text(entry: Any) -> Any:
        return entry.get("content") if isinstance(entry, dict) else entry

    if isinstance(listed, dict):
        return {key: entry for key, entry in listed.items() if text(entry) not in tokens}
    return [entry for entry in listed if text(entry) not in tokens]
