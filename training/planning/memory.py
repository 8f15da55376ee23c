"""Bytes on one GPU under each ZeRO stage, as DeepSpeed allocates them (Rajbhandari et al., 2020, Sec. 5).

The optimizer takes two moments of Adam and an fp32 copy for each trained parameter; at stage 0, in full precision, the
weights themselves are updated. Stage 1 shards that among the N processes, stage 2 the gradients, too, and stage 3 the
weights, of which it gathers those of the modules that compute.
"""

from typing import NamedTuple

from .profile import Profile


# DeepSpeed's stage3_max_live_parameters: so many stay gathered.
_LIVE_PARAMETERS = 1_000_000_000
# Without sharding so many gradients are copied into one buffer to be reduced.
_REDUCED_AT_ONCE = 500_000_000


class Sharding(NamedTuple):
    """Number, precision and sharding of the parameters.

    Args:
        parameters, trainable: numbers of them.
        width: bytes of a weight in the forward pass, 2 or 4.
        stage: of ZeRO; None for the Trainer alone, whose weights are fp32, with copies in half precision for autocast.
        processes: that the shards are divided among.
        bucket: elements that are reduced at once.
        offload: whether gradients and optimizer are in the memory of the machine, from stage 1 on.
        autocast: whether weights stay fp32 under DeepSpeed as well, with copies in half precision.
    """

    parameters: int
    trainable: int
    width: int
    stage: int | None
    processes: int = 1
    bucket: int = 0
    offload: bool = False
    autocast: bool = False

    @property
    def kept_width(self) -> int:
        """Returns the bytes of a weight and of a gradient as they are kept and sent."""
        return 4 if self.stage is None or self.autocast else self.width


class Memory(NamedTuple):
    """Bytes on one GPU at the peak of a step, by kind."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float

    @property
    def total(self) -> float:
        """Returns the bytes of all kinds."""
        return sum(self)


def estimate(sharding: Sharding, profile: Profile) -> Memory:
    """Estimates the peak of a step."""
    n, trainable, width = sharding.processes, sharding.trainable, sharding.kept_width
    copies = float(sharding.width * sharding.parameters) if sharding.width < width else 0.0
    if sharding.stage is None:
        # The peak with gradients held may come before the last of them: what is above them are activations.
        gradients = 4.0 * trainable
        weights = 4.0 * sharding.parameters + copies
        buckets = gradients * (n > 1)  # DDP's own
        activations = max(profile.held - float(sharding.width) * trainable, 0.0)
        return Memory(weights, gradients, 8.0 * trainable, buckets, activations)
    share = n if sharding.stage >= 1 else 1
    weights = width * sharding.parameters / (n if sharding.stage == 3 else 1) + copies
    gradients = width * trainable / (n if sharding.stage >= 2 else 1)
    copied = sharding.stage >= 1 or width < 4
    optimizer = (12.0 if copied else 8.0) * trainable / share
    # The step, after activations are freed: this share's gradients once more, flat and in fp32; of shares in half
    # precision a flat copy comes before, and is not freed yet.
    flat = width if sharding.stage >= 1 and width < 4 else 0
    step = (4.0 + flat) * trainable / share if copied else 0.0
    if sharding.stage == 0 and n > 1:
        step = max(step, float(width) * min(_REDUCED_AT_ONCE, trainable))
    buffers = 0.0
    if sharding.stage == 2:
        buffers = 2.0 * min(sharding.bucket, trainable) * width  # two, so that one fills while one is sent
    if sharding.stage == 3:
        gathered = min(_LIVE_PARAMETERS, sharding.parameters) * width
        buffers = gathered + min(sharding.bucket, trainable) * width
    if sharding.offload and sharding.stage >= 1:
        gradients, optimizer, step = 0.0, 0.0, 0.0
    if sharding.stage >= 2:
        return Memory(weights, gradients, optimizer, buffers, max(float(profile.released), step))
    activations = max(profile.held - float(sharding.width) * trainable, step)
    return Memory(weights, gradients, optimizer, buffers, activations)


def communication(
    parameters: int, trainable: int, stage: int, processes: int, width: int = 2, forwards: int = 1
) -> float:
    """Returns the bytes that each GPU sends in one step.

    A ring all-reduce sends twice (N - 1) / N of its tensor, a reduce-scatter or an all-gather once. Stages 0 to 2
    reduce the gradients and broadcast the new weights; stage 3 gathers all weights, frozen ones too, in each forward
    and again in the backward pass.
    """
    once = (processes - 1) / processes * width
    return once * (trainable + (forwards + 1) * parameters if stage == 3 else 2 * trainable)


def checkpoint_bytes(sharding: Sharding, outside: int, adapters: bool) -> float:
    """Returns the bytes of a checkpoint, the shards of all processes together.

    Beside the folder of weights, DeepSpeed writes its own state: the weights in use, but at stage 3; Adam's moments and
    the fp32 copies; and from stage 2 on the frozen weights once more. With adapters all of this is of trained
    parameters only.

    Args:
        outside: parameters outside of the engine, in fp32.
        adapters: whether LoRA adapters are trained.
    """
    trainable, width = sharding.trainable, sharding.kept_width
    inside = trainable if adapters else sharding.parameters
    folder = float(width * inside + (0 if adapters else 4 * outside))
    if sharding.stage is None:
        return folder + 8.0 * trainable
    again = (inside if sharding.stage < 3 else 0) + (inside - trainable if sharding.stage >= 2 else 0)
    return folder + width * again + 12.0 * trainable
