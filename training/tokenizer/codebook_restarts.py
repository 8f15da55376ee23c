"""Whether codebooks can settle at a batch size, or most of their entries are replaced at every step."""

from ...modeling_evotok.configuration_evotok import EvoTokVQConfig


def restart_warning(config: EvoTokVQConfig, images: int) -> str | None:
    """What is to be said of so many images in a forward pass, on all processes; None where entries can settle.

    An entry's moving count of uses tends to the mean number of vectors that a pass has for it; if that is below the
    threshold, entries are restarted as soon as they were. Accumulated batches are passes of their own.
    """
    threshold, size = config.codebook_restart_threshold, config.codebook_size
    uses = images * config.num_positions / size
    if uses >= threshold:
        return None
    enough = -(-threshold * size // config.num_positions)
    return (
        f"{images} images a step use each of the {size:,} codes {uses:.2g} times on average, less than "
        f"codebook_restart_threshold={threshold:g}: most are replaced at every step, and none is learned. Give "
        f"training.per_device_train_batch_size for {enough:,.0f} images on all processes, or a lower threshold."
    )


__all__ = ["restart_warning"]
