"""What an error says to people: one line, and nothing in it that a terminal would obey."""


def printable(message: str) -> str:
    """`message` as one line of at most 500 characters; what would move the cursor or hide text is spelled out."""
    words = " ".join(message.split())
    words = words if len(words) <= 500 else f"{words[:450]} ..."
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)


def one_line(error: BaseException) -> str:
    """The message of an error; that of the operating system names the file and what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return printable(f"{error.filename}: {error.strerror.lower()}: check the path.")
    return printable(str(error)) or type(error).__name__


def why_no_record(error: BaseException) -> str:
    """Why a row of a data set is no record: what its adapter raised, which for a missing column is a KeyError."""
    return f"no column {printable(str(error))}" if isinstance(error, KeyError) else one_line(error)
