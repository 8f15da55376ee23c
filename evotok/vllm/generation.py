"""Image generation in an engine's batches: the image of each row of a batch, and the codes of a step.

An image is one request, or with guidance two that share only its codes. Each of its positions is one step:

    hidden states of all rows of images -> depth decoder -> codes, level by level -> their sum, next input of both rows

The engine receives the token `image_generation_token_id` at each of N positions. A row is held if the other row of its
image is not in the same step: the position is generated in a later step, with the same result.

Shapes: R rows, H width of the language model, N positions, L levels, K codebook size, C codebook width.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from evotok.modeling_evotok.modeling_evotok_depth import EvoTokDepthDecoder
from evotok.modeling_evotok.sampling_evotok import IMAGE_GENERATION_DEFAULTS, EvoTokCodeSampler


KEY = "evotok_image"
"""Key of a request's extra arguments (`SamplingParams.extra_args`) for a `Row` as a dict."""
SETTINGS = tuple(name.removeprefix("image_") for name in IMAGE_GENERATION_DEFAULTS)


class Row(NamedTuple):
    """Row of an image in a batch.

    Args:
        image: name of the image, the same in both rows of a guided image.
        is_conditional: False for the row of the negative prompt.
        seed: of the image.
        settings: values of all `SETTINGS`, in order.
    """

    image: str
    is_conditional: bool
    seed: int
    settings: tuple[float | int | bool | None, ...]

    @property
    def is_guided(self) -> bool:
        """Returns whether the image has two rows."""
        return self.settings[SETTINGS.index("guidance_scale")] != 1

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields that `read_row` reads."""
        return self._asdict() | {"settings": list(self.settings)}


def read_row(extra_args: Mapping[str, Any] | None) -> Row | None:
    """Returns the row of an image that a request generates, or None for a text request."""
    content = (extra_args or {}).get(KEY)
    return None if content is None else Row(**content | {"settings": tuple(content["settings"])})


class RowStep(NamedTuple):
    """Computation of one row in a step.

    Args:
        index: index of the row in the batch.
        row: row of an image.
        first_token: index of its first token among the batch's tokens.
        first_position: position in the image of this token; negative in the prompt.
        count: tokens in this step.
        is_complete: whether the row has no tokens after these yet, so that the next position can be generated.
    """

    index: int
    row: Row
    first_token: int
    first_position: int
    count: int
    is_complete: bool

    @property
    def next_position(self) -> int:
        """Returns the position that the last of its tokens predicts."""
        return self.first_position + self.count


class _Image:
    """State of an unfinished image: the sums of its codes, and its random generator."""

    def __init__(self, seed: int, positions: int, width: int, device: torch.device):
        self.features = torch.zeros(positions, width, device=device)  # (N, C)
        self.generator = torch.Generator(device).manual_seed(seed)


class _GroupedSampler:
    """Sampler of one code for each row, with the settings of the row's image.

    Args:
        groups: indices of rows, [conditional; unconditional] under guidance, and their sampler.
    """

    def __init__(self, groups: Sequence[tuple[torch.Tensor, EvoTokCodeSampler]]):
        self.groups = groups

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Samples codes: (R, K) -> (R,) int64."""
        codes = torch.empty(len(logits), dtype=torch.long, device=logits.device)
        for rows, sampler in self.groups:
            codes[rows] = sampler(logits[rows])
        return codes


class UnfinishedImages:
    """Images that are being generated, by name.

    Args:
        depth_decoder: in evaluation mode, on the device of the language model.
        codebooks: (L, K, C) entries of the levels that are generated, float32.
        positions: N.
    """

    def __init__(self, depth_decoder: EvoTokDepthDecoder, codebooks: torch.Tensor, positions: int):
        self._decoder, self._codebooks, self._positions = depth_decoder, codebooks, positions
        self._images: dict[str, _Image] = {}

    def __len__(self) -> int:
        return len(self._images)

    def keep(self, names: Collection[str]) -> None:
        """Drops all images but these."""
        for name in self._images.keys() - names:
            del self._images[name]

    def inputs(self, steps: Sequence[RowStep]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Returns the tokens of a step that are positions of images, and the sums of their codes.

        Returns:
            (T,) indices of the batch's tokens, (T, C); None when there are none.
        """
        tokens, features = [], []
        for step in steps:
            start, stop = max(step.first_position, 0), step.next_position
            if stop > start:
                first = step.first_token + start - step.first_position
                tokens += range(first, first + stop - start)
                features.append(self._images[step.row.image].features[start:stop])
        return (torch.tensor(tokens, device=features[0].device), torch.cat(features)) if tokens else None

    @torch.no_grad()
    def generate(self, steps: Sequence[RowStep], hidden: torch.Tensor) -> list[torch.Tensor | None]:
        """Generates the next position of every image whose rows are all complete in this step.

        Args:
            steps: of all rows of images.
            hidden: (R, H) of the last token of each of them.

        Returns:
            For each step its codes (L,), int64, -1 where the model's scores were not finite; None for a row that is
            held, or not complete.
        """
        pairs = self._pair(steps)
        generated: list[torch.Tensor | None] = [None] * len(steps)
        if not pairs:
            return generated
        order = [index for pair in pairs for index in pair]
        groups = self._group(pairs, steps, hidden.device)
        codes, features = self._decoder.generate_codes(hidden[order], self._codebooks, _GroupedSampler(groups))
        for rows, sampler in groups:
            if sampler.failed:
                codes[rows] = -1
        for row, index in enumerate(order):
            step = steps[index]
            self._images[step.row.image].features[step.next_position] = features[row]
            generated[index] = codes[row]
        return generated

    def _pair(self, steps: Sequence[RowStep]) -> list[tuple[int, ...]]:
        """Returns the indices of rows of each image whose next position can be generated, the conditional row first."""
        complete: dict[str, dict[bool, int]] = {}
        for index, step in enumerate(steps):
            if step.is_complete and 0 <= step.next_position < self._positions:
                complete.setdefault(step.row.image, {})[step.row.is_conditional] = index
        return [
            (rows[True], rows[False]) if len(rows) == 2 else (rows[True],)
            for rows in complete.values()
            if len(rows) == 2 or (True in rows and not steps[rows[True]].row.is_guided)
        ]

    def _group(
        self, pairs: Sequence[tuple[int, ...]], steps: Sequence[RowStep], device: torch.device
    ) -> list[tuple[torch.Tensor, EvoTokCodeSampler]]:
        """Groups the rows of equal settings, in the order of `pairs` one after another."""
        groups: dict[tuple, list[tuple[int, ...]]] = {}
        generators: dict[tuple, list[torch.Generator]] = {}
        position = 0
        for pair in pairs:
            row = steps[pair[0]].row
            if row.image not in self._images:
                width = self._codebooks.shape[-1]
                self._images[row.image] = _Image(row.seed, self._positions, width, self._codebooks.device)
            groups.setdefault(row.settings, []).append(tuple(range(position, position + len(pair))))
            generators.setdefault(row.settings, []).append(self._images[row.image].generator)
            position += len(pair)
        found = []
        for settings, members in groups.items():
            rows = torch.tensor([rows[kind] for kind in range(len(members[0])) for rows in members], device=device)
            sampler = EvoTokCodeSampler(
                **dict(zip(SETTINGS, settings, strict=True)),
                generator=generators[settings],
                failed=torch.zeros((), dtype=torch.bool, device=device),
            )
            found.append((rows, sampler))
        return found
