import numpy as np
import torch

from sgl.kernels.ops.random import stream_of, uniform

# the first outputs of splitmix64 from state 1234567, as published with the reference implementation's ports
REFERENCE = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_numbers_are_those_of_splitmix64() -> None:
    numbers = uniform(torch.full((5,), 1234567), torch.arange(5))
    assert numbers.tolist() == [(output >> 11) * 2.0**-53 for output in REFERENCE]


def test_numbers_are_uniform_across_seeds_and_counters() -> None:
    seeds = torch.tensor([stream_of(seed) for seed in range(200)]).repeat_interleave(200)
    numbers = uniform(seeds, torch.arange(200).repeat(200)).numpy()
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 99 + 5 * np.sqrt(2 * 99)
    grid = numbers.reshape(200, 200)
    for a, b in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):  # next counter, next seed
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / 200


def test_seeds_of_any_size_and_sign_have_their_own_stream() -> None:
    seeds = [0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 2, -(2**63) + 1]
    streams = {stream_of(seed) for seed in seeds}
    assert len(streams) == len(seeds)
    assert all(-(2**63) <= stream < 2**63 for stream in streams)
    assert stream_of(-1) == stream_of(2**64 - 1)
