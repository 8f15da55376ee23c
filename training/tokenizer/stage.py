"""The tokenizer stage: build model, teacher and data from a recipe, train, save."""

from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments
from transformers.utils import logging

from ...data.arguments import DataArguments
from ...data.collators import ImageCollator
from ...data.image_files import folder_pixels
from ...data.stream_loader import build_stream
from ...data.world.icons import load_world
from ...data.world.images import WorldImages, held_out_scenes, scene_pixels
from ...data.world.scenes import CANVAS
from ...eval.teachers import EfficientNetTeacher, SiglipTeacher, build_lpips
from ...modeling_evotok.configuration_evotok import EvoTokVQConfig
from ...modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from ..deepspeed_configs import in_full_precision
from ..optimizers import optimizer_choice
from ..recipes import Recipe, num_samples
from ..time_box import time_box
from ..trainer_options import check_length
from .codebook_restarts import restart_warning
from .trainer import TokenizerTrainer
from .variants import VARIANTS


logger = logging.get_logger(__name__)

HELD_OUT_SCENES = 256
_CALIBRATION_IMAGES = 512


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


def check_data(data: DataArguments) -> None:
    """Raises ValueError for data of another stage."""
    if data.name not in ("world", "mixture"):  # a folder is a mixture of one by now
        raise ValueError(f"data.name {data.name!r}: this stage reads 'world', 'folder' or a 'mixture', give one.")


def build_images(recipe: Recipe, arguments: TrainingArguments, image_size: int) -> Dataset:
    """What the tokenizer learns from.

    Args:
        recipe: names the data.
        arguments: say how many samples are needed, and in which order they come.
        image_size: side of the images in pixels.

    Raises:
        ValueError: data of another stage, or the embedded world, whose images are of 64 pixels, at another size.
    """
    check_data(recipe.data)
    if recipe.data.name == "world":
        if image_size != CANVAS:
            raise ValueError(
                f"model.config: image_size {image_size}, but images of the embedded world have {CANVAS}: "
                "set encoder_config.image_size to that, or take other data."
            )
        world, mixture = load_world(recipe.data.path), recipe.data.mixture or None
        return WorldImages(world, num_samples(arguments), mixture, arguments.seed)
    return build_stream(recipe.data, arguments, ImageCollator(image_size, arguments.seed))


def build_validation(recipe: Recipe, size: int, arguments: TrainingArguments) -> torch.Tensor | None:
    """This process's share of the images that are held back, (I, 3, H, W) in [-1, 1], or None where there are none.

    Raises:
        ValueError: none, although the recipe asks for evaluation; or as [`folder_pixels`].
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


def tokenizer_arguments(recipe: Recipe, fields: dict[str, Any]) -> TrainingArguments:
    """Builds the TrainingArguments of this stage, in full precision under DeepSpeed.

    Raises:
        ValueError: an adaptive adversarial weight under DeepSpeed; or as [`in_full_precision`].
    """
    if fields.get("deepspeed"):
        if recipe.loss.adversarial and recipe.loss.adversarial_adaptive:
            # DeepSpeed takes the gradients that are compared for the step's backward pass.
            raise ValueError("loss.adversarial_adaptive: not under DeepSpeed: set it to false, or leave DeepSpeed out.")
        fields = in_full_precision(fields)
    return TrainingArguments(**fields)


def train_tokenizer(recipe: Recipe, arguments: TrainingArguments, resume_from: str | None) -> dict[str, float]:
    """Train as the recipe says; the finished model lies in `output_dir`. Returns the figures, `eval_psnr...` too."""
    check_data(recipe.data)  # before a model is built, which may take long
    check_length(recipe, arguments.max_steps)
    model = build_tokenizer(recipe)
    config = model.config
    if warning := restart_warning(config, arguments.train_batch_size * arguments.world_size):
        logger.warning(warning)
    data = build_images(recipe, arguments, config.image_size)
    held_out = build_validation(recipe, config.image_size, arguments)
    teacher = build_teacher(recipe, model, _calibration_images(recipe))
    trainer = TokenizerTrainer(
        model=model,
        args=arguments,
        callbacks=time_box(recipe, arguments),
        train_dataset=data,
        eval_dataset=data if held_out is not None else None,
        loss_args=recipe.loss,
        teacher=teacher,
        perceptual=build_perceptual(recipe, teacher, arguments.device),
        held_out=held_out,
        average_decay=recipe.optimizer.average_decay,
        recipe=recipe,
        **optimizer_choice(recipe.optimizer, arguments),
    )
    result = trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_metrics("train", result.metrics)
    held_out_figures = trainer.evaluate()
    trainer.save_model()
    return {"step": result.global_step} | result.metrics | held_out_figures


def _calibration_images(recipe: Recipe) -> torch.Tensor | None:
    """Images of the embedded world for the scales of EfficientNet's channels; None where nothing needs them."""
    if recipe.data.name != "world" or not recipe.loss.semantic or recipe.loss.teacher != "efficientnet":
        return None
    images = WorldImages(load_world(recipe.data.path), _CALIBRATION_IMAGES)
    return torch.stack([images[index]["pixel_values"] for index in range(len(images))])
