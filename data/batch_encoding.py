"""Encodes batches of images to codes in threads, so that the device computes while others decode images."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F

from ..modeling_evotok.modeling_evotok_vq import EvoTokVQModel


# On a CPU each batch has the activations of its own, on a GPU one batch is computed while others are copied.
_MAX_CPU_BATCHES, _GPU_BATCHES = 4, 2


def available_cores() -> int:
    """Returns the number of cores that this process may use, shared evenly with the others that torchrun started."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def exact_float32() -> Iterator[None]:
    """Computes matmuls and convolutions in float32 without TF32, which PyTorch allows for convolutions by default."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Sets the number of threads that compute one operation on a CPU, also for threads that are started within."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class BusyTime:
    """Total time in which at least one thread is inside of this context."""

    def __init__(self):
        self.seconds = 0.0
        self._lock, self._inside, self._since = threading.Lock(), 0, 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._since = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self.seconds += time.perf_counter() - self._since


class BatchEncoder:
    """Encodes batches of pixels to codes; a context, in which `parallel` of them are encoded at the same time.

    On a CPU each thread encodes a batch of its own on its share of the cores: threads that share a batch wait for each
    other at every operation, and longer where other threads decode images. On a GPU each of two threads has a stream,
    so that one batch is computed while the pixels of another and the codes of a third are copied. Float32 is exact in
    both, and codes are those of [`EvoTokVQModel.encode`].

    Args:
        model: on the device that it runs on.
        levels: number of levels to encode.
        compiled_batch: number of images for which the encoder's layers are compiled; 0 to run them as they are.
            Smaller batches are padded to it. Compiled operations round in another order.

    Attributes:
        parallel: number of batches that are encoded at the same time.
        busy: time with a batch on the device, copies included.
    """

    def __init__(self, model: EvoTokVQModel, levels: int, compiled_batch: int = 0):
        self.model, self.levels, self.compiled_batch = model, levels, compiled_batch
        self.on_gpu = model.device.type == "cuda"
        self.parallel = _GPU_BATCHES if self.on_gpu else min(_MAX_CPU_BATCHES, torch.get_num_threads())
        self.busy = BusyTime()
        self._context = ExitStack()
        if compiled_batch:
            for layer in model.vision_tower.encoder.layers:  # all have the same code, which is compiled once
                layer.compile(dynamic=False)

    def __enter__(self) -> Self:
        threads = 1 if self.on_gpu else torch.get_num_threads() // self.parallel
        self._context.enter_context(exact_float32())
        self._context.enter_context(intra_op_threads(threads))
        pool = ThreadPoolExecutor(self.parallel, initializer=self._use_stream if self.on_gpu else None)
        self._submit: Callable[..., Future[np.ndarray]] = self._context.enter_context(pool).submit
        return self

    def __exit__(self, *error: object) -> None:
        self._context.close()

    def submit(self, pixels: Sequence[torch.Tensor]) -> "Future[np.ndarray]":
        """Starts to encode images, each (3, H, W) in [-1, 1]: the result is their codes (B, N, levels) int64."""
        batch = torch.empty(len(pixels), *pixels[0].shape, pin_memory=self.on_gpu)
        return self._submit(self._encode, torch.stack(list(pixels), out=batch))

    def _use_stream(self) -> None:
        device: Any = self.model.device  # also the current one: kernels of Triton run there
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))

    def _encode(self, pixels: torch.Tensor) -> np.ndarray:
        with self.busy:
            count = len(pixels)
            pixels = pixels.to(self.model.device, non_blocking=True)
            if self.compiled_batch:
                pixels = F.pad(pixels, (0, 0) * 3 + (0, self.compiled_batch - count))
            return self.model.encode(pixels, self.levels)[:count].cpu().numpy()
