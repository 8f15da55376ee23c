"""What a batch without one usable sample repeats, and how many such batches end a run."""

import pytest

from evotok.data.collators import EmptyBatchFallback


def test_a_barren_batch_repeats_the_last_good_sample_for_a_while():
    last_good = EmptyBatchFallback(limit=3)
    with pytest.raises(ValueError, match=r"Nothing in the batch can be used, \{'image': 2\} so far: check"):
        last_good.fill([], {"image": 2})
    assert last_good.fill(["a", "b"], {}) == ["a", "b"]
    assert [last_good.fill([], {}) for _ in range(2)] == [["b"], ["b"]]
    assert last_good.fill(["c"], {}) == ["c"], "one good sample, and it counts anew"
    assert [last_good.fill([], {}) for _ in range(2)] == [["c"], ["c"]]
    with pytest.raises(ValueError, match=r"Nothing in the last 3 batches can be used, \{'image': 9\} so far"):
        last_good.fill([], {"image": 9})
