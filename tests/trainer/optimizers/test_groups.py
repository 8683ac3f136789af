import pytest
import torch
from torch import nn

from mezzotint.common.errors import UserError
from trainer.optimizers import groups


def made(**decays: float) -> tuple[torch.optim.Optimizer, nn.Module]:
    module = nn.Linear(3, 2)
    weights = {"first": [module.weight], "last": [module.bias]}
    listed = [
        {"name": name, "params": weights[name], "weight_decay": decay}
        for name, decay in decays.items()
    ]
    return torch.optim.AdamW(listed), module


def test_groups_are_arranged_by_the_order_of_a_checkpoint(tmp_path):
    groups.write(tmp_path / groups.file_name("model"), groups.describe(*made(last=0.0, first=0.1)))
    order = groups.saved_order(tmp_path, "model")
    optimizer, module = made(first=0.1, last=0.0)
    groups.arrange(optimizer, order)
    assert [group["name"] for group in optimizer.param_groups] == order == ["last", "first"]
    groups.check(tmp_path / groups.file_name("model"), groups.describe(optimizer, module))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"last": 0.0, "first": 0.1}, "the group first stands where this run has last"),
        ({"first": 0.2, "last": 0.0}, "weight_decay of the group first was 0.1 and is now 0.2"),
        ({"first": 0.1}, "has 2 groups of weights and this run has 1"),
    ],
)
def test_other_groups_are_refused_by_name(tmp_path, now, message):
    path = tmp_path / "groups.json"
    groups.write(path, groups.describe(*made(first=0.1, last=0.0)))
    with pytest.raises(UserError, match=message):
        groups.check(path, groups.describe(*made(**now)))


def test_a_checkpoint_without_names_is_taken_as_it_is(tmp_path):
    assert groups.saved_order(tmp_path, "model") == groups.saved_order(None, "model") == []
    groups.check(tmp_path / "none.json", [])
