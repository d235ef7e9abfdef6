"""Model batches of one shape: padded, or left to a network that takes every shape."""

from __future__ import annotations

import logging

import pytest
import torch

from embedstream_core.engine.static_shape import (
    Compute,
    StaticShape,
    capture_graph,
    replay_if_possible,
)

ROWS = 4
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def draw(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(0, 256, (rows, 2, 2, 3), dtype=torch.uint8, generator=generator)


def mean(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float().mean((1, 2))


class Recorded:
    """Computes means, and records the rows of each call."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(pixels))
        return mean(pixels)


@pytest.mark.parametrize(
    ("rows", "static", "flexible"),
    [(1, [], [1]), (2, [], [2]), (3, [4], []), (4, [4], [])],
)
def test_a_batch_over_half_is_padded(rows: int, static: list[int], flexible: list[int]) -> None:
    padded, as_it_is = Recorded(), Recorded()

    vectors = StaticShape(padded, as_it_is, ROWS)(draw(rows))

    torch.testing.assert_close(vectors, mean(draw(rows)), rtol=0, atol=0)
    assert (padded.rows, as_it_is.rows) == (static, flexible)


def test_a_batch_of_one_row_is_full() -> None:
    static = Recorded()

    StaticShape(static, Recorded(), rows=1)(draw(1))

    assert static.rows == [1]


def test_a_captured_graph_gets_full_batches() -> None:
    captured: list[Recorded] = []

    def capture(compute: Compute, inputs: torch.Tensor) -> Compute:
        assert compute is mean
        assert inputs.shape == (ROWS, 2, 2, 3)
        captured.append(Recorded())
        return captured[0]

    compute = replay_if_possible(mean, torch.zeros_like(draw(ROWS)), capture=capture)
    for rows in (4, 3, 1):
        torch.testing.assert_close(compute(draw(rows)), mean(draw(rows)), rtol=0, atol=0)

    assert captured[0].rows == [4, 4]


def test_without_a_graph_the_network_computes_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def fail(compute: Compute, inputs: torch.Tensor) -> Compute:
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")

    with caplog.at_level(logging.WARNING):
        compute = replay_if_possible(mean, draw(ROWS), capture=fail)

    assert compute is mean
    assert caplog.messages == [
        "no CUDA graph is used, because capturing it failed: operation not permitted when stream "
        "is capturing"
    ]


@pytest.mark.gpu
@GPU
def test_a_graph_computes_what_the_network_does() -> None:
    with torch.inference_mode():
        replay = capture_graph(mean, draw(ROWS).cuda())

    for seed in range(3):
        pixels = (draw(ROWS) + seed).cuda()
        torch.testing.assert_close(replay(pixels), mean(pixels), rtol=0, atol=0)


@pytest.mark.gpu
@GPU
def test_a_network_that_waits_for_its_results_is_not_captured() -> None:
    def wait(pixels: torch.Tensor) -> torch.Tensor:
        return mean(pixels) * (2 if pixels.sum().item() else 1)

    compute = replay_if_possible(wait, draw(ROWS).cuda())

    assert compute is wait
    # A capture that failed must leave the device usable.
    torch.testing.assert_close(mean(draw(ROWS).cuda()).cpu(), mean(draw(ROWS)), rtol=0, atol=1e-4)
