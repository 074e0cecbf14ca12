"""A small reader of ELF files, 32 and 64 bit, little endian: sections and symbols, for sizes and undefined names."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ToolchainError

SHT_SYMTAB, SHT_RELA, SHT_NOBITS, SHT_REL, SHN_UNDEF = 2, 4, 8, 9, 0
SHF_WRITE, SHF_ALLOC, SHF_EXEC = 1, 2, 4
STB_LOCAL, STB_WEAK = 0, 2


@dataclass(frozen=True)
class Section:
    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int
    info: int

    @property
    def in_memory(self) -> bool:
        return bool(self.flags & SHF_ALLOC)

    @property
    def writable(self) -> bool:
        return self.in_memory and bool(self.flags & SHF_WRITE)

    @property
    def in_flash(self) -> bool:
        return self.in_memory and not self.writable and self.type != SHT_NOBITS


@dataclass(frozen=True)
class Symbol:
    name: str
    defined: bool
    weak: bool
    local: bool


class Elf:
    """Sections, symbols and relocations of an object file or image. Raises ToolchainError for anything else."""

    def __init__(self, path: str | Path) -> None:
        data = Path(path).read_bytes()
        if data[:4] != b"\x7fELF" or data[5] != 1:
            raise ToolchainError(f"{path} is no little-endian ELF file")
        self.wide = data[4] == 2
        if self.wide:
            (shoff,) = struct.unpack_from("<Q", data, 40)
            entry, count, names = struct.unpack_from("<HHH", data, 58)
        else:
            (shoff,) = struct.unpack_from("<I", data, 32)
            entry, count, names = struct.unpack_from("<HHH", data, 46)
        form = "<IIQQQQIIQQ" if self.wide else "<IIIIIIIIII"
        raw = [struct.unpack_from(form, data, shoff + i * entry) for i in range(count)]
        strings = raw[names]

        def text(table: tuple[int, ...], at: int) -> str:
            start = table[4] + at
            return data[start:data.index(b"\0", start)].decode()

        self.sections = [Section(text(strings, r[0]), r[1], r[2], r[4], r[5], r[6], r[7]) for r in raw]
        self.data = data
        self.symbols: list[Symbol] = []
        self.names: dict[int, list[str]] = {}       # symbol table's section -> names by index
        size = 24 if self.wide else 16
        for table, r in enumerate(raw):
            if r[1] != SHT_SYMTAB:
                continue
            own = self.names.setdefault(table, [])
            for at in range(r[4], r[4] + r[5], size):
                if self.wide:
                    name, info, _, index = struct.unpack_from("<IBBH", data, at)
                else:
                    name, _, _, info, _, index = struct.unpack_from("<IIIBBH", data, at)
                label = text(raw[r[6]], name)
                own.append(label or (self.sections[index].name if 0 < index < len(raw) else ""))
                if label:
                    bind = info >> 4
                    self.symbols.append(Symbol(label, index != SHN_UNDEF, bind == STB_WEAK, bind == STB_LOCAL))

    def relocations(self) -> Iterator[tuple[int, int, str]]:
        """(section index, type, symbol) of each relocation; a section symbol has the section's name."""
        for s in self.sections:
            if s.type not in (SHT_REL, SHT_RELA):
                continue
            size = (16 if self.wide else 8) + (0 if s.type == SHT_REL else 8 if self.wide else 4)
            for at in range(s.offset, s.offset + s.size, size):
                info, = struct.unpack_from("<Q" if self.wide else "<I", self.data, at + (8 if self.wide else 4))
                symbol, kind = (info >> 32, info & 0xFFFFFFFF) if self.wide else (info >> 8, info & 0xFF)
                yield s.info, kind, self.names[s.link][symbol]

    def bytes_of(self, *names: str) -> int:
        """Total size of the sections with these names."""
        return sum(s.size for s in self.sections if s.name in names)

    @property
    def flash_bytes(self) -> int:
        """Code and constants: what a device keeps in flash."""
        return sum(s.size for s in self.sections if s.in_flash)

    @property
    def ram(self) -> dict[str, int]:
        """Writable bytes by section name, empty sections left out."""
        out: dict[str, int] = {}
        for s in self.sections:
            if s.writable and s.size:
                out[s.name] = out.get(s.name, 0) + s.size
        return out


def undefined_symbols(objects: list[Path]) -> set[str]:
    """Symbols that some object needs and none defines."""
    wanted: set[str] = set()
    defined: set[str] = set()
    for path in objects:
        for symbol in Elf(path).symbols:
            if symbol.defined and not symbol.local:
                defined.add(symbol.name)
            elif not symbol.defined:
                wanted.add(symbol.name)
    return wanted - defined
