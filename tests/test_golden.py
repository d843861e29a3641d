"""The golden run through the package's own master, student, penalty and optimizer."""

from __future__ import annotations

import golden
import pytest
from small import Product, Shape

SHAPE = Shape(golden.HIDDEN, heads=12, feedforward=golden.FFN, layers=1, vocab=golden.VOCABULARY,
              positions=golden.POSITIONS)


def run(steps: int) -> None:
    """Compare the first steps: every loss, every mask. Of the last one the loss is all: no update follows from it."""
    expected = golden.figures()
    product = Product(SHAPE, golden.initial_weights(), target_dim=192, strategy="dim", w_step=5, l2_lambda=20.0,
                      learning_rate=1e-5, compactor_learning_rate=5e-4, load=(128, 20))
    for step, batch in enumerate(golden.batches(steps), start=1):
        loss = product.step([batch]) if step < steps or step % 5 == 0 else product.next_loss([batch])
        assert loss == pytest.approx(expected.loss[step - 1], rel=1e-10, abs=0), f"loss of step {step}"
        if step % 5 == 0:
            for name, keep in expected.keep.items():
                assert (product.groups[name].keep.numpy() == keep[step // 5 - 1]).all(), f"mask of {name}, step {step}"


@pytest.mark.usefixtures("all_threads")
def test_the_first_steps():
    """The first masks are chosen in step 5; what they do to weights and moments is in the losses of 6 and 7."""
    run(7)


@pytest.mark.long
@pytest.mark.usefixtures("all_threads")
@pytest.mark.timeout(3600)
def test_all_steps():
    run(160)
