from __future__ import annotations

import pytest
import torch

from dinomed.networks.bags import POOLINGS, SHARPNESS, BagHead


def head(pooling: str, **options: int) -> BagHead:
    torch.manual_seed(0)
    return BagHead(6, 3, pooling, **options).double().eval()


def bags(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_fills_a_bag_up_does_not_count(pooling: str) -> None:
    network, short = head(pooling), bags(2, 4, 6)
    padded = torch.cat([short, torch.full((2, 3, 6), torch.nan, dtype=torch.float64)], dim=1)
    valid = torch.arange(7) < 4
    torch.testing.assert_close(network(padded, valid.expand(2, -1)), network(short))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_order_in_a_bag_does_not_count(pooling: str) -> None:
    network, bag = head(pooling), bags(1, 5, 6)
    torch.testing.assert_close(network(bag.flip(1)), network(bag))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_bag_of_one_gets_that_ones_own_logits(pooling: str) -> None:
    network, bag = head(pooling), bags(3, 1, 6)
    torch.testing.assert_close(network(bag), network.instance_logits(bag)[:, 0])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_are_finite_with_padding(pooling: str) -> None:
    network, bag = head(pooling), bags(2, 4, 6).requires_grad_()
    network(bag, torch.tensor([[True, True, False, False], [True, False, False, False]])).sum().backward()
    assert bag.grad is not None
    assert bool(torch.isfinite(bag.grad).all())
    assert bool((bag.grad[1, 1:] == 0).all())
    assert bool((bag.grad[1, 0] != 0).any())


def test_the_mean_and_the_maximum_are_what_their_names_say() -> None:
    bag = bags(2, 5, 6)
    mean = head("mean", hidden_features=0)
    torch.testing.assert_close(mean(bag), mean.classify(bag.mean(1)))
    both = head("meanmax")
    torch.testing.assert_close(both(bag), both.classify(torch.cat([bag.mean(1), bag.amax(1)], dim=1)))


def test_the_smooth_maximum_lies_between_mean_and_maximum_of_the_vectors_own_logits() -> None:
    network, bag = head("smoothmax"), bags(2, 5, 6)
    own = network.instance_logits(bag)
    expected = (SHARPNESS * own).exp().mean(1).log() / SHARPNESS
    torch.testing.assert_close(network(bag), expected)
    assert bool((network(bag) <= own.amax(1)).all())
    assert bool((network(bag) >= own.mean(1)).all())


def test_only_attention_has_weights_and_they_sum_to_one() -> None:
    valid = torch.tensor([[True, True, False], [True, True, True]])
    weights = head("attention").attention(bags(2, 3, 6), valid)
    assert weights is not None
    torch.testing.assert_close(weights.sum(1), torch.ones(2, dtype=torch.float64))
    assert weights[0, 2].item() == 0
    assert head("mean").attention(bags(2, 3, 6)) is None


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="'median' is unknown; choose from mean, meanmax, attention, smoothmax"):
        BagHead(6, 3, "median")
