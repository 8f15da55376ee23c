"""A small generator on the pixel codes of a tokenizer, trained alike on each tokenizer of a comparison.

A label (thing, colour, background) determines a tidy scene of one thing. A language model of a few layers reads the
label and writes the scene's codes with a depth decoder, as EvoTok does. Of labels that were not among those it learnt,
it must put together what it knows of things, colours and backgrounds.

Shapes: I scenes, N positions, L levels that pixels are decoded of.
"""

import random
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from ..data.world.drawings import World
from ..data.world.images import scene_pixels
from ..data.world.palette import COLORS
from ..data.world.scenes import Scene, stands_out, tidy_scene
from ..data.world.splits import is_new_color_pair
from ..modeling_evotok.configuration_evotok import EvoTokConfig
from ..modeling_evotok.modeling_evotok import IGNORE_INDEX, EvoTokForConditionalGeneration
from ..modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from .arguments import OptimizerArguments
from .optimizers import optimizer_choice


SCENES = 1024
PROMPTS = 256
_BATCH = 32
_WIDTH, _DEPTH_WIDTH = 128, 96
_NEVER_RUN = {  # the generator's own encoder and decoders: codes come from, and go to, the tokenizer that is compared
    "pixel_latent_channels": 8,
    "pixel_base_channels": 8,
    "pixel_num_res_blocks": 0,
    "pixel_norm_groups": 4,
    "semantic_hidden_size": 8,
    "semantic_num_hidden_layers": 1,
    "semantic_num_attention_heads": 1,
    "semantic_feature_dim": 8,
}


class Label(NamedTuple):
    """What a scene shows; colours are indices into `COLORS`."""

    thing: int
    color: int
    background: int

    def scene(self, world: World) -> Scene:
        """The tidy scene of one thing that this label stands for."""
        return tidy_scene(world, [(self.thing, COLORS[self.color])], COLORS[self.background])


def split_labels(world: World) -> tuple[list[Label], list[Label]]:
    """Labels to learn and labels to be asked for, `SCENES` and `PROMPTS` of them: disjoint, always the same, without
    held-out pairs of thing and colour."""
    labels = [
        Label(thing.index, color, background)
        for thing in world.things
        for color, name in enumerate(COLORS)
        for background, other in enumerate(COLORS)
        if stands_out(name, other) and not is_new_color_pair(thing.index, name)
    ]
    chosen = random.Random("generator").sample(labels, SCENES + PROMPTS)
    return chosen[:SCENES], chosen[SCENES:]


class LabelledCodes(Dataset):
    """Labels (I, 3) and codes (I, N, L)."""

    def __init__(self, labels: torch.Tensor, codes: torch.Tensor):
        self.labels, self.codes = labels, codes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.labels[index], self.codes[index]


class Vocabulary(NamedTuple):
    """Token ids: things, then colours, then backgrounds, then those of the config."""

    things: int

    @property
    def first_special(self) -> int:
        """The first id that is no label."""
        return self.things + 2 * len(COLORS)

    @property
    def special(self) -> dict[str, int]:
        """Fields of [`EvoTokConfig`]."""
        names = ("vision_start_token_id", "vision_end_token_id", "image_generation_token_id", "image_token_id")
        return {name: self.first_special + number for number, name in enumerate(names)}

    def prompts(self, labels: torch.Tensor) -> torch.Tensor:
        """(I, 3) -> (I, 4), each row ending where an image begins."""
        offsets = torch.tensor([0, self.things, self.things + len(COLORS)])
        start = torch.full((len(labels), 1), self.special["vision_start_token_id"])
        return torch.cat([labels + offsets, start], dim=1)


