"""Wrappers around data sets of conversation records."""

from typing import Any

from torch.utils.data import Dataset


class Indexed(Dataset):
    """Gives every record its place as `index`, which seeds what is random about it."""

    def __init__(self, records):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.records[index] | {"index": index}
