"""What the hardware does fast: the precision that `auto` stands for; and what to do where networks cannot be compiled.

May import: torch. Training asks for its precision when it begins, sampling when it draws. docs/hardware.md has the figures.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

# The values of ONEDNN_MAX_CPU_ISA, an environment variable of oneDNN, which computes torch's products on x86, with which it
# uses no bf16 instructions even where the CPU has them.
_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}


def precision_for(device: torch.device) -> str:
    """What `mixed_precision: auto` is on a device: "bf16" or "fp16", where its hardware multiplies them fast, else "no"."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        return "fp16" if torch.cuda.get_device_capability(device) >= (7, 0) else "no"
    # Older versions of torch do not tell what the CPU can do; there it is "no", which is right everywhere.
    can: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    is_limited = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_BF16
    return "bf16" if (can.get("avx512_bf16") or can.get("amx_bf16")) and not is_limited else "no"


def is_compiled(network: torch.nn.Module) -> bool:
    """Whether calls of the network are compiled: it was asked for, and the compiler has not failed in this process."""
    return getattr(network, "_compiled_call_impl", None) is not None and not _FAILED


_FAILED: list[str] = []  # why the compiler failed


def eager_if_not_compiled(call: Callable[[], Any]) -> Any:
    """The result of a call. If the compiler fails in it, the call is repeated, and nothing is compiled from then on.

    That is so where there is no C++ compiler, or on an older GPU than torch's compiler supports. Other errors are raised.
    """
    try:
        return call()
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):  # torch has no public class for them
            raise
        why = " ".join(str(error).split("\n\n")[0].split())
        advice = "install one (g++, clang or Visual Studio), or leave out" if "compiler found" in why else "leave out"
        warnings.warn(
            f"compile: the network cannot be compiled here and runs without it, more slowly ({why[:300]}); {advice} compile.",
            stacklevel=2,
        )
        torch.compiler.set_stance("force_eager")
        _FAILED.append(why)
        return call()
