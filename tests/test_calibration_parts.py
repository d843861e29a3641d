"""The parts of calibration, each against what it must find."""

from __future__ import annotations

import pytest
import torch

from uer.calibration.maps import balance, bilinear, lift, value_directions
from uer.calibration.moments import Moments, regress
from uer.calibration.selection import greedy_regressors
from uer.calibration.spool import Spool


def test_regression_of_what_is_linear_is_exact():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 5, dtype=torch.float64, generator=generator) + 2
    y = x @ torch.randn(5, 3, dtype=torch.float64, generator=generator) + 1
    moments = Moments(torch.device("cpu"), x=5, y=3)
    for rows in (slice(0, 70), slice(70, 200)):
        moments.add(x=x[rows], y=y[rows])
    found = regress(moments.share(), "x", "y", torch.zeros(3, 5, dtype=torch.float64))
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(200, 1, dtype=torch.float64)], 1), y).solution
    torch.testing.assert_close(found.matrix, solution[:5].T, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.offset, solution[5], rtol=1e-8, atol=1e-8)
    assert found.explained == pytest.approx(1, abs=1e-12)


def test_regression_from_few_tokens_does_not_follow_their_noise():
    """60 tokens for 40 regressors: on fresh tokens the chosen ridge beats plain least squares by far."""
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(40, 3, dtype=torch.float64, generator=generator)

    def sample(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(count, 40, dtype=torch.float64, generator=generator)
        return x, x @ truth + 5 * torch.randn(count, 3, dtype=torch.float64, generator=generator)

    x, y = sample(60)
    moments = Moments(torch.device("cpu"), x=40, y=3)
    moments.add(x=x, y=y)
    found = regress(moments.share(), "x", "y", torch.zeros(3, 40, dtype=torch.float64))
    plain = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution
    fresh, wanted = sample(4000)
    error = (wanted - fresh @ found.matrix.T - found.offset).pow(2).mean()
    plain_error = (wanted - (fresh - x.mean(0)) @ plain - y.mean(0)).pow(2).mean()
    assert error < 0.75 * plain_error


def test_greedy_choice_takes_the_best_of_all_pairs_where_greed_is_right():
    covariance = torch.diag(torch.tensor([4.0, 1.0, 9.0, 0.0, 2.0], dtype=torch.float64))
    assert greedy_regressors(covariance, covariance, 3).tolist() == [0, 2, 4]
    assert greedy_regressors(covariance, covariance, 5).tolist() == [0, 1, 2, 3, 4]


def test_greedy_choice_does_not_take_what_is_explained():
    """Three copies of a strong dimension and two weak ones: one copy is enough."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(500, 3, dtype=torch.float64, generator=generator) * torch.tensor([10.0, 2.0, 1.0])
    x = torch.cat([base[:, [0, 0, 0]], base[:, 1:]], 1)
    assert greedy_regressors(x.T.cov(), x.T.cov(), 3).tolist() == [0, 3, 4]


def test_a_ridge_keeps_greed_from_what_hardly_varies():
    """The last regressor tells nearly all, but only weights in the hundreds could use it."""
    covariance = torch.diag(torch.tensor([1.0, 1.0, 1e-4], dtype=torch.float64))
    cross = torch.tensor([[0.3, 0.2, 0.0099]], dtype=torch.float64)
    assert greedy_regressors(covariance, cross, 1).tolist() == [2]
    assert greedy_regressors(covariance, cross, 2, ridge=0.1).tolist() == [0, 1]


def test_slack_takes_the_map_nearer_to_the_prior_for_an_error_hardly_larger():
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(300, 20, dtype=torch.float64, generator=generator)
    x[:, 0] = 0.999 * x[:, 1] + 0.03 * x[:, 0]  # nearly dependent: their weights are loose
    y = x @ torch.randn(20, 3, dtype=torch.float64, generator=generator)
    y += torch.randn(300, 3, dtype=torch.float64, generator=generator)
    moments = Moments(torch.device("cpu"), x=20, y=3)
    moments.add(x=x, y=y)
    moments.share()
    prior = torch.zeros(3, 20, dtype=torch.float64)
    plain, near = (regress(moments, "x", "y", prior, slack=slack) for slack in (0.0, 0.01))
    assert near.matrix.norm() < 0.95 * plain.matrix.norm()
    assert 1 - near.explained < 1.03 * (1 - plain.explained)


def test_low_rank_maps_are_optimal():
    """The bilinear error of the rank-r maps is what Eckart and Young leave."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(6, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    second_q, second_k = a @ a.T, b @ b.T
    rows_q, rows_k = bilinear(second_q, second_k, 3)
    error = torch.eye(6, dtype=torch.float64) - rows_q.T @ rows_k
    mean_square = torch.trace(second_q @ error @ second_k @ error.T).item()
    values = torch.linalg.svdvals(torch.linalg.cholesky(second_q).T @ torch.linalg.cholesky(second_k))
    assert mean_square == pytest.approx(values[3:].pow(2).sum().item(), rel=1e-8)


def test_value_directions_are_optimal():
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    out = torch.randn(9, 6, dtype=torch.float64, generator=generator)
    rows, columns = value_directions(a @ a.T, out, 2)
    error = out - out @ columns @ rows
    values = torch.linalg.svdvals(out @ a)
    assert torch.trace(error @ a @ a.T @ error.T).item() == pytest.approx(values[2:].pow(2).sum().item(), rel=1e-8)


def test_lift_reproduces_what_is_wanted():
    generator = torch.Generator().manual_seed(4)
    weight, start = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((4, 9), (9, 5)))
    wanted = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(weight @ lift(wanted, weight, start), wanted)
    torch.testing.assert_close(lift(weight @ start, weight, start), start)


def test_spool_goes_to_disk_and_comes_back():
    spool = Spool(limit=100)
    tensors = {(i, name): torch.randn(5, dtype=torch.float64) for i in range(3) for name in "ab"}
    for (i, name), tensor in tensors.items():
        spool.put(i, **{name: tensor})
    assert len(spool.memory) == 2 and spool.folder is not None
    for (i, name), tensor in tensors.items():
        assert torch.equal(spool.get(i, name), tensor)
    spool.close()
    assert not spool.memory


@pytest.mark.parametrize("rank", [4, 2, 0])
def test_balanced_maps_weigh_the_same_and_have_the_same_product(rank):
    """Also where the product has less than full rank, or is nothing."""
    generator = torch.Generator().manual_seed(5)
    first = 30 * torch.randn(4, 9, dtype=torch.float64, generator=generator)
    second = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    second[:, rank:] = 0
    gauge, inverse = balance(first, second)
    torch.testing.assert_close(second @ inverse @ gauge @ first, second @ first, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gauge @ first @ first.T @ gauge.T, inverse.T @ second.T @ second @ inverse)
    if rank == 4:
        torch.testing.assert_close(gauge @ inverse, torch.eye(4, dtype=torch.float64))
