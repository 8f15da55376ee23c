"""Files of prompts and tiny checkpoints for GenEval and GenAI-Bench."""

import json

import torch
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    SwinConfig,
)
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from evotok.eval.text_to_image.geneval import TASKS
from evotok.training.backbones.text_tokenizer import train_text_tokenizer


CLASSES = ("cat", "dog", "mouse")


def geneval_records():
    """Returns as many prompts of each task as the benchmark has, about cats and dogs."""
    cat, dog = {"class": "cat", "count": 1}, {"class": "dog", "count": 1}
    forms = {
        "single_object": {"include": [cat], "prompt": "a cat"},
        "two_object": {"include": [cat, dog], "prompt": "a cat, a dog"},
        "counting": {
            "include": [cat | {"count": 2}],
            "exclude": [cat | {"count": 3}],
            "prompt": "a cat, a cat",
        },
        "colors": {"include": [dog | {"color": "red"}], "prompt": "the red dog"},
        "position": {"include": [dog, cat | {"position": ["left of", 0]}], "prompt": "a cat, the dog"},
        "color_attr": {"include": [cat | {"color": "red"}, dog | {"color": "blue"}], "prompt": "the red cat, a dog"},
    }
    return [{"tag": task} | forms[task] for task, count in TASKS.items() for _ in range(count)]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def save_detector(folder, sees):
    """Saves a tiny Mask2Former that detects one of `CLASSES`, or nothing, all over every image."""
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight.zero_()
        model.class_predictor.bias.zero_()
        model.class_predictor.bias[CLASSES.index(sees) if sees else len(CLASSES)] = 8
        projection = model.model.pixel_level_module.decoder.mask_projection
        projection.weight.zero_()
        projection.bias.fill_(1)
        embedder = next(layer for layer in model.modules() if type(layer).__name__ == "Mask2FormerMLPPredictionHead")
        last = [layer for layer in embedder.modules() if isinstance(layer, torch.nn.Linear)][-1]
        last.weight.zero_()
        last.bias.fill_(1)
    model.save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(folder)
    return str(folder)


def save_color_model(folder):
    """Saves a tiny random SigLIP."""
    torch.manual_seed(0)
    tokenizer = train_text_tokenizer(["a photo of a red cat, a blue dog, a green-colored object"] * 4, vocab_size=300)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config=sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "projection_size": 16},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
    )
    model = SiglipModel(config)
    for parameter in model.parameters():  # otherwise all texts have similar features
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    SiglipProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def save_rewriter(folder, chat=True):
    """Saves a tiny random chat model."""
    torch.manual_seed(0)
    tokenizer = train_text_tokenizer(["rewrite the prompt, a cat, a dog, the red one"] * 4, vocab_size=300)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token, pad_token=tokenizer.pad_token
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}" if chat else None
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
