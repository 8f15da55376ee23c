"""A small generator on the pixel codes of a tokenizer, trained in the same way on each tokenizer of a comparison.

A label (thing, colour, background) determines a tidy scene of one thing. An embedding of the thing at each position is
combined with colour and background, and a depth decoder, as EvoTok's, generates the codes of the position level by
level. Labels that were not in the training data must be composed of known parts.

Shapes: B rows, N positions, L levels that pixels are decoded from, H width, C codebook width, K codebook size.
"""

import random
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from ...data.world.icons import World
from ...data.world.images import scene_pixels
from ...data.world.palette import COLORS
from ...data.world.scenes import PATCH, SLOTS, TIDY_SIZE, Scene, is_held_out_color, stands_out, tidy_scene
from ...modeling_evotok.configuration_evotok import EvoTokDepthDecoderConfig
from ...modeling_evotok.modeling_evotok_depth import EvoTokDepthDecoder
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ..optimizers import optimizer_choice
from ..recipes import OptimizerArguments


SCENES = 1024
PROMPTS = 256
_BATCH = 1024  # positions a step
_BACKGROUND_STRIDE = 6  # of the positions without the thing one in so many is trained for each label
_WIDTH, _DEPTH_WIDTH = 128, 96


class Label(NamedTuple):
    """Content of a scene; colours are indices into `COLORS`."""

    thing: int
    color: int
    background: int

    def scene(self, world: World) -> Scene:
        """Returns the tidy scene of one thing with this label."""
        return tidy_scene(world, [(self.thing, COLORS[self.color])], COLORS[self.background])


def split_labels(world: World) -> tuple[list[Label], list[Label]]:
    """Returns `SCENES` training labels and `PROMPTS` test labels: disjoint, always the same, without held-out pairs of
    thing and colour."""
    labels = [
        Label(thing.index, color, background)
        for thing in world.things
        for color, name in enumerate(COLORS)
        for background, other in enumerate(COLORS)
        if stands_out(name, other) and not is_held_out_color(thing.index, name)
    ]
    chosen = random.Random("generator").sample(labels, SCENES + PROMPTS)
    return chosen[:SCENES], chosen[SCENES:]


