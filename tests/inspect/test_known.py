"""Small values are carried along on the meta device, and no others."""

from __future__ import annotations

import pytest
import torch

from hasten.inspect.known import META, KnownValues, UnknownValueError, known, value_of
from hasten.inspect.watching import on_meta


def test_what_a_factory_makes_is_known_and_what_follows_from_it() -> None:
    with on_meta(KnownValues()):
        numbers = torch.arange(6)
        assert numbers.device == META
        assert numbers.sum().item() == 15
        assert (numbers.view(2, 3) + 1).tolist() == [[1, 2, 3], [4, 5, 6]]
        assert numbers[numbers > 2].shape == (3,)
        assert numbers.cpu().device.type == "cpu"


def test_writing_into_a_view_reaches_what_it_is_a_view_of() -> None:
    with on_meta(KnownValues()):
        numbers = torch.zeros(4)
        numbers[1:3] = 5
        assert numbers.tolist() == [0, 5, 5, 0]


def test_weights_are_not_known_and_spoil_what_they_are_written_into() -> None:
    with on_meta(KnownValues()):
        weights = torch.nn.Linear(3, 4).weight
        assert value_of(weights) is None
        numbers = torch.zeros(4, 3)
        numbers[:2] = weights[:2]
        with pytest.raises(UnknownValueError, match="only weights or pixels"):
            numbers.sum().item()
        with pytest.raises(UnknownValueError, match="depends on weights"):
            weights.nonzero()


def test_a_known_mask_chooses_from_what_is_unknown() -> None:
    mask = known(torch.tensor([True, False, True]))
    with on_meta(KnownValues()):
        assert torch.randn(3, 7)[mask].shape == (2, 7)
        assert torch.randn(2, 3, 7)[:, mask].shape == (2, 2, 7)


def test_tensors_from_the_cpu_may_meet_those_on_the_meta_device() -> None:
    scale = torch.tensor([1.0, 2.0])
    with on_meta(KnownValues()):
        assert (torch.randn(3, 2) * scale).shape == (3, 2)
        assert (torch.ones(3, 2) * scale).sum().item() == 9
