"""Both terms against values worked out by hand."""

import math

import pytest
import torch

from tailor_ray.training.losses import mle_sum, orpo_sum, redi_sum, triplet_sum


def test_mle_of_two_tokens():
    # uniform over 4: ln 4 = 1.386294, weight 0.1; softmax of (ln 3, 0, -inf, -inf) gives 3/4: ln 4/3 = 0.287682
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, -1e9, -1e9]])
    loss = mle_sum(logits, torch.tensor([2, 0]), torch.tensor([0.1, 1.0]))
    assert loss.item() == pytest.approx(0.1386294 + 0.2876821, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mle_has_torchs_gradient(dtype):
    torch.manual_seed(0)
    logits = (5 * torch.randn(7, 13)).to(dtype)
    targets, weights = torch.randint(13, (7,)), torch.rand(7)
    found, expected = (logits.clone().requires_grad_() for _ in range(2))
    loss = 3.0 * mle_sum(found, targets, weights)
    theirs = 3.0 * (torch.nn.functional.cross_entropy(expected.float(), targets, reduction="none") * weights).sum()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    loss.backward()
    theirs.backward()
    assert found.grad.dtype == dtype
    assert torch.allclose(found.grad, expected.grad, atol=1e-6 if dtype == torch.float32 else 1e-2)


def test_mle_of_no_target_is_zero():
    assert mle_sum(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0)).item() == 0.0


def test_triplet_by_hand():
    h = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    positive = torch.tensor([[0.6, 0.8], [3.0, 0.0], [0.0, 1.0]])  # cosines 0.6, 1, 0
    negative = torch.tensor([[0.0, 5.0], [-1.0, 0.0], [1.0, 0.0]])  # cosines 0, -1, 1
    # 1 - 0.6 + 0 = 0.4;  1 - 1 - 1 = -1 → 0;  1 - 0 + 1 = 2
    for weights, expected in ([1.0, 1.0, 1.0], 2.4), ([0.5, 3.0, 0.25], 0.7):
        loss = triplet_sum(h, positive, negative, 1.0, torch.tensor(weights))
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_triplet_of_no_pair_is_zero_and_has_a_gradient():
    nothing = torch.zeros(0, 8, requires_grad=True)
    loss = triplet_sum(nothing, nothing, nothing, 1.0, torch.zeros(0))
    loss.backward()
    assert loss.item() == 0.0
    assert nothing.grad is not None


def test_a_kept_margin_sends_no_gradient():
    h = torch.tensor([[1.0, 0.0]], requires_grad=True)
    triplet_sum(h, torch.tensor([[1.0, 0.01]]), torch.tensor([[-1.0, 0.1]]), 1.0, torch.ones(1)).backward()
    assert h.grad.abs().max().item() == 0.0


def test_orpo_by_hand():
    # p(y+) = 1/2, odds 1; p(y-) = 1/4, odds 1/3: -ln sigmoid(ln 3) = -ln(3/4) = 0.287682; the other way round -ln(1/4)
    right, wrong = torch.tensor([math.log(2), math.log(4)]), torch.tensor([math.log(4), math.log(2)])
    assert orpo_sum(right[:1], wrong[:1], torch.ones(1)).item() == pytest.approx(0.2876821, abs=1e-6)
    assert orpo_sum(right, wrong, torch.tensor([1.0, 0.5])).item() == pytest.approx(
        0.2876821 + 0.5 * 1.3862944, abs=1e-6
    )


def test_orpo_of_certain_and_of_hopeless_texts_is_finite():
    right = torch.tensor([0.0, 60.0], requires_grad=True)
    wrong = torch.tensor([60.0, 0.0], requires_grad=True)
    loss = orpo_sum(right, wrong, torch.ones(2))
    loss.backward()
    assert all(torch.isfinite(one).all() for one in (loss, right.grad, wrong.grad))


def test_redi_by_hand():
    wrong = torch.tensor([0.5, 3.0], requires_grad=True)  # log-likelihoods -0.5 and -3 → -2
    loss = redi_sum(wrong, 2.0, torch.tensor([0.25, 1.0]))
    assert loss.item() == pytest.approx(-0.25 * 0.5 - 2.0)
    loss.backward()
    assert wrong.grad.tolist() == [-0.25, 0.0]  # what is unlikely enough is pushed no further


@pytest.mark.parametrize("term", [lambda n: orpo_sum(n, n, n), lambda n: redi_sum(n, 2.0, n)])
def test_likelihoods_of_no_pair_are_zero_and_have_a_gradient(term):
    nothing = torch.zeros(0, requires_grad=True)
    loss = term(nothing)
    loss.backward()
    assert loss.item() == 0.0
