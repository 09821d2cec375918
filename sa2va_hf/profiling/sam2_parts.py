"""Where the time of a SAM 2 training step goes: by part of the network, forward and backward.

Forward, a part's time is that between its hooks. Backward, it is that of the autograd nodes which the part has made:
those behind its outputs that no part before it has made. Nodes run one after the other, each between two hooks.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

REST = "the rest"


class Parts:
    """Times of named parts in seconds, `forward` and `backward`; on a CPU of its own time, which other processes
    change least."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.forward: Counter[str] = Counter()
        self.backward: Counter[str] = Counter()
        self._active: str | None = None
        self._start = 0.0
        self._known: set[Any] = set()  # nodes that some part has made; held, since a number may be given again

    def clock(self) -> float:
        if self.device != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def watch(self, name: str, module: nn.Module) -> None:
        """Count a module, wherever it is called outside of another part, as a part of this name."""
        module.register_forward_pre_hook(lambda _, inputs, named: self._enter(name, (inputs, named)), with_kwargs=True)
        module.register_forward_hook(lambda _, inputs, outputs: self._leave(name, outputs))

    def watched(self, name: str, function: Callable) -> Callable:
        """The same of a function."""

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            self._enter(name, (arguments, named))
            outputs = function(*arguments, **named)
            self._leave(name, outputs)
            return outputs

        return call

    def step(self, forward: Callable[[], Tensor]) -> None:
        """Run and time a step: its loss, and the backward pass."""
        start = self.clock()
        loss = forward()
        self._own(REST, loss)
        self._known.clear()
        middle = self.clock()
        self.forward[REST] += middle - start - self._hidden - sum(self.forward.values())
        loss.backward()
        self.backward[REST] += self.clock() - middle - sum(self.backward.values())

    _hidden = 0.0  # seconds spent here on looking for nodes

    def _enter(self, name: str, inputs: Any) -> None:
        if self._active is None:
            self._own(REST, inputs)
            self._active, self._start = name, self.clock()

    def _leave(self, name: str, outputs: Any) -> None:
        if self._active == name:
            self.forward[name] += self.clock() - self._start
            self._active = None
            self._own(name, outputs)

    def _own(self, name: str, outputs: Any) -> None:
        """Have the nodes behind `outputs` that nobody owns count as those of a part."""
        start = self.clock()
        waiting = [tensor.grad_fn for tensor in _tensors(outputs) if tensor.grad_fn is not None]
        while waiting:
            node = waiting.pop()
            if node in self._known or type(node).__name__ == "AccumulateGrad":
                continue
            self._known.add(node)
            self._time(name, node)
            waiting += [behind for behind, _ in node.next_functions if behind is not None]
        self._hidden += self.clock() - start

    def _time(self, name: str, node: Any) -> None:
        def before(gradients: Any) -> None:
            self._start = self.clock()

        def after(inputs: Any, outputs: Any) -> None:
            self.backward[name] += self.clock() - self._start

        node.register_prehook(before)
        node.register_hook(after)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def watch_network(parts: Parts, sam: nn.Module) -> None:
    """The parts of a SAM 2: of this package's training and of the original's, which have the same modules."""
    decoder = sam.sam_mask_decoder
    for name, modules in {
        "image encoder": [sam.image_encoder, decoder.conv_s0, decoder.conv_s1],
        "memory attention": [sam.memory_attention],
        "memory encoder": [sam.memory_encoder],
        "prompts and mask decoder": [sam.sam_prompt_encoder, decoder],
    }.items():
        for module in modules:
            parts.watch(name, module)
