"""Capturing work on a GPU as a CUDA graph: a hundred kernels are then launched at the cost of one.

A graph is captured by `capture` and run again by `graph.replay()`. It reads and writes the memory that it was captured
with, wherever that is; `Addresses` says whether a module's numbers still lie there.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

#: Runs before a capture. Triton compiles and loads kernels and cuDNN chooses them in the first; PyTorch's
#: documentation advises three.
_WARM_UP_RUNS = 3


def capture(run: Callable[[], object], device: torch.device) -> torch.cuda.CUDAGraph:
    """Capture what `run` does on a GPU; random numbers of later replays come from PyTorch's generator of that GPU.

    `run` is called four times: three times to warm up, on a stream of its own, then for the capture. The generator is
    set back after the warm-up. What `run` returns at last is memory of the graph that each replay overwrites. Whether
    `run` waits for the device shows in its last warm-up: a capture that fails leaves PyTorch's generator unusable.

    Args:
        run: Function of no arguments whose inputs lie at addresses that stay.
        device: The GPU on which it works.

    Raises:
        ValueError: The device is not a GPU.
        RuntimeError: `run` waits for the device, which a graph cannot.
    """
    if device.type != "cuda":
        raise ValueError(f'A CUDA graph needs a GPU, got the device "{device}"; call the function itself there.')
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.random.fork_rng([device]), torch.cuda.stream(side):
                for _ in range(_WARM_UP_RUNS - 1):
                    run()
                with _waiting_refused():
                    run()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                run()
        except RuntimeError as error:
            raise RuntimeError(
                "The work could not be captured as a CUDA graph. A part of it, such as an encoder of your own, reads "
                "a value back from the GPU (.item(), .cpu(), `if tensor:`) or copies one to it; the error above names "
                "the operation."
            ) from error
    return graph


@contextlib.contextmanager
def _waiting_refused() -> Iterator[None]:
    """Have PyTorch raise RuntimeError where an operation waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns once that the mode is a prototype.
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Addresses:
    """Where the parameters and buffers of a module lie, so that a graph can tell whether they were moved."""

    def __init__(self, module: nn.Module) -> None:
        """Note where they are, and keep them there as long as this object lives."""
        self._held: list[tuple[dict[str, Tensor | None], str, str, Tensor, int]] = []
        for prefix, part in module.named_modules():
            for table in (part._parameters, part._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        path = f"{prefix}.{name}" if prefix else name
                        self._held.append((table, name, path, tensor.detach(), tensor.data_ptr()))

    def first_moved(self) -> str | None:
        """Return the name of a parameter or buffer that lies elsewhere now, or None."""
        for table, name, path, _, address in self._held:
            tensor = table.get(name)
            if tensor is None or tensor.data_ptr() != address:
                return path
        return None
