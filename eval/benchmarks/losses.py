"""Benchmark of the losses of both heads, forward and backward, against all logits in float32 at once."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from ...modeling_evotok.configuration_evotok import EvoTokConfig, EvoTokDepthDecoderConfig
from ...modeling_evotok.losses_evotok import IGNORE_INDEX
from ...modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ...modeling_evotok.modeling_evotok_depth import EvoTokDepthDecoder
from . import generation
from .meters import Setting, best_seconds, peak_extra_mib
from .report import Row


# rows of the image loss (8 images), their width and codes; tokens of the text loss and their vocabulary
SIZES = {
    "full": {"rows": 2048, "width": 640, "codes": 32768, "tokens": 1024, "vocabulary": 151936},
    "tiny": {"rows": 32, "width": 32, "codes": 64, "tokens": 32, "vocabulary": 512},
}
LABELLED = 4  # one text token in so many has a label: answers are shorter than questions with images


def run(setting: Setting) -> Iterator[Row]:
    """Measures the rows `image` and `text`; ratios are ours by the reference's."""
    yield _image(setting)
    yield _text(setting)


def _image(setting: Setting) -> Row:
    """Measures the classifiers of all levels of the depth decoder."""
    size = SIZES[setting.size]
    torch.manual_seed(0)
    config = EvoTokDepthDecoderConfig(
        codebook_size=size["codes"], hidden_size=size["width"], num_hidden_layers=0, num_attention_heads=1
    )
    heads = EvoTokDepthDecoder(config).to(setting.device, setting.dtype).classifiers
    levels = config.num_codebooks
    states = torch.randn(size["rows"], levels, size["width"], device=setting.device, dtype=setting.dtype)
    states.requires_grad_(True)
    codes = torch.randint(size["codes"], (size["rows"], levels), device=setting.device)

    def ours():
        sums = [head(states[:, level], codes[:, level]) for level, head in enumerate(heads)]
        return torch.stack(sums).sum() / codes.numel()

    def reference():
        logits = torch.stack([head(states[:, level]) for level, head in enumerate(heads)], dim=1)
        return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())

    return _compare("image", ours, reference, [states, *heads.parameters()], setting)


def _text(setting: Setting) -> Row:
    """Measures a training step of the whole model on text, with a language model of one layer."""
    size = SIZES[setting.size]
    torch.manual_seed(0)
    fields = generation.SIZES[setting.size]
    text = fields["text_config"] | {
        "vocab_size": size["vocabulary"],
        "num_hidden_layers": 1,
        "max_position_embeddings": size["tokens"],
    }
    config = EvoTokConfig(**fields | {"text_config": text}, **generation.TOKEN_IDS)
    model = EvoTokForConditionalGeneration(config).to(setting.device, setting.dtype).train()
    model.depth_decoder.requires_grad_(False)
    ids = torch.randint(100, size["vocabulary"], (1, size["tokens"]), device=setting.device)
    labels = ids.clone()
    labels[:, : -size["tokens"] // LABELLED] = IGNORE_INDEX

    def ours():
        return model(input_ids=ids, labels=labels).loss

    def reference():
        logits = model.lm_head(model.model(input_ids=ids).last_hidden_state).float()
        return F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=IGNORE_INDEX)

    learned = [model.lm_head.weight, *model.model.language_model.parameters()]
    return _compare("text", ours, reference, learned, setting)


def _compare(name: str, ours: Callable, reference: Callable, learned: list[torch.Tensor], setting: Setting) -> Row:
    def step(loss: Callable):
        for tensor in learned:
            tensor.grad = None
        value = loss()
        value.backward()
        return value.detach(), [tensor.grad for tensor in learned]

    equal = _equal(step(ours), step(reference))
    seconds, reference_seconds = best_seconds(lambda: step(ours), lambda: step(reference), setting=setting)
    for tensor in learned:
        tensor.grad = None
    peaks = []
    for loss in (ours, reference):
        peaks.append(peak_extra_mib(lambda loss=loss: step(loss), setting.device))
        for tensor in learned:
            tensor.grad = None
    return {
        "name": name,
        "reference": "all logits in float32",
        "seconds": seconds,
        "reference_seconds": reference_seconds,
        "time_ratio": seconds / reference_seconds,
        "peak_extra_mib": peaks[0],
        "reference_peak_extra_mib": peaks[1],
        "memory_ratio": None if None in peaks else peaks[0] / max(peaks[1], 1e-9),
        "equal": equal,
    }


def _equal(mine: tuple, expected: tuple) -> bool:
    """Returns whether losses and gradients agree, within rounding of the gradients' dtype."""
    if not torch.allclose(mine[0].float(), expected[0].float(), rtol=1e-3 if mine[0].dtype != torch.float32 else 1e-5):
        return False
    for gradient, reference in zip(mine[1], expected[1], strict=True):
        difference = (gradient.float() - reference.float()).norm()
        if difference > 4 * torch.finfo(gradient.dtype).eps * reference.float().norm() + 1e-12:
            return False
    return True
