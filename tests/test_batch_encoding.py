"""Batches that are encoded in threads: how many at once, their threads and precision, time, compiled layers."""

import os
import threading
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from conftest import TINY_VQ

from evotok import EvoTokVQConfig, EvoTokVQModel
from evotok.data import batch_encoding
from evotok.data.batch_encoding import BatchEncoder, BusyTime, available_cores


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder_config = TINY_VQ["encoder_config"] | {"num_hidden_layers": 3}
    return EvoTokVQModel(EvoTokVQConfig(**TINY_VQ | {"encoder_config": encoder_config})).eval()


def random_images(model, count):
    size = model.config.image_size
    return list(torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(count)) * 2 - 1)


def test_batches_are_encoded_at_the_same_time_in_exact_float32(two_threads):
    met, seen = threading.Barrier(2, timeout=20), []
    tf32 = torch.backends.cudnn.allow_tf32

    def encode(pixels, levels):
        met.wait()
        seen.append((torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return torch.full((len(pixels), 4, levels), int(pixels[0, 0, 0, 0]))

    stub = cast(EvoTokVQModel, SimpleNamespace(device=torch.device("cpu"), encode=encode))
    encoder = BatchEncoder(stub, levels=3)
    for _ in range(2):  # it can be entered again
        with encoder:
            results = [encoder.submit([torch.full((3, 2, 2), float(number))] * 2) for number in range(4)]
            assert [result.result()[1, 0].tolist() for result in results] == [[number] * 3 for number in range(4)]
    assert set(seen) == {(1, False, False)} and len(seen) == 8
    assert torch.get_num_threads() == 2 and torch.backends.cudnn.allow_tf32 is tf32
    assert encoder.busy.seconds > 0


def test_codes_are_those_of_encode(model, two_threads):
    batches = [random_images(model, count) for count in (3, 3, 1)]
    with BatchEncoder(model, levels=2) as encoder:
        results = [encoder.submit(batch) for batch in batches]
        for batch, result in zip(batches, results, strict=True):
            assert (result.result() == model.encode(torch.stack(batch))[..., :2].numpy()).all()


def test_errors_of_a_batch_are_raised_with_its_result(model):
    with BatchEncoder(model, levels=2) as encoder:
        result = encoder.submit([torch.full((3, 32, 32), torch.nan)])
        with pytest.raises(ValueError, match="pixel_values hold NaN"):
            result.result()


def test_compiled_layers_have_one_shape(model, monkeypatch):
    graphs, compile_layer = [], torch.nn.Module.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **kwargs: compile_layer(self, backend=backend, **kwargs)
    )
    batches = [random_images(model, count) for count in (4, 3, 1)]
    expected = [model.encode(torch.stack(batch))[..., :2].numpy() for batch in batches]
    with BatchEncoder(model, levels=2, compiled_batch=4) as encoder:
        found = [encoder.submit(batch).result() for batch in batches]
    for layer in model.vision_tower.encoder.layers:
        layer._compiled_call_impl = None
    assert all((codes == wanted).all() for codes, wanted in zip(found, expected, strict=True))
    assert len(graphs) == 1, "once for all layers and batches"


def test_busy_time_counts_overlaps_once(monkeypatch):
    moments = iter([1.0, 5.0, 7.0, 8.0])  # when the first one comes in and the last one goes out
    monkeypatch.setattr(batch_encoding, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    busy = BusyTime()
    with busy:
        with busy, busy:
            pass
        assert busy.seconds == 0
    with busy:
        pass
    assert busy.seconds == 4.0 + 1.0


def test_cores_are_shared_by_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for processes, cores in ((None, 16), ("8", 2), ("32", 1)):
        if processes:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert available_cores() == cores


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams and pinned memory need a GPU")
def test_codes_on_a_gpu_are_those_of_encode_in_exact_float32(model):
    on_gpu = EvoTokVQModel(model.config).eval()
    on_gpu.load_state_dict(model.state_dict())
    on_gpu.to("cuda")
    batches = [random_images(model, count) for count in (4, 4, 4, 2)]
    with BatchEncoder(on_gpu, levels=2) as encoder:
        results = [encoder.submit(batch) for batch in batches]
        with batch_encoding.exact_float32():
            for batch, result in zip(batches, results, strict=True):
                assert (result.result() == on_gpu.encode(torch.stack(batch).cuda(), 2).cpu().numpy()).all()