def build_generator(tokenizer: EvoTokVQModel, levels: int, vocabulary: Vocabulary) -> EvoTokForConditionalGeneration:
    """A generator of random weights for the pixel codes of a tokenizer, whose codebooks it has.

    Args:
        tokenizer: or a variant of it; one with a trajectory for pixels alone has it in `pixel_quantizer`.
        levels: of which pixels are decoded.
    """
    source = tokenizer.config
    encoder = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    encoder |= {"image_size": source.image_size, "patch_size": source.encoder_config.patch_size}
    vq_config = {
        "encoder_config": encoder | {"model_type": "siglip_vision_model", "vision_use_head": False},
        "codebook_size": source.codebook_size,
        "codebook_dim": source.codebook_dim,
        "num_codebooks": levels,
        "num_pixel_codebooks": levels,
        "pixel_channel_multipliers": [1] * len(source.pixel_channel_multipliers),
    }
    text_config = {
        "model_type": "qwen2",
        "vocab_size": vocabulary.first_special + len(vocabulary.special),
        "hidden_size": _WIDTH,
        "intermediate_size": 3 * _WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.06,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    depth_config = {
        "hidden_size": _DEPTH_WIDTH,
        "intermediate_size": 3 * _DEPTH_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "hidden_dropout": 0.0,
        "initializer_range": 0.07,
    }
    config = EvoTokConfig(
        vq_config=vq_config | _NEVER_RUN,
        text_config=text_config,
        depth_decoder_config=depth_config,
        initializer_range=0.06,
        tie_word_embeddings=True,
        **vocabulary.special,
    )
    model = EvoTokForConditionalGeneration(config)
    codebooks = getattr(tokenizer, "pixel_quantizer", tokenizer.quantizer).codebooks[:levels]
    for own, given in zip(model.model.vq_model.quantizer.codebooks, codebooks, strict=True):
        own.load_state_dict(given.state_dict())
    return model.to(tokenizer.device)


def generated_share(
    tokenizer: EvoTokVQModel, levels: int, world: World, steps: int, seed: int, folder: str | Path
) -> float:
    """Train a generator on a tokenizer's pixel codes; the share of labels whose scene it generates.

    A generated image counts if no scene of any other thing and colour on the background that was asked for is nearer to
    it (mean squared error) than the one of its label.

    Args:
        tokenizer: in evaluation mode.
        levels: of which pixels are decoded.
        steps: of training, in batches of 32.
        seed: of the generator's weights and the order of its samples.
        folder: of the trainer, which saves nothing there.
    """
    taught, asked = split_labels(world)
    vocabulary = Vocabulary(len(world.things))
    pixels = scene_pixels(world, [label.scene(world) for label in taught])
    with torch.inference_mode():
        codes = [tokenizer.encode(batch.to(tokenizer.device))[..., :levels].cpu() for batch in pixels.split(2 * _BATCH)]
    torch.manual_seed(seed)
    model = build_generator(tokenizer, levels, vocabulary)
    _train(model, LabelledCodes(torch.tensor(taught), torch.cat(codes).clone()), vocabulary, steps, seed, folder)
    images = []
    for batch in vocabulary.prompts(torch.tensor(asked)).split(2 * _BATCH):
        ids = batch.to(tokenizer.device)
        written = model.generate_images(ids, attention_mask=torch.ones_like(ids), do_sample=False, guidance_scale=1.0)
        with torch.inference_mode():
            images.append(tokenizer.decode_pixels(written).clamp(-1, 1).cpu())
    return nearest_share(world, asked, torch.cat(images))


def _train(
    model: EvoTokForConditionalGeneration,
    data: LabelledCodes,
    vocabulary: Vocabulary,
    steps: int,
    seed: int,
    folder: str | Path,
) -> None:
    token_id, positions = model.config.image_generation_token_id, data.codes.shape[1]

    def collate(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
        labels, codes = (torch.stack(column) for column in zip(*rows, strict=True))
        prompts = vocabulary.prompts(labels)
        images = torch.full((len(rows), positions), token_id)
        targets = torch.cat([torch.full_like(prompts, IGNORE_INDEX), images], dim=1)
        return {"input_ids": torch.cat([prompts, images], dim=1), "labels": targets, "generation_codes": codes}

    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=_BATCH,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=min(20, steps // 4),
        adam_beta2=0.95,
        max_grad_norm=1.0,
        seed=seed,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=collate,
        **optimizer_choice(OptimizerArguments(name="muon"), arguments),
    ).train()
    model.eval()


def nearest_share(world: World, labels: list[Label], images: torch.Tensor) -> float:
    """Share of images (I, 3, 64, 64) to which the scene of their label is the nearest of all things in all colours."""
    right = 0
    for background in sorted({label.background for label in labels}):
        others = [Label(thing.index, color, background) for thing in world.things for color in range(len(COLORS))]
        scenes = scene_pixels(world, [label.scene(world) for label in others]).flatten(1)
        for index, label in enumerate(labels):
            if label.background == background:
                distances = (scenes - images[index].flatten()).square().mean(1)
                right += others[int(distances.argmin())] == label
    return right / len(labels)
