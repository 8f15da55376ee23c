"""Inference that the command line, the page and the server share: prompts are read and checked, then run in batches.

Each prompt is read alone, so that one that is too long fails alone, and stacked with others when a batch is made.

Shapes: B prompts of a batch, T tokens of the longest, V vocabulary, N positions of an image, L levels.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


if TYPE_CHECKING:
    from PIL import Image
    from transformers import BatchFeature


class TextSampling(NamedTuple):
    """How one answer of a batch is sampled.

    Args:
        max_new_tokens: longest answer.
        temperature: 0 takes the likeliest token.
        top_k, top_p: 0, and 1, for no limit.
        seed: for the same answer again; random when None.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None


class Answer(NamedTuple):
    """Token ids of an answer, and whether it ended by itself (`stop`) or at its limit (`length`)."""

    ids: list[int]
    finish_reason: str


class StoppedError(Exception):
    """Raised inside a generation that shall go no further."""


def read_chat(model, processor, messages: list[dict[str, Any]]) -> tuple["BatchFeature", int]:
    """Reads a conversation into what `generate` takes for the next answer.

    Returns:
        Inputs of a batch of one on the model's device, and how many tokens there is room for.

    Raises:
        ValueError: the messages do not fit into the model's context, or are not understood.
    """
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    length, limit = inputs["input_ids"].shape[1], model.config.text_config.max_position_embeddings
    if length >= limit:
        raise ValueError(
            f"The conversation has {length} tokens, the model reads fewer than {limit}: shorten the question, show "
            "fewer images, or begin anew."
        )
    return inputs, limit - length


def read_image_prompt(model, processor, prompt: str, negative_prompt: str = "") -> "BatchFeature":
    """Reads a prompt and its negative prompt into what `generate(generation_mode="image")` takes.

    Raises:
        ValueError: one of them leaves no room for the image in the model's context.
    """
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": prompt}],
        generation_mode="image",
        negative_prompt=negative_prompt,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    limit = model.config.text_config.max_position_embeddings - model.config.vq_config.num_positions
    for name, ids in (("prompt", inputs["input_ids"]), ("negative prompt", inputs["negative_prompt_ids"])):
        if ids.shape[1] > limit:
            raise ValueError(
                f"The {name} has {ids.shape[1]} tokens, this model reads at most {limit} before an image: shorten it."
            )
    return inputs


