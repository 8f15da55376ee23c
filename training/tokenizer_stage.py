"""The tokenizer stage: build model, teacher and data from a recipe, train, save."""

from pathlib import Path

from transformers import TrainingArguments

from ..modeling_evotok.configuration_evotok import EvoTokVQConfig
from ..modeling_evotok.modeling_evotok_vq import EvoTokVQModel
from .arguments import Recipe
from .emoji.world import EmojiWorld
from .optimizers import optimizer_choice
from .streaming import build_stream
from .taught_images import TaughtImages, calibrated_teacher, taught_emoji
from .teachers import EfficientNetTeacher, SiglipTeacher
from .tokenizer_data import EmojiImages, FolderImages, ImageCollator, emoji_pixels
from .tokenizer_trainer import TokenizerTrainer
from .tokenizer_variants import VARIANTS


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


def build_teacher(recipe: Recipe, config: EvoTokVQConfig, calibration=None):
    """The frozen network that gives the semantic target."""
    if recipe.loss.teacher == "efficientnet":
        teacher = EfficientNetTeacher(config.grid_size)
        if calibration is not None:
            teacher.calibrate(calibration)
        return teacher
    if recipe.model.encoder_checkpoint is None:
        raise ValueError("loss.teacher 'siglip' is made of SigLIP2's weights: give model.encoder_checkpoint.")
    return SiglipTeacher(recipe.model.encoder_checkpoint)


def build_perceptual(recipe: Recipe, teacher):
    """Function (fake, real) -> scalar, or None when the term has no weight.

    Raises:
        ValueError: LPIPS is asked for and its weights are not there.
    """
    if not recipe.loss.perceptual:
        return None
    if recipe.loss.perceptual_network == "efficientnet":
        return teacher.perceptual_distance
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        return LearnedPerceptualImagePatchSimilarity(net_type="vgg")
    except (ImportError, OSError) as error:
        raise ValueError(
            f"LPIPS is not to be had ({error}): pip install torchvision and let it fetch VGG16 once, "
            "or set loss.perceptual_network=efficientnet, or loss.perceptual=0."
        ) from None


def _taught_data(recipe: Recipe, config: EvoTokVQConfig, folder: Path) -> tuple[TaughtImages, EfficientNetTeacher]:
    data, loss = recipe.data, recipe.loss
    if data.distinct < 1 or (data.name, loss.teacher) != ("emoji", "efficientnet") or not loss.semantic:
        raise ValueError(
            "data.distinct must be 1 or more, of data.name emoji, with loss.teacher efficientnet and loss.semantic "
            "above 0: correct them, or leave data.distinct out."
        )
    images = taught_emoji(data.path, data.distinct, tuple(data.mixture.items()), config.grid_size, folder)
    return images, calibrated_teacher(data.path, config.grid_size)


def train_tokenizer(recipe: Recipe, arguments: TrainingArguments, resume_from: str | None) -> None:
    """Train as the recipe says; the finished model lies in `output_dir`."""
    model = build_tokenizer(recipe)
    config = model.config
    samples = arguments.max_steps * arguments.train_batch_size * arguments.gradient_accumulation_steps
    samples *= arguments.world_size
    held_out = calibration = teacher = None
    if recipe.data.distinct is not None:
        data, teacher = _taught_data(recipe, config, Path(arguments.output_dir).parent / "teacher-features")
        if arguments.eval_strategy != "no":
            held_out = emoji_pixels(EmojiWorld(recipe.data.path), "new_concept", 128)
    elif recipe.data.name == "emoji":
        world = EmojiWorld(recipe.data.path)
        data = EmojiImages(world, samples, recipe.data.mixture or None, arguments.seed)
        held_out, calibration = emoji_pixels(world, "new_concept", 128), emoji_pixels(world, "train", 512)
    elif recipe.data.name == "mixture":
        data = build_stream(recipe, arguments, ImageCollator(config.image_size, arguments.seed))
    elif recipe.data.name == "folder":
        data = FolderImages(recipe.data.path, config.image_size)
    else:
        raise ValueError(
            f"data.name {recipe.data.name!r}: this stage reads 'emoji', 'folder' or a 'mixture', give one."
        )
    if teacher is None and recipe.loss.semantic:
        teacher = build_teacher(recipe, config, calibration)
    trainer = TokenizerTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=data if held_out is not None else None,
        loss_args=recipe.loss,
        teacher=teacher,
        perceptual=build_perceptual(recipe, teacher),
        held_out=held_out,
        **optimizer_choice(recipe.optimizer, arguments),
    )
    result = trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_metrics("train", result.metrics)
    trainer.evaluate()
    trainer.save_model()
