"""The small text tokenizer: the form of Qwen2.5's, few tokens for known words, lossless, deterministic."""

import random

import pytest
from transformers import AutoTokenizer

from evotok.training.backbones.text_tokenizer import SPECIAL_TOKENS, train_text_tokenizer


LABELS = ["grinning squinting face", "smiling cat with heart-eyes", "face with tears of joy", "Côte d’Ivoire", "tiger"]
TEXTS = [f"{form} {label}." for label in LABELS for form in ("a", "What is this? It is a", "draw a picture of a")] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer(TEXTS, vocab_size=512)


def test_known_words_and_roles_are_one_token_each(tokenizer):
    for label in LABELS[:3]:
        words = (" " + label).replace("-", " -").split(" ")[1:]
        assert len(tokenizer.tokenize(" " + label)) == len(words)
    for role in ("system", "user", "assistant"):
        assert len(tokenizer.tokenize(f"<|im_start|>{role}\n")) == 3


def test_decoding_restores_any_text(tokenizer):
    for text in ("a tiger", "Ünïcode 日本語 🐯 \t x\n\n  y ", "123.5%", "don't", "<|not_special|>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_text_is_normalized_to_nfc(tokenizer):
    assert tokenizer("Co\u0302te")["input_ids"] == tokenizer("C\u00f4te")["input_ids"]


def test_special_tokens_equal_those_of_qwen(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(len(tokenizer) - len(SPECIAL_TOKENS), len(tokenizer)))
    assert tokenizer("".join(SPECIAL_TOKENS))["input_ids"] == ids
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    assert tokenizer.decode([*ids, *tokenizer(" tiger")["input_ids"]], skip_special_tokens=True) == " tiger"
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"} and tokenizer.padding_side == "left"


def test_vocabulary_has_the_given_size(tokenizer):
    assert len(tokenizer) <= 512
    assert len(train_text_tokenizer(TEXTS, vocab_size=310)) == 310
    with pytest.raises(ValueError, match="more than 263"):
        train_text_tokenizer(TEXTS, vocab_size=263)


def test_tokenizer_is_independent_of_the_order_of_texts(tokenizer):
    texts = list(TEXTS)
    random.Random(0).shuffle(texts)
    again = train_text_tokenizer(iter(texts), vocab_size=512)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_saved_tokenizer_loads_equal(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab() and again.pad_token_id == tokenizer.pad_token_id
    text = "<|im_start|>user\nWhat is this? 🐯<|im_end|>\n<|vision_start|><|image_gen|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