def training_positions(number: int, grid_size: int) -> list[int]:
    """Returns the trained positions of a label: all of the thing, and a part of the others, different for each label.

    Args:
        number: of the label.
        grid_size: positions in a row.
    """
    [(left, top)] = SLOTS[1]
    columns, rows = (range(start // PATCH, (start + TIDY_SIZE) // PATCH) for start in (left, top))
    inside = [row * grid_size + column for row in rows for column in columns]
    outside = [position for position in range(grid_size**2) if position not in inside]
    return inside + outside[number % _BACKGROUND_STRIDE :: _BACKGROUND_STRIDE]


class LabelledCodes(Dataset):
    """Data set of the codes of single positions.

    Args:
        labels: (I, 3).
        codes: (I, N, L).
    """

    def __init__(self, labels: torch.Tensor, codes: torch.Tensor):
        self.labels, self.codes = labels, codes
        grid_size = round(codes.shape[1] ** 0.5)
        self.rows = [(i, position) for i in range(len(labels)) for position in training_positions(i, grid_size)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Returns `labels` (3,), `positions` () and `codes` (L,)."""
        row, position = self.rows[index]
        return {"labels": self.labels[row], "positions": torch.tensor(position), "codes": self.codes[row, position]}


class LabelGenerator(nn.Module):
    """Generator of the codes of a label's scene.

    Args:
        tokenizer: or a variant of it; one with a separate trajectory for pixels has it in `pixel_quantizer`.
        levels: number of levels that pixels are decoded from.
        num_things: of the world.
    """

    codebooks: torch.Tensor  # (L, K, C)

    def __init__(self, tokenizer: EvoTokVQModel, levels: int, num_things: int):
        super().__init__()
        config, colors = tokenizer.config, len(COLORS)
        self.num_positions = config.num_positions
        quantizer = getattr(tokenizer, "pixel_quantizer", tokenizer.quantizer)
        self.register_buffer("codebooks", quantizer.stack_codebooks(levels, tokenizer.device))
        self.shape_embed = nn.Embedding(num_things * self.num_positions, _WIDTH)
        self.color_embed, self.background_embed = nn.Embedding(colors, _WIDTH), nn.Embedding(colors, _WIDTH)
        for table in (self.shape_embed, self.color_embed, self.background_embed):
            nn.init.normal_(table.weight, std=0.02)  # small beside trained weights
        self.mixer = nn.Sequential(
            nn.LayerNorm(3 * _WIDTH), nn.Linear(3 * _WIDTH, 3 * _WIDTH), nn.GELU(), nn.Linear(3 * _WIDTH, _WIDTH)
        )
        self.depth_decoder = EvoTokDepthDecoder(
            EvoTokDepthDecoderConfig(
                codebook_size=config.codebook_size,
                codebook_dim=config.codebook_dim,
                num_codebooks=levels,
                backbone_hidden_size=_WIDTH,
                hidden_size=_DEPTH_WIDTH,
                intermediate_size=3 * _DEPTH_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=3,
                hidden_dropout=0.0,
                initializer_range=0.07,
            )
        )

    def _hidden(self, labels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Returns hidden states: (B, 3), (B,) -> (B, H)."""
        thing, color, background = labels.unbind(-1)
        shape = self.shape_embed(thing * self.num_positions + positions)
        return self.mixer(torch.cat([shape, self.color_embed(color), self.background_embed(background)], dim=-1))

    def forward(self, labels: torch.Tensor, positions: torch.Tensor, codes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `loss`, the cross-entropy of codes (B, L) at positions (B,) of labels (B, 3)."""
        embeddings = torch.stack([table[own] for table, own in zip(self.codebooks, codes.unbind(-1), strict=True)], 1)
        return {"loss": self.depth_decoder.loss(self._hidden(labels, positions), embeddings, codes).loss}

    @torch.inference_mode()
    def generate(self, labels: torch.Tensor) -> torch.Tensor:
        """Generates the most likely code level by level: (B, 3) -> (B, N, L)."""
        positions = torch.arange(self.num_positions, device=labels.device).repeat(len(labels))
        hidden = self._hidden(labels.repeat_interleave(self.num_positions, dim=0), positions)
        codes, _ = self.depth_decoder.generate_codes(hidden, self.codebooks, lambda logits: logits.argmax(-1))
        return codes.unflatten(0, (len(labels), self.num_positions))


def generated_share(
    tokenizer: EvoTokVQModel, levels: int, world: World, steps: int, seed: int, folder: str | Path
) -> float:
    """Trains a generator on a tokenizer's pixel codes; returns the share of test labels whose scene it generates.

    Args:
        tokenizer: in evaluation mode.
        levels: number of levels that pixels are decoded from.
        steps: of training, of 1,024 positions each.
        seed: of the generator's weights and the order of its rows.
        folder: output folder of the trainer, which saves nothing.
    """
    training, test = split_labels(world)
    pixels = scene_pixels(world, [label.scene(world) for label in training]).split(64)
    codes = torch.cat([tokenizer.encode(batch.to(tokenizer.device))[..., :levels].cpu() for batch in pixels])
    torch.manual_seed(seed)
    model = LabelGenerator(tokenizer, levels, len(world.things)).to(tokenizer.device)
    _train(model, LabelledCodes(torch.tensor(training), codes), steps, seed, folder)
    generated = torch.cat([model.generate(batch.to(tokenizer.device)) for batch in torch.tensor(test).split(64)])
    with torch.inference_mode():
        images = [tokenizer.decode_pixels(batch).clamp(-1, 1).cpu() for batch in generated.split(64)]
    return nearest_share(world, test, torch.cat(images))


def _train(model: LabelGenerator, data: LabelledCodes, steps: int, seed: int, folder: str | Path) -> None:
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
        use_cpu=data.codes.device == model.codebooks.device,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    muon = optimizer_choice(OptimizerArguments(name="muon"), arguments)
    Trainer(model=model, args=arguments, train_dataset=data, optimizer_cls_and_kwargs=muon).train()
    model.eval()


def nearest_share(world: World, labels: list[Label], images: torch.Tensor) -> float:
    """Returns the share of images (I, 3, 64, 64) whose nearest scene (mean squared error), of all things in all colours
    on the background of their label, is that of their label."""
    right = 0
    for background in sorted({label.background for label in labels}):
        others = [Label(thing.index, color, background) for thing in world.things for color in range(len(COLORS))]
        scenes = scene_pixels(world, [label.scene(world) for label in others]).flatten(1)
        for index, label in enumerate(labels):
            if label.background == background:
                distances = (scenes - images[index].flatten()).square().mean(1)
                right += others[int(distances.argmin())] == label
    return right / len(labels)
