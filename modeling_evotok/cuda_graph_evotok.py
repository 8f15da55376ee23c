# Copyright 2026 The EvoTok authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""A step that is taken many times as one CUDA graph.

Writing a position is some thousand small kernels, which Python takes longer to launch than a GPU to run. A graph
launches them all at once. `torch.compile` fuses them besides, but takes a minute; recording takes as long as the step.
"""

from collections.abc import Callable

import torch


# Calls before the recording, in which libraries allocate what they keep and kernels are compiled.
_WARM_UP = 2


class EvoTokCapturedStep:
    """A function of tensors, run as it is at first, then recorded, and from there on replayed.

    Args:
        function: takes and returns tensors on one GPU, and may change others in place. It must not wait for the device;
            what else it reads must stay where it is; shapes and dtypes of all calls are the same.
    """

    def __init__(self, function: Callable[..., tuple[torch.Tensor, ...]]):
        self.function, self.calls = function, 0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[torch.Tensor, ...] = ()
        self.outputs: tuple[torch.Tensor, ...] = ()

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the function returns; the next call overwrites it.

        Raises:
            RuntimeError: the function cannot be recorded.
        """
        self.calls += 1
        if self.calls <= _WARM_UP:
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                outputs = self.function(*inputs)
            current.wait_stream(self.stream)
            return outputs
        if self.graph is None:
            self._record(inputs)
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.outputs

    def _record(self, inputs: tuple[torch.Tensor, ...]) -> None:
        self.inputs = tuple(given.clone() for given in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.outputs = self.function(*self.inputs)
        except RuntimeError as error:
            raise RuntimeError(
                "Writing a position cannot be recorded as a CUDA graph: something in it, a hook or a replaced layer "
                f"perhaps, waits for the device. Pass disable_compile=True to generate. ({error})"
            ) from error
        self.graph = graph


__all__ = ["EvoTokCapturedStep"]
