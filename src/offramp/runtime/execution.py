"""Execution backends: spans computed as the model does, or faster and nearly the same.

    compile        None: eager | "inductor": torch.compile | "aot": an AOTInductor package
    dtype          None: the model's own | "bfloat16"
    channels_last  convolutions on images laid out (B, H, W, C) in memory
    int8           linear layers with int8 weights, activations quantised as they come

``Execution()`` is the model bit for bit. Every other backend is compared with it when it is prepared.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from offramp.errors import InputError

COMPILERS = ("inductor", "aot")
DTYPES = ("bfloat16",)
_REORDERED, _BFLOAT16, _INT8 = 1e-4, 0.05, 0.15


@dataclass(frozen=True)
class Execution:
    """How spans are computed: an execution backend.

    Args:
        compile: "inductor" or "aot" for compiled code, None for eager.
        dtype: "bfloat16" to compute in it, None for the model's own.
        channels_last: whether images are laid out channels last in memory.
        int8: whether linear layers are quantised dynamically.

    Raises:
        InputError: an unknown value, or options that do not go together.
    """

    compile: str | None = None
    dtype: str | None = None
    channels_last: bool = False
    int8: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (("compile", self.compile, COMPILERS), ("dtype", self.dtype, DTYPES)):
            if value is not None and value not in known:
                expected = " or ".join([*map(repr, known), "None"])
                raise InputError(f"Execution: {name}: expected {expected}, got {value!r}")
        for name, flag in (("channels_last", self.channels_last), ("int8", self.int8)):
            if not isinstance(flag, bool):
                raise InputError(f"Execution: {name}: expected True or False, got {flag!r}")
        for name, other in (("dtype", self.dtype), ("compile", self.compile)):
            if self.int8 and other is not None:
                raise InputError(
                    f"Execution: expected int8=True or {name}={other!r}, got both; int8 is for eager float32 "
                    "models, so choose one"
                )

    @property
    def plain(self) -> bool:
        """Whether it is eager PyTorch, which equals the model bit for bit."""
        return self == Execution()

    @property
    def tolerance(self) -> float:
        """Largest difference from the eager backend that is accepted, relative to the largest value."""
        if self.plain:
            return 0.0
        if self.int8:
            return _INT8
        return _REORDERED if self.dtype is None else _BFLOAT16

    @property
    def name(self) -> str:
        """For tables and messages: "plain", "channels-last bfloat16 inductor".

        >>> Execution(compile="aot", channels_last=True).name
        'channels-last aot'
        """
        layout = "channels-last" if self.channels_last else None
        parts = (layout, self.dtype, "int8" if self.int8 else None, self.compile)
        return " ".join(filter(None, parts)) or "plain"

    def __str__(self) -> str:
        values = ((field, getattr(self, field.name)) for field in fields(self))
        changed = (f"{field.name}={value!r}" for field, value in values if value != field.default)
        return f"Execution({', '.join(changed)})"
