"""Bytes on one GPU under each ZeRO stage, as DeepSpeed lays them out (Rajbhandari et al., 2020, Sec. 5).

The optimizer's part of a trainable parameter is Adam's two moments and an fp32 copy that it updates; at stage 0, in
full precision, the weights themselves are updated. Stage 1 shares that out among the N processes, stage 2 the gradients
too, and stage 3 the weights, of which it gathers what the modules at work need.
"""

from typing import NamedTuple

from .profile import Profile


# DeepSpeed's stage3_max_live_parameters: so many stay gathered, in whole.
_LIVE_PARAMETERS = 1_000_000_000
# Without sharding so many gradients are copied into one buffer to be reduced.
_REDUCED_AT_ONCE = 500_000_000


class Engine(NamedTuple):
    """How parameters are kept.

    Args:
        parameters, trainable: numbers of them.
        width: bytes of a weight in the forward pass, 2 or 4.
        stage: of ZeRO; None for the Trainer alone, whose weights are fp32, with copies in half precision for autocast.
        processes: that share.
        bucket: elements that are reduced at once.
        offload: whether gradients and optimizer live in the machine's memory, from stage 1 on.
        autocast: whether weights stay fp32 under an engine as well, with copies in half precision.
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
        """Bytes of a weight and of a gradient as they are kept and sent."""
        return 4 if self.stage is None or self.autocast else self.width


class Memory(NamedTuple):
    """Bytes on one GPU at the peak of a step, by what they are."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


def estimate(engine: Engine, profile: Profile) -> Memory:
    """The peak of a step."""
    n, trainable, width = engine.processes, engine.trainable, engine.kept_width
    copies = float(engine.width * engine.parameters) if engine.width < width else 0.0
    if engine.stage is None:
        # The peak with gradients held may come before the last of them: what is above them are activations.
        gradients = 4.0 * trainable
        weights = 4.0 * engine.parameters + copies
        buckets = gradients * (n > 1)  # DDP's own
        activations = max(profile.held - float(engine.width) * trainable, 0.0)
        return Memory(weights, gradients, 8.0 * trainable, buckets, activations)
    share = n if engine.stage >= 1 else 1
    weights = width * engine.parameters / (n if engine.stage == 3 else 1) + copies
    gradients = width * trainable / (n if engine.stage >= 2 else 1)
    copied = engine.stage >= 1 or width < 4
    optimizer = (12.0 if copied else 8.0) * trainable / share
    # What the step is taken on, made when activations are gone: this share's gradients once more, flat and in fp32; of
    # shares in half precision a flat copy comes before, and is still there.
    flat = width if engine.stage >= 1 and width < 4 else 0
    step = (4.0 + flat) * trainable / share if copied else 0.0
    if engine.stage == 0 and n > 1:
        step = max(step, float(width) * min(_REDUCED_AT_ONCE, trainable))
    buffers = 0.0
    if engine.stage == 2:
        buffers = 2.0 * min(engine.bucket, trainable) * width  # two, so that one fills while one is sent
    if engine.stage == 3:
        gathered = min(_LIVE_PARAMETERS, engine.parameters) * width
        buffers = gathered + min(engine.bucket, trainable) * width
    if engine.offload and engine.stage >= 1:
        gradients, optimizer, step = 0.0, 0.0, 0.0
    if engine.stage >= 2:
        # The step comes when activations are gone.
        return Memory(weights, gradients, optimizer, buffers, max(float(profile.released), step))
    activations = max(profile.held - float(engine.width) * trainable, step)
    return Memory(weights, gradients, optimizer, buffers, activations)


def communication(
    parameters: int, trainable: int, stage: int, processes: int, width: int = 2, forwards: int = 1
) -> float:
    """Bytes that each GPU sends in one step.

    A ring all-reduce sends twice (N - 1) / N of what it reduces, a reduce-scatter or an all-gather once. Stages 0 to 2
    reduce the gradients and spread the new weights; stage 3 gathers all weights, frozen ones too, in each forward and
    again in the backward pass.
    """
    once = (processes - 1) / processes * width
    return once * (trainable + (forwards + 1) * parameters if stage == 3 else 2 * trainable)


def checkpoint_bytes(engine: Engine, outside: int, adapters: bool) -> float:
    """Bytes of a checkpoint, the shares of all processes together.

    Beside the weights as a folder to load, an engine writes what it goes on from: the weights as they are in use, but
    at stage 3; Adam's moments and the fp32 copies; and from stage 2 on what is frozen once more. Of a model with
    adapters all of this is of what learns alone.

    Args:
        outside: parameters that no engine sees, kept in fp32.
        adapters: whether low-rank adapters are what learns.
    """
    trainable, width = engine.trainable, engine.kept_width
    inside = trainable if adapters else engine.parameters
    folder = float(width * inside + (0 if adapters else 4 * outside))
    if engine.stage is None:
        return folder + 8.0 * trainable
    again = (inside if engine.stage < 3 else 0) + (inside - trainable if engine.stage >= 2 else 0)
    return folder + width * again + 12.0 * trainable
