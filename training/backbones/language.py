"""The language stage: trains the small `Qwen2ForCausalLM` that stands in for Qwen2.5 at the size of EvoTok-mini.

Its texts are questions about scenes in words, and prompts answered with the scene that they determine. The result is an
ordinary Transformers checkpoint with its BPE tokenizer, which later stages take as `model.language_model_checkpoint`.
"""

from transformers import Qwen2Config, Qwen2ForCausalLM, TrainingArguments

from ...data.collators import EvoTokCollator
from ...data.conversations import IndexedRows
from ...data.world.conversations import WorldConversations, corpus
from ...data.world.icons import load_world
from ...processing.processing_evotok import EvoTokProcessor
from ..optimizers import optimizer_choice
from ..recipes import Recipe, num_samples
from ..time_box import time_box
from ..trainer import EvoTokTrainer
from ..trainer_options import check_length
from .text_tokenizer import train_text_tokenizer


VOCAB_SIZE = 1024
_MULTIPLE = 64  # of the rows of the embedding table: matrix products like whole tiles
_MIXTURE = {"text": 0.7, "text_t2i": 0.3}


def padded_rows(vocab_size: int) -> int:
    """Rows of the embedding table for so many tokens."""
    return -(-vocab_size // _MULTIPLE) * _MULTIPLE


def train_language(recipe: Recipe, arguments: TrainingArguments, resume_from: str | None) -> dict[str, float]:
    """Train as the recipe says; model and tokenizer are saved in `output_dir`. Returns the metrics."""
    check_length(recipe, arguments.max_steps)
    world = load_world(recipe.data.path)
    tokenizer = train_text_tokenizer(corpus(world), recipe.model.text_tokenizer_size or VOCAB_SIZE)
    config = Qwen2Config(
        vocab_size=padded_rows(len(tokenizer)),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **recipe.model.config,
    )
    model = Qwen2ForCausalLM(config)
    if recipe.model.attn_implementation:
        model.set_attn_implementation(recipe.model.attn_implementation)
    rows = WorldConversations(world, num_samples(arguments), recipe.data.mixture or _MIXTURE, arguments.seed)
    # Only its template and its placeholders count here: the same conversations as in the stages that follow.
    processor = EvoTokProcessor.from_parts(tokenizer, image_size=64, num_image_tokens=64, **recipe.processor)
    trainer = EvoTokTrainer(
        model=model,
        args=arguments,
        callbacks=time_box(recipe, arguments),
        recipe=recipe,
        train_dataset=IndexedRows(rows),
        data_collator=EvoTokCollator(processor, recipe.data.max_length, seed=arguments.seed),
        processing_class=tokenizer,
        **optimizer_choice(recipe.optimizer, arguments),
    )
    result = trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_metrics("train", result.metrics)
    trainer.save_model()
    return {"step": result.global_step} | result.metrics
