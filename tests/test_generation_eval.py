"""Pictures of prompts, and finding in them what was asked for."""

import pytest
import torch

from evotok.eval.text_to_image.retrieval import (
    Gallery,
    retrieval_ranks,
    round_pixels,
    standardize,
    topk,
)


EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


def ranks(features, gallery, concepts, wanted):
    tensors = torch.tensor(features), torch.tensor(gallery), torch.tensor(concepts), torch.tensor(wanted)
    return retrieval_ranks(*tensors).tolist()


def test_rank_of_the_wanted_concept():
    gallery, concepts = [EAST, NORTH, WEST], [7, 3, 5]  # concepts in no order, with gaps
    assert ranks([[5.0, 1.0]] * 3, gallery, concepts, [7, 3, 5]) == [1, 2, 3]


def test_a_concept_counts_by_its_best_drawing():
    gallery, concepts = [WEST, [1.0, 0.1], EAST, NORTH], [0, 0, 1, 2]
    assert ranks([EAST, [1.0, 0.2]], gallery, concepts, [0, 0]) == [2, 1]


def test_pictures_that_say_nothing_gain_nothing():
    gallery, concepts = [EAST, NORTH, WEST], [0, 1, 2]
    assert ranks([[0.0, 0.0]], gallery, concepts, [1]) == [3], "a tie with all"
    assert ranks([[float("nan"), 0.0]], gallery, concepts, [1]) == [3]
    assert ranks([EAST], [EAST, EAST], [0, 1], [0]) == [2], "two concepts drawn alike"


def test_a_concept_that_the_gallery_lacks():
    with pytest.raises(ValueError, match="Concept 4 is not in the gallery"):
        ranks([EAST], [EAST, NORTH], [1, 2], [4])


def test_topk_counts_ranks_from_one():
    assert [topk(torch.tensor([1, 2, 6, 5]), k) for k in (1, 5, 9)] == [0.25, 0.75, 1.0]


def test_standardized_on_the_reference():
    reference = torch.tensor([[0.0, 10.0], [2.0, 10.0]])
    torch.testing.assert_close(standardize(torch.tensor([[3.0, 10.0]]), reference), torch.tensor([[2**0.5, 0.0]]))


def test_gallery_of_all_styles_and_of_one():
    features = torch.tensor([[9.0, 1.0], [1.0, 9.0], [1.0, 8.0], [8.0, 2.0]])
    gallery = Gallery(features, [0, 1, 0, 1], ["flat", "flat", "round", "round"])
    own = gallery.find(features, [0, 1, 0, 1], gallery.styles)
    assert own == {"top1": 1.0, "top5": 1.0, "top1_same_style": 1.0, "top5_same_style": 1.0}
    # Nearest to the flat 0; among the round ones, to 1.
    assert gallery.find(torch.tensor([[9.0, 0.9]]), [1], ["round"]) == own | {"top1": 0.0}


def test_rounded_as_in_eight_bits():
    pixels = torch.tensor([-3.0, -1.0, 0.0001, 0.5, 1.0, 2.0]).bfloat16()
    rounded = round_pixels(pixels)
    bytes_ = (rounded + 1) * 127.5
    torch.testing.assert_close(bytes_, bytes_.round())
    assert rounded.dtype == torch.float32 and rounded[0] == rounded[1] == -1 and rounded[-1] == rounded[-2] == 1