def stack_prompts(prompts: Sequence["BatchFeature"], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Stacks prompts that were read alone into one batch, left-padded; images keep the order of their prompts."""
    stacked = {}
    for name in prompts[0].keys() | {"pixel_values"}:
        tensors = [prompt[name] for prompt in prompts if name in prompt]
        if name == "pixel_values" and tensors:
            stacked[name] = torch.cat(tensors)
        elif tensors:
            padding = 0 if name.endswith("attention_mask") else pad_token_id
            rows = [tensor[0] for tensor in tensors]
            stacked[name] = pad_sequence(rows, batch_first=True, padding_value=padding, padding_side="left")
    return stacked


class RowSampler(LogitsProcessor):
    """Samples each row by settings and a seed of its own, which Transformers' sampling has for a whole batch only.

    Logits get Gumbel noise, whose argmax is a sample of their softmax: `generate` then runs greedily.
    """

    def __init__(self, sampling: Sequence[TextSampling], device: torch.device):
        self._warpers: list[list[Any]] = []
        self._generators: list[torch.Generator | None] = []
        for row in sampling:
            warpers = [TemperatureLogitsWarper(row.temperature)] if row.temperature > 0 else []
            warpers += [TopKLogitsWarper(row.top_k)] if row.top_k > 0 else []
            warpers += [TopPLogitsWarper(row.top_p)] if row.top_p < 1 else []
            generator = torch.Generator(device) if row.temperature > 0 else None
            if generator is not None:
                generator.manual_seed(row.seed) if row.seed is not None else generator.seed()
            self._warpers.append(warpers)
            self._generators.append(generator)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """(B, T), (B, V) float32 -> (B, V); greedy rows stay as they are."""
        for row, (warpers, generator) in enumerate(zip(self._warpers, self._generators, strict=True)):
            if generator is None:
                continue
            warped = scores[row, None]
            for warper in warpers:
                warped = warper(input_ids[row, None], warped)
            scores[row] = warped[0] - torch.empty_like(warped[0]).exponential_(generator=generator).log()
        return scores


TokenListener = Callable[[int, int, str | None], bool]
"""Called with a row, its new token, and how the row ends with it or None; True ends the row."""


class RowObserver(StoppingCriteria):
    """Collects the tokens of each row, and ends a row at its own limit or for its listener.

    Args:
        limits: most tokens of each row.
        eos_token_ids: that end a row by themselves.
        on_token: called for each new token.
    """

    def __init__(self, limits: Sequence[int], eos_token_ids: set[int], on_token: TokenListener | None):
        self._limits, self._eos, self._on_token = limits, eos_token_ids, on_token
        self.answers = [Answer([], "length") for _ in limits]
        self._done = [False] * len(limits)

    def __call__(self, input_ids: torch.LongTensor, scores: Any = None, **kwargs) -> torch.BoolTensor:
        """(B, T) -> (B,): which rows end with their last token."""
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if self._done[row]:
                continue
            ids = self.answers[row].ids
            ids.append(token)
            reason = "stop" if token in self._eos else "length" if len(ids) >= self._limits[row] else None
            if reason is not None:
                self.answers[row] = Answer(ids, reason)
            stopped = self._on_token is not None and self._on_token(row, token, reason)
            self._done[row] = stopped or reason is not None
        return torch.tensor(self._done, device=input_ids.device)


@torch.inference_mode()
def answer_batch(
    model,
    prompts: Sequence["BatchFeature"],
    sampling: Sequence[TextSampling],
    on_token: TokenListener | None = None,
) -> list[Answer]:
    """Generates the next turn of each conversation in one batch; rows do not influence one another.

    Args:
        model: in evaluation mode.
        prompts: from `read_chat`; their rooms are the caller's to keep to.
        sampling: of each prompt.
        on_token: called for each new token, also that which ends an answer.
    """
    config = model.generation_config
    eos = config.eos_token_id
    eos_token_ids = set(eos if isinstance(eos, (list, tuple)) else [eos])
    limits = [row.max_new_tokens for row in sampling]
    observer = RowObserver(limits, eos_token_ids, on_token)
    model.generate(
        **stack_prompts(prompts, _pad_token_id(model)),
        do_sample=False,
        max_new_tokens=max(limits),
        logits_processor=LogitsProcessorList([RowSampler(sampling, model.device)]),
        stopping_criteria=StoppingCriteriaList([observer]),
    )
    return observer.answers


@torch.inference_mode()
def generate_batch(
    model,
    processor,
    prompts: Sequence["BatchFeature"],
    seeds: Sequence[int],
    is_wanted: Callable[[], bool] = lambda: True,
    **sampling: Any,
) -> list["Image.Image"]:
    """Generates one image of each prompt in one batch; an image depends on its own prompt and seed alone.

    Args:
        model: in evaluation mode.
        prompts: from `read_image_prompt`.
        seeds: of each image.
        is_wanted: called after each position; False ends the generation.
        sampling: more arguments of `generate(generation_mode="image")`, such as `guidance_scale` or `top_p`.

    Raises:
        StoppedError: `is_wanted` returned False.
    """

    def check(position: int, codes: torch.Tensor) -> None:
        if not is_wanted():
            raise StoppedError

    codes = model.generate(
        **stack_prompts(prompts, _pad_token_id(model)),
        generation_mode="image",
        generator=[torch.Generator(model.device).manual_seed(seed) for seed in seeds],
        callback=check,
        **sampling,
    )
    return processor.post_process_image_generation(model.decode_image_tokens(codes))


def _pad_token_id(model) -> int:
    """What masked places hold, which no result depends on."""
    pad = model.generation_config.pad_token_id
    return 0 if pad is None else pad
