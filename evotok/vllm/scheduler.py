"""vLLM's scheduler, with the two rows of a guided image as one unit.

Both rows are added to the queue together, and removed together when one is aborted. Otherwise they are scheduled and
preempted as other requests are, so that a step may have one row without the other. The model holds such a row: it
returns a placeholder token, which the scheduler discards, and the row's last token is computed again in the next step.
The rows of one image never differ in length by more than their prompts.
"""

# vLLM is not installed where types are checked.
# pyright: reportMissingImports=false

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from evotok.vllm import ignore_interrupts
from evotok.vllm.generation import read_row


class EvoTokScheduler(Scheduler):
    """Scheduler of pairs of rows.

    Raises:
        ValueError: under these settings a pair might never be scheduled.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        ignore_interrupts()
        if self.scheduler_config.async_scheduling or self.parallel_config.pipeline_parallel_size > 1:
            raise ValueError("EvoTok generates images step by step: no async scheduling, no pipeline parallelism.")
        slots = self.kv_cache_config.num_blocks * self.cache_config.block_size
        if self.max_num_running_reqs < 2 or slots < 2 * self.max_model_len:
            raise ValueError(
                f"A guided image takes two requests of {self.max_model_len} tokens at most, but there is room for "
                f"{self.max_num_running_reqs} requests and {slots} tokens: raise max_num_seqs or the KV cache."
            )
        self._held_token = self.vllm_config.model_config.hf_config.image_token_id
        self._halves: dict[str, Request] = {}

    def add_request(self, request: Request) -> None:
        """Adds a request; the first row of a guided image is added with the second."""
        row = _row_of(request)
        if row is None or not row.is_guided:
            return super().add_request(request)
        other = self._halves.pop(row.image, None)
        if other is None:
            self._halves[row.image] = request
            return None
        super().add_request(other)
        return super().add_request(request)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        """Finishes requests, such as aborted ones, and the other rows of their images."""
        if request_ids is None:
            self._halves.clear()
            return super().finish_requests(None, finished_status)
        ids = {request_ids} if isinstance(request_ids, str) else set(request_ids)
        self._halves = {name: half for name, half in self._halves.items() if half.request_id not in ids}
        rows = {request_id: _row_of(request) for request_id, request in self.requests.items()}
        images = {row.image for request_id in ids if (row := rows.get(request_id)) is not None}
        ids |= {request_id for request_id, row in rows.items() if row is not None and row.image in images}
        return super().finish_requests(ids, finished_status)

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        """Discards the placeholder tokens of held rows, and schedules their last tokens again."""
        for request_id, index in model_runner_output.req_id_to_index.items():
            tokens = model_runner_output.sampled_token_ids[index] if model_runner_output.sampled_token_ids else []
            request = self.requests.get(request_id)
            if tokens == [self._held_token]:
                tokens.clear()
                if request is not None and not request.is_finished():
                    request.num_computed_tokens -= 1
        return super().update_from_output(scheduler_output, model_runner_output)


def _row_of(request: Request) -> Any:
    return read_row(request.sampling_params and request.sampling_params.extra_args)
