"""A small byte-level BPE text tokenizer with the form of Qwen2.5's, for language models trained from scratch."""

import itertools
import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX


# Names as in Qwen2.5, so that chat template and processor are the same at every size; the last one is EvoTok's own.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|image_gen|>",
)

# In every prompt, but perhaps in none of the texts: as single bytes they would be a tenth of a short text.
_ROLES = ("system\n", "user\n", "assistant\n")


def train_text_tokenizer(texts: Iterable[str], vocab_size: int = 2048) -> PreTrainedTokenizerBase:
    """Trains a byte-level BPE tokenizer; the same texts in any order give the same tokenizer.

    Args:
        texts: of the training data. Words that occur both first and after a space need both forms.
        vocab_size: number of all tokens: 256 bytes, the merges, 7 special tokens, which come last.

    Returns:
        A `Qwen2Tokenizer` of at most `vocab_size` tokens, with text in NFC, `<|im_end|>` at the end of a message and
        `<|endoftext|>` for padding.

    Raises:
        ValueError: if `vocab_size` leaves no room for a merge.
    """
    num_learned = vocab_size - len(SPECIAL_TOKENS)
    if num_learned <= 256:
        raise ValueError(
            f"vocab_size={vocab_size} leaves no room for merges: give more than {256 + len(SPECIAL_TOKENS)}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=num_learned, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(itertools.chain(texts, _ROLES * 1000), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    vocab = learned["vocab"]
    vocab |= {token: len(vocab) + index for index, token in enumerate(SPECIAL_TOKENS)}
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=[tuple(merge) for merge in learned["merges"]],  # pyright: ignore[reportArgumentType]  # typed as files
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        padding_side="left",
    )
