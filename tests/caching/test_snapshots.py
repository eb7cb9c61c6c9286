"""Snapshots and their weighted sum."""

from __future__ import annotations

import pytest
import torch

from hasten.caching.snapshots import History


def history(*values: torch.Tensor) -> History:
    """Values oldest first."""
    made = History()
    for index, value in enumerate(values):
        made.add(index, (value,))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_single_weight_of_one_gives_the_snapshot_bit_for_bit_but_not_itself(dtype: torch.dtype) -> None:
    old, new = torch.randn(2, 5, 3).to(dtype)
    kept = history(old, new)
    for weights, snapshot in (((1.0,), new), ((1.0, 0.0), new), ((0.0, 1.0), old)):
        predicted = kept.predict(weights, 0, None, dtype)
        assert torch.equal(predicted, snapshot)
        assert predicted.data_ptr() != snapshot.data_ptr()


def test_the_sum_is_accumulated_in_float32() -> None:
    old, new = (torch.full((4,), value, dtype=torch.bfloat16) for value in (1.0, 1.0078125))
    predicted = history(old, new).predict((4.0, -3.0), 0, None, torch.float32)
    assert torch.allclose(predicted, torch.full((4,), 1.03125))
    base = torch.full((4,), 256.0, dtype=torch.bfloat16)
    assert history(old, new).predict((4.0, -3.0), 0, base, torch.bfloat16).dtype is torch.bfloat16


def test_a_change_is_added_to_what_it_is_a_change_of() -> None:
    base, old, new = torch.randn(3, 6)
    predicted = history(old, new).predict((1.5, -0.5), 0, base, torch.float32)
    assert torch.allclose(predicted, base + 1.5 * new - 0.5 * old, atol=1e-6)
    assert not torch.equal(base, predicted)


def test_the_inputs_are_left_alone() -> None:
    base, old, new = torch.randn(3, 6)
    copies = [tensor.clone() for tensor in (base, old, new)]
    history(old, new).predict((1.5, -0.5), 0, base, torch.float32)
    history(old, new).predict((1.0,), 0, base, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip((base, old, new), copies, strict=True))


def test_flags_and_indices_are_not_interpolated() -> None:
    kept = history(torch.tensor([1, 2]), torch.tensor([3, 9]))
    assert kept.predict((1.5, -0.5), 0, None, torch.int64).tolist() == [3, 9]


def test_trimming_forgets_the_oldest() -> None:
    kept = history(*torch.randn(4, 3))
    kept.trim(2)
    assert list(kept.indices) == [3, 2]
    assert kept.nbytes == 2 * 3 * 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_noticed_until_it_is_gone(bad: float) -> None:
    kept = history(torch.tensor([1.0, bad]))
    assert not kept.finite()
    kept.add(1, (torch.ones(2),))
    assert not kept.finite()
    kept.trim(1)
    assert kept.finite()


def test_inner_products_are_taken_once_per_pair_and_follow_what_is_kept() -> None:
    kept = History()
    values = [(torch.randn(5), torch.tensor([7]), torch.randn(2, 3)) for _ in range(4)]
    for index, snapshot in enumerate(values):
        kept.add(index, snapshot)
        kept.trim(3)
        held = [
            torch.cat([one.double(), two.double().flatten()]) for one, _, two in values[max(index - 2, 0) : index + 1]
        ]
        expected = torch.stack(held[::-1]) @ torch.stack(held[::-1]).T
        assert torch.allclose(torch.tensor(kept.gram(), dtype=torch.float64), expected)
    kept.trim(1)
    assert kept.gram() == [[pytest.approx(float(held[-1] @ held[-1]))]]
    kept.cast(torch.bfloat16)
    assert kept.gram()[0][0] != pytest.approx(float(held[-1] @ held[-1]), rel=1e-6)


def test_casting_changes_floats_only() -> None:
    kept = History()
    kept.add(0, (torch.randn(3), torch.tensor([7])))
    kept.cast(torch.float16)
    assert [value.dtype for value in kept.values[0]] == [torch.float16, torch.int64]
