"""Models of the lmms-eval harness, which sends the questions of benchmarks and scores the answers.

The harness has two forms of a request. `EvoTokChat`, its default, gets conversations with their images; `EvoTokSimple`
gets text and images separately, and computes likelihoods of choices, too.
"""

# lmms-eval is not installed where types are checked.
# pyright: reportMissingImports=false

import json
from collections import defaultdict
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from ..modeling_evotok.modeling_evotok import EvoTokForConditionalGeneration
from ..processing.processing_evotok import EvoTokProcessor
from .inference import answer
from .sequences import split_batches


MAX_NEW_TOKENS = 1024  # the default of the harness's own models
FEW_SHOT_DELIMITER = "\n\n"


class EvoTokSimple(lmms):
    """Model for requests with text and images separately; it also computes likelihoods of answers.

    Args:
        model: in evaluation mode.
        processor: of the same checkpoint.
        batch_size: requests of a batch.

    Raises:
        ValueError: `batch_size` is no positive number, such as the harness's `auto`.
    """

    is_simple = True
    _options_at = 1  # index of the options in the arguments of a request

    def __init__(
        self, model: EvoTokForConditionalGeneration, processor: EvoTokProcessor, batch_size: int | str = 1
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size}: give a number of requests, at least 1.")
        self.model, self.processor, self.batch_size = model, processor, int(batch_size)
        self.device = model.device
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Generates answers in the order of the requests; requests with equal options share batches."""
        groups = defaultdict(list)
        for index, request in enumerate(requests):
            groups[json.dumps(request.args[self._options_at], sort_keys=True)].append(index)
        answers = [""] * len(requests)
        bar = tqdm(total=len(requests), desc="questions", disable=None if self.rank == 0 else True, leave=False)
        for key, indices in groups.items():
            asked = json.loads(key) or {}
            options = generation_options(asked)
            for batch in split_batches(indices, self.batch_size):
                conversations = [self._conversation(requests[index]) for index in batch]
                texts = answer(self.model, self.processor, conversations, **options)
                for index, text in zip(batch, texts, strict=True):
                    answers[index] = cut_at(text, asked.get("until"))
                bar.update(len(batch))
        bar.close()
        return answers

    @torch.inference_mode()
    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Computes for each request, as `text`, the mean negative log-likelihood of the answer's tokens, its end
        included, and whether greedy decoding generates the answer.

        Negative, since the harness takes the *least* value among a task's choices (its `api/task.py`), as from its own
        models; wrapped, since it turns a bare pair into a string (`unwrap_generation_output`).
        """
        results = []
        for batch in split_batches(requests, self.batch_size):
            inputs = self.processor.apply_chat_template(
                [[*self._conversation(request), self._answer_given(request)] for request in batch],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                return_assistant_tokens_mask=True,
            )
            given = torch.as_tensor(inputs.pop("assistant_masks")).bool()[:, 1:].to(self.device)  # (B, T - 1)
            inputs = inputs.to(self.device)
            logits = self.model(**inputs).logits[:, :-1]  # (B, T - 1, V)
            for row, mask, tokens in zip(logits, given, inputs["input_ids"][:, 1:], strict=True):
                loss = cross_entropy(row[mask].float(), tokens[mask])
                is_greedy = bool((row[mask].argmax(-1) == tokens[mask]).all())
                results.append(GenerationResult((loss.item(), is_greedy)))
        return results

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Raises NotImplementedError: the tasks of several rounds, mmsearch and ovobench, need more than this model."""
        raise NotImplementedError("EvoTok answers tasks of one round: leave out those of several.")

    def _conversation(self, request: Instance) -> list[dict[str, Any]]:
        context, _, *place = request.args
        doc_to_visual, *where = place or [None]
        images = doc_to_visual(self._doc(*where)) if doc_to_visual else None
        parts = [{"type": "image", "image": image} for image in images or []]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": context}]}]

    def _answer_given(self, request: Instance) -> dict[str, str]:
        _, text, *place = request.args
        text = text if isinstance(text, str) else text(self._doc(*place[1:]))
        return {"role": "assistant", "content": text.strip()}  # ChatML needs no space between prompt and answer

    def _doc(self, doc_id: int, task: str, split: str) -> dict[str, Any]:
        return self.task_dict[task][split][doc_id]


class EvoTokChat(EvoTokSimple):
    """Model for requests with conversations."""

    is_simple = False
    _options_at = 2

    def _conversation(self, request: Instance) -> list[dict[str, Any]]:
        _, doc_to_messages, _, *where = request.args
        return ChatMessages(messages=doc_to_messages(self._doc(*where))).to_hf_messages()


def generation_options(asked: dict[str, Any]) -> dict[str, Any]:
    """Converts a task's `generation_kwargs` to arguments of `generate`; those of other models are left out."""
    samples = bool(asked.get("do_sample", asked.get("temperature"))) and asked.get("temperature") != 0
    names = ("num_beams", "temperature", "top_p", "top_k") if samples else ("num_beams",)
    options = {name: asked[name] for name in names if asked.get(name) is not None}
    return options | {"do_sample": samples, "max_new_tokens": asked.get("max_new_tokens") or MAX_NEW_TOKENS}


def cut_at(text: str, until: str | list[str] | None) -> str:
    """Cuts an answer before the first of a task's stop strings.

    An empty line is no stop string: it is the harness's default, since it separates the examples of few-shot prompts,
    but a chat model ends its message itself, and an answer may have paragraphs.
    """
    stops = [until] if isinstance(until, str) else until or []
    ends = [text.find(stop) for stop in stops if stop and stop != FEW_SHOT_DELIMITER]
    return text[: min((end for end in ends if end >= 0), default=len(text))].strip()
