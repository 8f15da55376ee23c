"""Accelerators, by their data sheets."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """Limits of an accelerator.

    Args:
        memory: bytes.
        flops: dense bf16 operations a second.
        memory_bandwidth, node_bandwidth, network_bandwidth: bytes a second from its memory, to the other GPUs of its
            node, and to other nodes.
    """

    memory: float
    flops: float
    memory_bandwidth: float
    node_bandwidth: float
    network_bandwidth: float


GIB = 2**30
# The network: one card of 400 Gb/s for each GPU where the reference design has it, otherwise 100 or 25 Gb/s.
GPUS = {
    "h200": Gpu(141e9, 989e12, 4.8e12, 450e9, 50e9),
    "h100": Gpu(80 * GIB, 989e12, 3.35e12, 450e9, 50e9),
    "a100-80g": Gpu(80 * GIB, 312e12, 2.04e12, 300e9, 25e9),
    "a100-40g": Gpu(40 * GIB, 312e12, 1.56e12, 300e9, 25e9),
    "l40s": Gpu(48 * GIB, 362e12, 864e9, 32e9, 12.5e9),
    "a10": Gpu(24 * GIB, 125e12, 600e9, 32e9, 3.1e9),
    "rtx4090": Gpu(24 * GIB, 165e12, 1008e9, 32e9, 3.1e9),
    "rtx3090": Gpu(24 * GIB, 71e12, 936e9, 32e9, 3.1e9),
}
GPUS_A_NODE = 8
