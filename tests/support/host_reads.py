"""What would make the host wait for a GPU, found on a CPU."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class HostReads(TorchDispatchMode):
    """Fails on operations that make the host wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique")), name
        indices = args[1] if name.startswith("aten.index.") else ()
        assert not any(i is not None and i.dtype == torch.bool for i in indices), name
        return func(*args, **(kwargs or {}))
