"""What a file of data may expand to: rows of a few kilobytes on a disk must not take gigabytes of memory."""

FREE = 64_000_000  # bytes that any file may expand to
RATIO = 20  # times its size, beyond that: text compresses to a tenth at best, pictures hardly at all
MAX_FILE = 256_000_000  # bytes of the files of one sample, as of a picture behind an address
MAX_LIST = 10_000  # elements, such as turns of a conversation, in one row
MAX_HEADER = 8192  # bytes of a tar's long names: a path has 4,096 at most
MAX_WIDTH = 1_000_000  # bytes of a value of a width that the schema fixes


def expands_too_far(expanded: int, size: int) -> bool:
    """Whether `expanded` bytes are more than `size` bytes on a disk may become."""
    return expanded > FREE + RATIO * size


__all__ = ["FREE", "MAX_FILE", "MAX_HEADER", "MAX_LIST", "MAX_WIDTH", "RATIO", "expands_too_far"]
