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
        _check_one_of("compile", self.compile, COMPILERS)
        _check_one_of("dtype", self.dtype, DTYPES)
        for name in ("channels_last", "int8"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise InputError(f"Execution: {name}: expected True or False, got {value!r}")

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
        parts = (
            "channels-last" if self.channels_last else "",
            self.dtype or "",
            "int8" if self.int8 else "",
            self.compile or "",
        )
        return " ".join(filter(None, parts)) or "plain"

    def __str__(self) -> str:
        changed = (
            (f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default
        )
        return f"Execution({', '.join(f'{name}={value!r}' for name, value in changed)})"


def _check_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        expected = " or ".join([*map(repr, known), "None"])
        raise InputError(f"Execution: {name}: expected {expected}, got {value!r}")
