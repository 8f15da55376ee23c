"""Worker of the platform, which passes the rows of images in each step to the model."""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false

from collections.abc import Sequence
from typing import Any

import torch
from vllm.platforms import current_platform

from evotok.processing.image_loading_evotok import convert_to_images
from evotok.vllm import ignore_interrupts
from evotok.vllm.generation import Row, RowStep, read_row


if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker


class EvoTokWorker(PlatformWorker):
    """Worker that passes the rows of images in each step to the model, and decodes images.

    Raises:
        ValueError: vLLM uses its model runner V2, whose batches have another structure.
    """

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Loads the model."""
        super().load_model(*args, **kwargs)
        ignore_interrupts()
        if not hasattr(self.model_runner, "input_batch"):
            raise ValueError("EvoTok generates images with vLLM's model runner V1: set VLLM_USE_V2_MODEL_RUNNER=0.")
        self._rows: dict[str, Row] = {}
        self._steps: list[RowStep] | None = None
        self._scheduled: dict[str, int] = {}
        self._model = self.model_runner.get_model()
        self._model.rows_of_step = self._rows_of_step

    def execute_model(self, scheduler_output: Any) -> Any:
        """Runs one step."""
        for request_id in scheduler_output.finished_req_ids:
            self._rows.pop(request_id, None)
        for request in scheduler_output.scheduled_new_reqs:
            row = read_row(request.sampling_params and request.sampling_params.extra_args)
            if row is not None:
                self._rows[request.req_id] = row
        self._model.images.keep({row.image for row in self._rows.values()})
        self._scheduled, self._steps = scheduler_output.num_scheduled_tokens, None
        try:
            return super().execute_model(scheduler_output)
        finally:
            self._scheduled, self._steps = {}, None

    def _rows_of_step(self) -> Sequence[RowStep]:
        """Returns the rows of images in the batch; none outside a step, when vLLM profiles the model."""
        if self._steps is None:
            self._steps = self._find_rows() if self._rows and self._scheduled else []
        return self._steps

    def _find_rows(self) -> list[RowStep]:
        batch, requests = self.model_runner.input_batch, self.model_runner.requests
        found, token = [], 0
        for index, request_id in enumerate(batch.req_ids):
            count = self._scheduled[request_id]
            if row := self._rows.get(request_id):
                request, computed = requests[request_id], int(batch.num_computed_tokens_cpu[index])
                is_complete = computed + count == request.num_tokens
                found.append(RowStep(index, row, token, computed - request.num_prompt_tokens, count, is_complete))
            token += count
        return found

    def count_images(self) -> int:
        """Counts the unfinished images, or their rows if these are more."""
        return max(len(self._rows), len(self._model.images))

    def decode_images(self, codes: list[list[list[int]]]) -> list[bytes]:
        """Decodes codes (M, N, L) to the RGB bytes of each image, row by row."""
        return [image.tobytes() for image in convert_to_images(self._model.decode_images(torch.tensor(codes)))]
