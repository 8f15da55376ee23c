"""The tokenizer stage: builds model, teacher, data and trainer from a recipe."""

from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments
from transformers.utils import logging

from ...data.collators import ImageCollator
from ...data.image_files import folder_pixels
from ...data.stream_loader import build_stream
from ...data.world.icons import load_world
from ...data.world.images import WorldImages, held_out_scenes, scene_pixels
from ...data.world.scenes import CANVAS
from ...eval.teachers import EfficientNetTeacher, SiglipTeacher, build_lpips
from ...modeling_evotok.configuration_evotok import EvoTokVQConfig
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ..deepspeed_setup import tokenizer_engine
from ..recipes import Recipe, num_rows
from .trainer import TokenizerTrainer
from .variants import VARIANTS


logger = logging.get_logger(__name__)

HELD_OUT_SCENES = 256
_CALIBRATION_IMAGES = 512


def build_tokenizer(recipe: Recipe) -> EvoTokVQModel:
    """Builds the model that a recipe starts from: the checkpoint before, a SigLIP2 encoder, or random weights."""
    arguments, cls = recipe.model, model_class(recipe)
    if arguments.checkpoint:
        return cls.from_pretrained(arguments.checkpoint)
    if arguments.encoder_checkpoint:
        return cls.from_pretrained_encoder(arguments.encoder_checkpoint, **arguments.config)
    return cls(EvoTokVQConfig(**arguments.config))


def model_class(recipe: Recipe) -> type[EvoTokVQModel]:
    """Returns the class of the tokenizer, or of the variant that a recipe names.

    Raises:
        ValueError: an unknown variant.
    """
    variant = recipe.model.variant
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"model.variant {variant!r} is not one of {', '.join(VARIANTS)}: leave it out for the method.")
    return VARIANTS[variant] if variant else EvoTokVQModel


def build_teacher(recipe: Recipe, model: EvoTokVQModel, calibration: torch.Tensor | None = None):
    """Builds the frozen network of the semantic target, or None when that term has no weight.

    Args:
        recipe: names it.
        model: the untrained tokenizer; a copy of its encoder is the teacher where both start from one checkpoint.
        calibration: images (I, 3, H, W) in [-1, 1] that the scales of EfficientNet's channels are computed from.

    Raises:
        ValueError: an unknown teacher, or SigLIP2 without its checkpoint.
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
        raise ValueError("loss.teacher 'siglip' is built from SigLIP2's weights: give model.encoder_checkpoint.")
    if recipe.model.checkpoint is None:
        return SiglipTeacher(model.vision_tower)
    return SiglipTeacher.from_pretrained(recipe.model.encoder_checkpoint)


def build_perceptual(recipe: Recipe, teacher, device: torch.device):
    """Returns the function (fake, real) -> distances, or None when that term has no weight.

    Raises:
        ValueError: the weights of LPIPS are missing; or an unknown network.
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


def build_images(recipe: Recipe, arguments: TrainingArguments, image_size: int) -> Dataset:
    """Builds the training images.

    Args:
        recipe: names the data.
        arguments: number of rows, and the seed of their order.
        image_size: side of the images in pixels.

    Raises:
        ValueError: the embedded world, whose images have 64 pixels, at another size.
    """
    if recipe.data.name != "world":
        return build_stream(recipe.data, arguments, ImageCollator(image_size, arguments.seed))
    if image_size != CANVAS:
        raise ValueError(
            f"model.config: image_size {image_size}, but images of the embedded world have {CANVAS}: "
            "set encoder_config.image_size to that, or take other data."
        )
    world, mixture = load_world(recipe.data.path), recipe.data.mixture or None
    return WorldImages(world, num_rows(arguments), mixture, arguments.seed)


