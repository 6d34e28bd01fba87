"""Registers as integers that know their bit fields.

A `Register` is an `int`: it is written and read as one 64-bit value, and reserved bits travel with it untouched.
Its fields are class attributes made with `Flag` (one bit) and `Field` (several bits).

    >>> SintRegister.make(vector=0x30, auto_eoi=True).vector
    48
"""

from __future__ import annotations

from typing import Self, overload


class Field:
    """Bits `low` .. `low + width - 1` of a register, read as an unsigned number."""

    __slots__ = ("low", "mask", "name", "width")

    def __init__(self, low: int, width: int) -> None:
        self.low = low
        self.width = width
        self.mask = (1 << width) - 1

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: int, owner: type) -> int: ...
    def __get__(self, instance: int | None, owner: type) -> Self | int:
        return self if instance is None else (int(instance) >> self.low) & self.mask


class Flag:
    """Bit `low` of a register, read as a bool."""

    __slots__ = ("low", "mask", "name", "width")

    def __init__(self, low: int) -> None:
        self.low = low
        self.width = 1
        self.mask = 1

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: int, owner: type) -> bool: ...
    def __get__(self, instance: int | None, owner: type) -> Self | bool:
        return self if instance is None else bool((int(instance) >> self.low) & 1)


class Register(int):
    """A 64-bit register value with named bit fields."""

    @classmethod
    def fields(cls) -> dict[str, Field | Flag]:
        """Every field of this register by name."""
        return {name: value for name, value in vars(cls).items() if isinstance(value, Field | Flag)}

    @classmethod
    def make(cls, **values: int) -> Self:
        """The register with these fields set and all other bits zero. `ValueError` when a value does not fit."""
        return cls(0).replace(**values)

    def replace(self, **values: int) -> Self:
        """This register with some fields changed. `ValueError` when a value does not fit its field."""
        fields = self.fields()
        result = int(self)
        for name, value in values.items():
            field = fields[name]
            if not 0 <= value <= field.mask:
                raise ValueError(f"{type(self).__name__}.{name} holds {field.width} bits, {value:#x} does not fit")
            result = (result & ~(field.mask << field.low)) | (int(value) << field.low)
        return type(self)(result)
