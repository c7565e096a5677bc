"""The order of the data: every pass whole, sources by weight, a pure function of seed and number."""

import pytest
import torch

from dropout_grpo.exploration.seeds import fold
from dropout_grpo.rl.data_order import DataOrder


def test_one_source_is_shuffled_passes() -> None:
    order = DataOrder([[0, 1, 2, 3, 4]], (1.0,), seed=2)
    places = order.indices(range(20))
    for epoch in range(4):
        generator = torch.Generator().manual_seed(int(fold(torch.tensor(2), epoch)))
        assert places[5 * epoch : 5 * epoch + 5] == torch.randperm(5, generator=generator).tolist()


SOURCES = [list(range(10)), list(range(10, 13)), list(range(13, 20))]
WEIGHTS = (0.5, 0.3, 0.2)


def source_of(place: int) -> int:
    return 0 if place < 10 else 1 if place < 13 else 2


def test_sources_keep_to_their_shares_at_every_moment() -> None:
    places = DataOrder(SOURCES, WEIGHTS, seed=0).indices(range(500))
    counts = [0, 0, 0]
    for number, place in enumerate(places, start=1):
        counts[source_of(place)] += 1
        assert all(abs(count - weight * number) <= 1 for count, weight in zip(counts, WEIGHTS, strict=True))
    assert counts == [250, 150, 100]


def test_every_pass_over_a_source_is_whole_and_in_an_order_of_its_own() -> None:
    places = DataOrder(SOURCES, WEIGHTS, seed=0).indices(range(500))
    for index, source in enumerate(SOURCES):
        drawn = [place for place in places if source_of(place) == index]
        size = len(source)
        passes = [drawn[i : i + size] for i in range(0, len(drawn) - size + 1, size)]
        assert all(sorted(one) == source for one in passes)
        assert len({tuple(one) for one in passes}) > 2
    # Sources of the same size do not have the same order.
    twins = DataOrder([list(range(9)), list(range(9, 18))], (0.5, 0.5), seed=0).indices(range(18))
    assert [p for p in twins if p < 9] != [p - 9 for p in twins if p >= 9]


@pytest.mark.parametrize("start", [0, 1, 37, 480])
def test_it_does_not_matter_what_was_asked_before(start: int) -> None:
    whole = DataOrder(SOURCES, WEIGHTS, seed=5).indices(range(500))
    assert DataOrder(SOURCES, WEIGHTS, seed=5).indices(range(start, start + 16)) == whole[start : start + 16]
    assert DataOrder(SOURCES, WEIGHTS, seed=6).indices(range(500)) != whole
