"""The cross-entropy that never holds all logits equals the one that does, with its gradients."""

import pytest
import torch
import torch.nn.functional as F

from evotok.modeling_evotok import losses_evotok
from evotok.modeling_evotok.losses_evotok import linear_cross_entropy


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(losses_evotok, "_BLOCK_ROWS", 4)


def inputs(dtype=torch.float32):
    torch.manual_seed(0)
    tensors = [torch.randn(10, 8), torch.randn(20, 8), torch.randn(20)]
    return [t.to(dtype).requires_grad_(True) for t in tensors], torch.randint(20, (10,))


def plain(states, weight, bias, targets):
    return F.cross_entropy(F.linear(states, weight, bias).float(), targets, reduction="sum")


def loss_and_gradients(function, tensors, targets):
    loss = function(*tensors, targets) / len(targets)
    loss.backward()
    gradients = [None if t is None else t.grad for t in tensors]
    for tensor in tensors:
        if tensor is not None:
            tensor.grad = None
    return loss.detach(), gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_plain_loss(dtype):
    tensors, targets = inputs(dtype)
    loss, gradients = loss_and_gradients(linear_cross_entropy, tensors, targets)
    expected, references = loss_and_gradients(plain, tensors, targets)
    tolerance = {} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(loss, expected)
    for gradient, reference in zip(gradients, references, strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, reference, **tolerance)


def test_equals_the_plain_loss_under_autocast():
    tensors, targets = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradients = loss_and_gradients(linear_cross_entropy, tensors, targets)
        expected, references = loss_and_gradients(plain, tensors, targets)
    torch.testing.assert_close(loss, expected)
    for gradient, reference in zip(gradients, references, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, reference, atol=2e-2, rtol=2e-2)


def test_frozen_weights_and_no_bias():
    (states, weight, _), targets = inputs()
    weight = weight.detach()
    loss, gradients = loss_and_gradients(linear_cross_entropy, [states, weight, None], targets)
    expected, references = loss_and_gradients(plain, [states, weight, None], targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients[0], references[0])
    assert gradients[1] is None


def test_without_gradients_it_makes_none():
    tensors, targets = inputs()
    with torch.no_grad():
        loss = linear_cross_entropy(*tensors, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(*tensors, targets).detach())


def test_no_more_than_a_block_of_logits_is_made(monkeypatch):
    rows = []
    monkeypatch.setattr(F, "linear", lambda x, *args, linear=F.linear: rows.append(len(x)) or linear(x, *args))
    tensors, targets = inputs()
    linear_cross_entropy(*tensors, targets).backward()
    assert rows == [4, 4, 2], "each row once, and nothing again in the backward pass"
