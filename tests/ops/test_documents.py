"""Documents are numbered by where they change, whatever their own numbers are."""

import torch

from scangolf.ops.documents import documents


def test_numbers_beyond_32_bits_and_that_come_again() -> None:
    seq_idx = torch.tensor([[5, 5, 5 + 2**32, 5, 5], [-1, 2, 2, 9, 2]])
    found = documents(seq_idx)
    assert found.dtype == torch.int32
    assert found.tolist() == [[0, 0, 1, 2, 2], [0, 1, 1, 2, 3]]
    assert documents(seq_idx[:, :1]).tolist() == [[0], [0]]
    assert documents(seq_idx[:, :0]).shape == (2, 0)
