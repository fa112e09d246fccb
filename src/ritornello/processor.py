"""What this processor has for the compiled machine. Needs no torch."""

from __future__ import annotations


def instruction_set() -> str | None:
    """What the compiled machine uses; None without it."""
    try:
        from ritornello import _core
    except ImportError:
        return None
    return _core.instruction_set()


def has_bfloat16() -> bool:
    """Whether there are instructions for bfloat16. Without them its products take longer than those of float32."""
    return instruction_set() == "avx512bf16"
