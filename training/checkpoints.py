"""Which checkpoint a killed run goes on from."""

import re
from pathlib import Path


def check_source(name: str | None, key: str) -> None:
    """Raises ValueError unless `name`, said by a recipe under `key`, is a folder or may be the id of a Hub model: for
    anything else the Hub would be asked, again and again, where there is no network."""
    if name is not None and not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{key}: {name}: no such folder: train the stage before, or give another checkpoint.")


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Newest `checkpoint-N` that was written to its end, or None.

    A Trainer checkpoint is not written atomically: `trainer_state.json` comes after weights and optimizer, and every
    rank writes its `rng_state*` file last. A folder without them was cut off and is passed over.
    """
    folders = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    for folder in sorted(folders, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        has_state = (folder / "trainer_state.json").is_file()
        has_rng = any(folder.glob("rng_state*.pth"))
        latest = folder / "latest"  # DeepSpeed names its own subfolder here
        has_engine = not latest.is_file() or (folder / latest.read_text().strip()).is_dir()
        if has_state and has_rng and has_engine:
            return str(folder)
    return None
