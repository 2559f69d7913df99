"""Several devices where there is none: a tensor on `lazy:0`, `lazy:1` ... has its values on the CPU.

As on GPUs, an operation refuses tensors of two devices, copies and numbers aside. What is simulated is where things
lie, and not in which order devices end. torch has no kernels for a device of this name, so these are in nobody's way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

KIND = "lazy"
aten: Any = torch.ops.aten
ACROSS = (aten.copy_.default, aten._to_copy.default)
"""What takes tensors of two devices."""
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
"""What takes indices from the CPU."""


class Far(torch.Tensor):
    """A tensor on a simulated device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> Far:
        make: Any = torch.Tensor._make_wrapper_subclass  # pyright: ignore[reportAttributeAccessIssue]
        made = make(cls, held.shape, strides=held.stride(), dtype=held.dtype, device=device)
        made.held = held
        return made

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            return func.decompose(*args, **kwargs)  # it comes here whole where nothing may learn
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        devices = {one.device for one in given if isinstance(one, Far) or (one.dim() and func not in INDEXED)}
        if len(devices) > 1 and func not in ACROSS:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {devices}")
        device = next((one.device for one in given if isinstance(one, Far)), torch.device("cpu"))
        if kwargs.get("device") is not None:
            device = torch.device(kwargs["device"])
            kwargs["device"] = "cpu"
        found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if func._schema.is_mutable:
            return kwargs["out"] if "out" in kwargs else args[0]
        inside = torch.is_inference_mode_enabled() and not (func.is_view and not args[0].is_inference())
        with torch.inference_mode(inside):  # where a view of what may learn is such a one as well
            return tree_map(lambda one: _laid(one, device), found)

    def data_ptr(self) -> int:
        """Return where the values are."""
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        """Return the memory of the values."""
        return self.held.untyped_storage()


def _held(one: Any) -> Any:
    return one.held if isinstance(one, Far) else one


def _laid(one: Any, device: torch.device) -> Any:
    return Far(one, device) if isinstance(one, Tensor) and device.type == KIND else one


@contextmanager
def simulated() -> Iterator[None]:
    """Let tensors be put on simulated devices."""

    def empty(size: Sequence[int], dtype: Any = None, device: Any = None, **rest: Any) -> Far:
        return Far(torch.empty(size, dtype=dtype), torch.device(device))

    def strided(size: Sequence[int], stride: Sequence[int], dtype: Any = None, device: Any = None, **rest: Any) -> Far:
        return Far(torch.empty_strided(size, stride, dtype=dtype), torch.device(device))

    def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        _held(target).copy_(_held(source))
        return target

    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", empty, KIND.capitalize())
    library.impl("empty_strided", strided, KIND.capitalize())
    library.impl("_copy_from", copy_from, KIND.capitalize())  # by `torch.tensor`, which asks no class of tensors
    try:
        yield
    finally:
        library._destroy()