def build_validation(recipe: Recipe, size: int, arguments: TrainingArguments) -> torch.Tensor | None:
    """Returns this process's share of the validation images, (I, 3, H, W) in [-1, 1], or None where there are none.

    Raises:
        ValueError: none, although the recipe evaluates; or as [`folder_pixels`].
    """
    rank, world_size = arguments.process_index, arguments.world_size
    if recipe.data.validation_path:
        return folder_pixels(recipe.data.validation_path, size, recipe.data.validation_samples, rank, world_size)
    if recipe.data.name == "world":
        world = load_world(recipe.data.path)
        return scene_pixels(world, held_out_scenes(world, "val", HELD_OUT_SCENES)[rank::world_size])
    if arguments.eval_strategy != "no":
        raise ValueError("training.eval_strategy: nothing to measure: give data.validation_path, a folder of images.")
    return None


def restart_warning(config: EvoTokVQConfig, images: int) -> str | None:
    """Returns a warning for a batch in which most codebook entries are restarted at every step, or None.

    The moving count of uses of an entry tends to the mean number of vectors that a forward pass has for it; below the
    threshold, the entry is restarted as soon as it was. Accumulated batches are passes of their own.

    Args:
        config: of the tokenizer.
        images: in a forward pass, on all processes.
    """
    threshold, size = config.codebook_restart_threshold, config.codebook_size
    uses = images * config.num_positions / size
    if uses >= threshold:
        return None
    enough = -(-threshold * size // config.num_positions)
    return (
        f"{images} images a step use each of the {size:,} codebook entries {uses:.2g} times on average, less than "
        f"codebook_restart_threshold={threshold:g}: most are replaced at every step and are not trained. Give "
        f"training.per_device_train_batch_size for {enough:,.0f} images on all processes, or a lower threshold."
    )


def tokenizer_arguments(recipe: Recipe, fields: dict[str, Any]) -> TrainingArguments:
    """Builds the TrainingArguments of this stage, in full precision under DeepSpeed.

    Raises:
        ValueError: an adaptive adversarial weight under DeepSpeed; or as [`tokenizer_engine`].
    """
    if fields.get("deepspeed"):
        if recipe.loss.adversarial and recipe.loss.adversarial_adaptive:
            # DeepSpeed takes the gradients that are compared for the step's backward pass.
            raise ValueError("loss.adversarial_adaptive: not under DeepSpeed: set it to false, or leave DeepSpeed out.")
        fields = tokenizer_engine(fields)
    return TrainingArguments(**fields)


def build_trainer(recipe: Recipe, arguments: TrainingArguments) -> TokenizerTrainer:
    """Builds the trainer of this stage."""
    return assemble_trainer(recipe, arguments, build_tokenizer(recipe))


def assemble_trainer(recipe: Recipe, arguments: TrainingArguments, model: EvoTokVQModel) -> TokenizerTrainer:
    """Builds the trainer around a model, with its data, teacher and discriminator."""
    if warning := restart_warning(model.config, arguments.train_batch_size * arguments.world_size):
        logger.warning(warning)
    size = model.config.image_size
    data, validation = build_images(recipe, arguments, size), build_validation(recipe, size, arguments)
    teacher = build_teacher(recipe, model, _calibration_images(recipe))
    return TokenizerTrainer(
        model=model,
        args=arguments,
        recipe=recipe,
        train_dataset=data,
        eval_dataset=validation,
        loss_args=recipe.loss,
        teacher=teacher,
        perceptual=build_perceptual(recipe, teacher, arguments.device),
        ema_decay=recipe.optimizer.average_decay,
    )


def _calibration_images(recipe: Recipe) -> torch.Tensor | None:
    """Returns images of the embedded world for the scales of EfficientNet's channels; None where they are not used."""
    if recipe.data.name != "world" or not recipe.loss.semantic or recipe.loss.teacher != "efficientnet":
        return None
    images = WorldImages(load_world(recipe.data.path), _CALIBRATION_IMAGES)
    return torch.stack([images[index]["pixel_values"] for index in range(len(images))])
