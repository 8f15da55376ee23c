"""Processes that share the work of an evaluation: one, or those that torchrun started."""

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm


Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Distributes items to the processes and gathers the results in order, the same ones with any number of processes.

    The result of an item must not depend on the items before it: each needs its own seed.
    """

    def __init__(self):
        self.state = PartialState(cpu=not torch.accelerator.is_available())  # otherwise processes on CPUs do not join

    @property
    def is_main(self) -> bool:
        """Returns whether this process writes the files."""
        return self.state.is_main_process

    @property
    def count(self) -> int:
        """Returns the number of processes."""
        return self.state.num_processes

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], description: str) -> list[Result]:
        """Applies a function to all items; returns the results in their order, the same list on every process.

        Args:
            function: its results are sent between processes: tensors in them must be on the CPU.
            items: the same on every process; process r takes the items r, r + count, ...
            description: of the progress bar.
        """
        rank, count = self.state.process_index, self.count
        mine = range(rank, len(items), count)
        bar = tqdm(mine, description, disable=None if self.is_main else True, leave=False)
        done = [(index, function(items[index])) for index in bar]
        if count > 1:
            done = gather_object(done)
        return [result for _, result in sorted(done, key=lambda pair: pair[0])]

    def once(self, function: Callable[[], Result]) -> Result:
        """Calls a function on the main process and returns its result on all of them."""
        return cast("Result", self.gather(function() if self.is_main else None)[0])

    def gather(self, value: Result) -> list[Result]:
        """Returns the values of all processes, in the order of their ranks, the same list on each of them."""
        return gather_object([value]) if self.count > 1 else [value]

    def wait(self) -> None:
        """Waits for all processes."""
        self.state.wait_for_everyone()
