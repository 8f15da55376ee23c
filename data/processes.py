"""The processes that share an evaluation: one, or those that torchrun started."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm


Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Deals items out to the processes and puts the results in order again, so that many find what one finds.

    What is done with an item must not depend on the items before it: give each its own seed.
    """

    def __init__(self):
        self.state = PartialState(cpu=not torch.accelerator.is_available())  # unasked, CPUs do not join

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.state.is_main_process

    @property
    def count(self) -> int:
        """How many processes there are."""
        return self.state.num_processes

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], description: str) -> list[Result]:
        """`function` of every item, in the order of `items`, the same list on every process.

        Args:
            function: its results travel between processes, so tensors in them belong on the CPU.
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
        """What `function` gives to the main process, which alone calls it, on all of them."""
        return self.gather(function() if self.is_main else None)[0]

    def gather(self, value: Result) -> list[Result]:
        """What every process has, in the order of the processes, the same list on all of them."""
        return gather_object([value]) if self.count > 1 else [value]

    def wait(self) -> None:
        """Until all processes are here."""
        self.state.wait_for_everyone()
