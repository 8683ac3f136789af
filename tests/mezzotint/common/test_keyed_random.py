import torch

from mezzotint.common.keyed_random import keyed_generator, keyed_seed


def test_seeds_are_those_of_earlier_versions():
    assert keyed_seed(0) == 3456079177858693020
    assert keyed_seed(7, "samples", 3) == 4244396017101751902


def test_generators_depend_on_every_label_and_on_nothing_else():
    def numbers(*labels):
        return torch.rand(4, generator=keyed_generator(*labels), device="cpu").tolist()

    torch.manual_seed(1)
    first = numbers(0, "a", 1)
    torch.manual_seed(2)
    assert numbers(0, "a", 1) == first
    assert len({tuple(numbers(*labels)) for labels in ((0, "a", 1), (1, "a", 1), (0, "a1"))}) == 3
