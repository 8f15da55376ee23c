"""The language stage: trains the small `Qwen2ForCausalLM` in the place of Qwen2.5 at the size of EvoTok-mini.

Its texts are questions about scenes in words, and prompts answered with the scene that they determine. The result is an
ordinary Transformers checkpoint with its BPE tokenizer, which later stages take as `model.language_model_checkpoint`.
"""

from typing import cast

from transformers import Qwen2Config, Qwen2ForCausalLM, TrainingArguments

from ...data.collators import EvoTokCollator
from ...data.conversations import IndexedRows
from ...data.world.conversations import WorldConversations, corpus
from ...data.world.icons import load_world
from ...processing.processing_evotok import EvoTokProcessor
from ..recipes import Recipe, num_rows
from ..trainer import EvoTokTrainer
from .attention_init import initialize_attention
from .text_tokenizer import train_text_tokenizer


VOCAB_SIZE = 1024
_MULTIPLE = 64  # of the rows of the embedding table: matrix products are faster on whole tiles
_MIXTURE = {"text_keywords": 0.5, "text": 0.3, "text_t2i": 0.2}


def padded_rows(vocab_size: int) -> int:
    """Returns the number of rows of the embedding table for a vocabulary."""
    return -(-vocab_size // _MULTIPLE) * _MULTIPLE


def build_trainer(recipe: Recipe, arguments: TrainingArguments) -> EvoTokTrainer:
    """Builds the trainer of this stage, with the text tokenizer that it saves beside the model."""
    world = load_world(recipe.data.path)
    tokenizer = train_text_tokenizer(corpus(world), recipe.model.text_tokenizer_size or VOCAB_SIZE)
    config = Qwen2Config(
        vocab_size=padded_rows(len(tokenizer)),
        bos_token_id=None,
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
        **recipe.model.config,
    )
    model = Qwen2ForCausalLM(config)
    initialize_attention(model)
    if recipe.model.attn_implementation:
        model.set_attn_implementation(recipe.model.attn_implementation)
    mixture = recipe.data.mixture or _MIXTURE
    rows = WorldConversations(world, num_rows(arguments), mixture, arguments.seed, recipe.data.block)
    # Only its template and placeholders are used: conversations are formatted as in the stages that follow.
    processor = EvoTokProcessor.from_parts(tokenizer, image_size=64, num_image_tokens=64, **recipe.processor)
    return EvoTokTrainer(
        model=model,
        args=arguments,
        recipe=recipe,
        train_dataset=IndexedRows(rows),
        data_collator=EvoTokCollator(processor, recipe.data.max_length, seed=arguments.seed),
        processing_class=tokenizer,
    )
