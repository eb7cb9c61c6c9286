"""Which channels go together: the dependency graph of torch-pruning, and scores of its groups.

DepGraph: Fang et al. 2023, arXiv 2301.12900.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.prune.calls import Call, call_again


@dataclass(frozen=True)
class Coupled:
    """Channels that can only go together.

    Attributes:
        members: modules, each with whether its results or its inputs are meant, its channels, and which of the
            coupled ones each of these is.
        root: the module and the function of torch-pruning that takes channels away.
    """

    members: tuple[tuple[nn.Module, bool, Tensor, Tensor], ...]
    root: Any

    @property
    def size(self) -> int:
        """How many there are."""
        return 1 + max(int(which.max()) for *_, which in self.members)

    def scores(self, gradients: bool) -> Tensor:
        """What each is worth: the mean over the weights in its members of w², or of |w · ∂L/∂w|.

        Taylor importance: Molchanov et al. 2019, arXiv 1906.10771.
        """
        total, count = torch.zeros(self.size), 0
        for module, is_output, channels, which in self.members:
            weight = getattr(module, "weight", None)
            if weight is None or weight.ndim < 2:
                continue
            value = (weight * weight.grad).abs() if gradients and weight.grad is not None else weight.square()
            value = value.detach().float().cpu()
            value = value.flatten(1) if is_output else value.transpose(0, 1).flatten(1)
            total.index_add_(0, which, value[channels].sum(1) / value.sum().clamp_min(1e-20))
            count += 1
        return total / max(count, 1)


class Graph:
    """The dependency graph of a model.

    Args:
        model: its modules are changed by `take`: give a copy.
        call: a call that goes through all of it.

    Raises:
        HastenError: torch-pruning is not there, or cannot follow this model.
    """

    def __init__(self, model: nn.Module, call: Call) -> None:
        try:
            import torch_pruning
        except ImportError as error:
            raise HastenError("pruning widths needs torch-pruning: pip install 'hasten[prune]'") from error
        self._model = model.requires_grad_(True)
        self._names = {module: name for name, module in model.named_modules()}
        inputs = {"call": call}
        try:
            with torch.enable_grad():
                self._graph = torch_pruning.DependencyGraph().build_dependency(
                    model, inputs, forward_fn=lambda module, given: call_again(module, given["call"]), verbose=False
                )
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise HastenError(f"{type(model).__name__}: torch-pruning cannot follow it: {text}") from error

    def groups(self) -> Iterator[Coupled]:
        """All channels, with those that go together."""
        for found in self._graph.get_all_groups(root_module_types=[nn.modules.conv._ConvNd, nn.Linear]):
            # Where a result is split into halves that are multiplied, what takes the product counts each pair once.
            layers = [item for item in found if item.dep.target.module in self._names]
            smallest = min(layers, key=lambda item: len(item.idxs))
            module, handler = smallest.dep.target.module, smallest.dep.handler
            whole = self._graph.get_pruning_group(module, handler, list(range(len(smallest.idxs))))
            yield Coupled(tuple(self._members(whole)), (module, handler))

    def _members(self, group: Any) -> Iterator[tuple[nn.Module, bool, Tensor, Tensor]]:
        for item in group:
            module = item.dep.target.module
            if isinstance(module, nn.Module) and next(module.parameters(recurse=False), None) is not None:
                is_output = self._graph.is_out_channel_pruning_fn(item.dep.handler)
                yield module, is_output, torch.tensor(item.idxs), torch.tensor(item.root_idxs)

    def take(self, coupled: Coupled, channels: list[int]) -> None:
        """Take these of the coupled channels out of every module."""
        module, handler = coupled.root
        self._graph.get_pruning_group(module, handler, channels).prune()
