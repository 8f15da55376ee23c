"""VQAScore (Lin et al., 2024): how probable a model that answers questions finds it that a picture shows a text."""

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


QUESTION = "Does this figure show '{}'? Please answer yes or no."


ANSWERS = ("Yes", "yes")
"""Words that agree; the first one that a scorer has a token for is the one whose probability is its score."""


def answer_tokens(tokenizer) -> list[int]:
    """Tokens that agree: of the word alone and after a space, as a model's chat template wants it.

    Raises:
        ValueError: the tokenizer has none.
    """
    for answer in ANSWERS:
        spelled = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (answer, f" {answer}")]
        tokens = sorted({ids[0] for ids in spelled if len(ids) == 1})
        if tokens:
            return tokens
    raise ValueError("its tokenizer has no token for Yes")


class VQAScorer:
    """Probability of the answer Yes to `QUESTION`, by any image-text-to-text model of Transformers.

    Args:
        checkpoint: folder of the model and its processor. Without a chat template the question is all it is given.
    """

    def __init__(self, checkpoint: str, device: torch.device):
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.processor.tokenizer.padding_side = "left"
        self.answer = answer_tokens(self.processor.tokenizer)
        dtype = "float32" if device.type == "cpu" else "auto"
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype, use_safetensors=True)
        self.model.to(device).eval()

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """A score in 0 .. 1 for each picture and the text that it should show."""
        inputs = self._inputs(images, [QUESTION.format(text) for text in texts])
        inputs = inputs.to(self.model.device, self.model.dtype)  # of the dtype: pixels alone
        output = self.model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        return output.logits[0].float().softmax(-1)[:, self.answer].sum(-1).tolist()

    def _inputs(self, images: Sequence[Image.Image], questions: Sequence[str]):
        if self.processor.chat_template is None:
            return self.processor(images=list(images), text=list(questions), padding=True, return_tensors="pt")
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
            for image, question in zip(images, questions, strict=True)
        ]
        return self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
