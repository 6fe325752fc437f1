"""Which maps of a dense form a weight reaches."""

import torch


@torch.no_grad()
def levels_changed_by(network, image, name):
    """The levels whose maps change when half of the entries of the parameter `name` do; the network stays as it was."""
    before, parameter = network(image), network.get_parameter(name)
    kept = parameter.clone()
    parameter.view(-1)[::2] += 0.5
    after = network(image)
    parameter.copy_(kept)
    return [i for i, one, other in zip(network.out_indices, before, after) if not torch.equal(one, other)]


def norms_reach(network, image):
    """For each norm in `network.norms`, by its level, the levels that it changes."""
    with_weights = [i for i, norm in network.norms.items() if list(norm.parameters())]
    return {int(i): levels_changed_by(network, image, f"norms.{i}.weight") for i in with_weights}
