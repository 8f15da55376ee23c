"""The tokenizer stage: build model, teacher and data from a recipe, train, save."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from ..data.world.drawings import load_world
from ..data.world.images import WorldImages, held_out_scenes, scene_pixels
from ..modeling_evotok.configuration_evotok import EvoTokVQConfig
from ..modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from .arguments import Recipe
from .emoji.world import EmojiWorld
from .optimizers import optimizer_choice
from .streaming import build_stream
from .taught_images import TaughtImages, calibrated_teacher, taught_emoji
from .teachers import EfficientNetTeacher, SiglipTeacher, build_lpips
from .tokenizer_data import EmojiImages, ImageCollator, emoji_pixels, folder_pixels
from .tokenizer_trainer import TokenizerTrainer
from .tokenizer_variants import VARIANTS


FEATURES = "teacher-features"  # folder beside that of the model: trainings on the same samples share it


def build_tokenizer(recipe: Recipe) -> EvoTokVQModel:
    """The model a recipe starts from: the checkpoint before, a SigLIP2 encoder, or nothing."""
    arguments, cls = recipe.model, model_class(recipe)
    if arguments.checkpoint:
        return cls.from_pretrained(arguments.checkpoint)
    if arguments.encoder_checkpoint:
        return cls.from_pretrained_encoder(arguments.encoder_checkpoint, **arguments.config)
    return cls(EvoTokVQConfig(**arguments.config))


def model_class(recipe: Recipe) -> type[EvoTokVQModel]:
    """The tokenizer, or the variant of it that a recipe names.

    Raises:
        ValueError: a variant that is not known.
    """
    variant = recipe.model.variant
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"model.variant {variant!r} is not one of {', '.join(VARIANTS)}: leave it out for the method.")
    return VARIANTS[variant] if variant else EvoTokVQModel


def build_teacher(recipe: Recipe, model: EvoTokVQModel, calibration: torch.Tensor | None = None):
    """The frozen network that gives the semantic target, or None when the term has no weight.

    Args:
        recipe: names it.
        model: the tokenizer, not trained yet; its encoder is the teacher where both start from one checkpoint.
        calibration: images (I, 3, H, W) in [-1, 1] that the scales of EfficientNet's channels are taken from.
    """
    if not recipe.loss.semantic:
        return None
    if recipe.loss.teacher == "efficientnet":
        teacher = EfficientNetTeacher(model.config.grid_size)
        if calibration is not None:
            teacher.calibrate(calibration)
        return teacher
    if recipe.loss.teacher != "siglip":
        raise ValueError(f"loss.teacher {recipe.loss.teacher!r} is not one of siglip, efficientnet.")
    if recipe.model.encoder_checkpoint is None:
        raise ValueError("loss.teacher 'siglip' is made of SigLIP2's weights: give model.encoder_checkpoint.")
    if recipe.model.checkpoint is None:
        return SiglipTeacher(model.vision_tower)
    return SiglipTeacher.from_pretrained(recipe.model.encoder_checkpoint)


def build_perceptual(recipe: Recipe, teacher, device: torch.device):
    """Function (fake, real) -> distances, or None when the term has no weight.

    Raises:
        ValueError: LPIPS is asked for and its weights are not there; or a network that is not known.
    """
    if not recipe.loss.perceptual:
        return None
    if recipe.loss.perceptual_network == "lpips":
        return build_lpips().to(device)
    if recipe.loss.perceptual_network != "efficientnet":
        given = recipe.loss.perceptual_network
        raise ValueError(f"loss.perceptual_network {given!r} is not one of lpips, efficientnet.")
    if not isinstance(teacher, EfficientNetTeacher):
        teacher = EfficientNetTeacher().to(device)
    return teacher.perceptual_distance


def build_validation(
    recipe: Recipe, size: int, arguments: TrainingArguments, world: EmojiWorld | None
) -> torch.Tensor | None:
    """This process's share of the images that are held back, (I, 3, H, W) in [-1, 1], or None where there are none.

    Raises:
        ValueError: none, although the recipe asks for evaluation; or as [`folder_pixels`].
    """
    rank, world_size = arguments.process_index, arguments.world_size
    if recipe.data.validation_path:
        return folder_pixels(recipe.data.validation_path, size, recipe.data.validation_samples, rank, world_size)
    if world is not None:
        return emoji_pixels(world, "new_concept", 128)[rank::world_size]
    if arguments.eval_strategy != "no":
        raise ValueError("training.eval_strategy: nothing to measure: give data.validation_path, a folder of images.")
    return None


def taught_data(recipe: Recipe, grid_size: int, folder: Path) -> tuple[TaughtImages, EfficientNetTeacher]:
    """The samples of a recipe with `data.distinct`, and their teacher; the same objects when asked again.

    Args:
        folder: keeps the teacher's features.

    Raises:
        ValueError: a recipe whose samples no teacher can be asked about once and for all.
    """
    data, loss = recipe.data, recipe.loss
    if data.distinct < 1 or (data.name, loss.teacher) != ("emoji", "efficientnet") or not loss.semantic:
        raise ValueError(
            "data.distinct must be 1 or more, of data.name emoji, with loss.teacher efficientnet and loss.semantic "
            "above 0: correct them, or leave data.distinct out."
        )
    images = taught_emoji(data.path, data.distinct, tuple(data.mixture.items()), grid_size, folder)
    return images, calibrated_teacher(data.path, grid_size)


def train_tokenizer(recipe: Recipe, arguments: TrainingArguments, resume_from: str | None) -> dict[str, float]:
    """Train as the recipe says; the finished model lies in `output_dir`. Returns the figures, `eval_psnr...` too."""
    model = build_tokenizer(recipe)
    config = model.config
    samples = arguments.max_steps * arguments.train_batch_size * arguments.gradient_accumulation_steps
    samples *= arguments.world_size
    world = calibration = teacher = None
    held_out = None
    if recipe.data.name == "emoji":
        world = EmojiWorld(recipe.data.path)
    if recipe.data.distinct is not None:
        data, teacher = taught_data(recipe, config.grid_size, Path(arguments.output_dir).parent / FEATURES)
    elif world is not None:
        data = EmojiImages(world, samples, recipe.data.mixture or None, arguments.seed)
        calibration = emoji_pixels(world, "train", 512)
    elif recipe.data.name == "world":
        icons = load_world(recipe.data.path)
        data = WorldImages(icons, samples, recipe.data.mixture or None, arguments.seed)
        held_out = scene_pixels(icons, held_out_scenes(icons, "val", 256))
    elif recipe.data.name == "mixture":
        data = build_stream(recipe, arguments, ImageCollator(config.image_size, arguments.seed))
    else:
        raise ValueError(
            f"data.name {recipe.data.name!r}: this stage reads 'emoji', 'folder' or a 'mixture', give one."
        )
    if held_out is None:
        held_out = build_validation(recipe, config.image_size, arguments, world)
    teacher = teacher or build_teacher(recipe, model, calibration)
    trainer = TokenizerTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=data if held_out is not None else None,
        loss_args=recipe.loss,
        teacher=teacher,
        perceptual=build_perceptual(recipe, teacher, arguments.device),
        held_out=held_out,
        average_decay=recipe.optimizer.average_decay,
        **optimizer_choice(recipe.optimizer, arguments),
    )
    result = trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_metrics("train", result.metrics)
    held_out_figures = trainer.evaluate()
    trainer.save_model()
    return {"step": result.global_step} | result.metrics | held_out_figures
