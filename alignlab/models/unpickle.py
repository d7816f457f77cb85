"""Follow a pickle's instructions without calling anything: what it holds, as tensors' places, plain Python and records.

A pickle is a small program that names Python functions and calls them, and loading it the usual way runs it. Here the
instructions are followed on a stack, a name is never imported, a call becomes an `Inert` record of itself, and a tensor
becomes a `StoredTensor`, its shape and its place. So nothing can be run, and shapes are known, and can be refused, before
any memory is taken for them.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

# Instructions that put down a number or a text, a constant, an empty container.
LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
LITERALS |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
LITERALS |= {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}

NAME = re.compile(r"[\w.<>]{1,300}")

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Name:
    """A function or class that the file names. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Inert:
    """A call that was not made: what it was `of`, its arguments, and what the file put into the result."""

    of: str
    args: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file."""

    key: str
    dtype: torch.dtype
    numel: int
    start: int  # of a view into it, in elements; 0 in all but very old files

    @property
    def itemsize(self) -> int:
        return torch.empty(0, dtype=self.dtype).element_size()


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's place: `shape` and `stride` in elements from `offset` in its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Source(Protocol):
    def read(self, n: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


class Machine:
    """A pickle's instructions, followed without a call; what several pickles of a file name is gathered."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}  # in the order in which they come
        self.storages: dict[str, Storage] = {}

    def run(self, source: Source) -> Any:
        """The value that a pickle makes; `source` is left behind its end. Raises ValueError and LookupError where it is damaged."""
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        for opcode, arg, _ in pickletools.genops(source):  # type: ignore[arg-type]
            if opcode.name == "STOP":
                return self.stack.pop()
            self._step(opcode.name, arg)
        raise ValueError("it has no end")

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("it takes more than it has")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _named(self, module: Any, name: Any) -> Name:
        known = Name(module, name)
        if not NAME.fullmatch(f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""):
            raise ValueError("it names something that cannot be a name of Python")
        self.names[str(known)] = None
        return known

    def _step(self, op: str, arg: Any) -> None:
        if op in LITERALS:
            self.stack.append(arg)
        elif op in CONSTANTS:
            self.stack.append(CONSTANTS[op])
        elif op in EMPTY:
            self.stack.append(EMPTY[op]())
        elif op in ("PROTO", "FRAME"):
            pass
        elif op == "MARK":
            self.marks.append(len(self.stack))
        elif op in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[arg] = self.stack[-1]
        elif op == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif op in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[arg])
        elif op in ("POP", "POP_MARK", "DUP"):
            self._shuffle(op)
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple(self._pop(int(op[-1]))))
        elif op in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            self._collect(op, self._since_mark())
        elif op in ("APPEND", "APPENDS", "ADDITEMS"):
            self._add(self._pop(1) if op == "APPEND" else self._since_mark())
        elif op in ("SETITEM", "SETITEMS"):
            self._set(self._pop(2) if op == "SETITEM" else self._since_mark())
        elif op == "GLOBAL":
            self.stack.append(self._named(*arg.split(" ", 1)))
        elif op == "STACK_GLOBAL":
            module, name = self._pop(2)
            self.stack.append(self._named(module, name))
        elif op in ("REDUCE", "NEWOBJ"):
            self.stack.append(_call(*self._pop(2)))
        elif op == "NEWOBJ_EX":
            of, args, keywords = self._pop(3)
            self.stack.append(_call(of, (*args, keywords)))
        elif op == "INST":
            self.stack.append(_call(self._named(*arg.split(" ", 1)), tuple(self._since_mark())))
        elif op == "OBJ":
            of, *arguments = self._since_mark()
            self.stack.append(_call(of, tuple(arguments)))
        elif op == "BUILD":
            self._build(*self._pop(1))
        elif op == "BINPERSID":
            self._refer(*self._pop(1))
        else:
            raise ValueError(f"its instruction {op} is none that PyTorch writes")

    def _refer(self, of: Any) -> None:
        """A storage, or (in files before zip) a pickled module's class with its source text, which is left alone."""
        match of:
            case ("module", Name() as known, *_):
                self.stack.append(known)
                return
            case ("storage", Name(name=kind), str() as key, str(), int() as numel, *view) if (
                kind in DTYPES and numel >= 0
            ):
                start = 0
                if view and view[0] is not None:  # (its key, where it starts, its length), before PyTorch 0.4
                    _, start, length = view[0]
                    if not 0 <= start <= start + length <= numel:
                        raise ValueError("it refers to a part of a storage that is not there")
                self.stack.append(self.storages.setdefault(key, Storage(key, DTYPES[kind], numel, 0)))
                if start:
                    self.stack[-1] = Storage(key, DTYPES[kind], numel, start)
            case _:
                raise ValueError("it refers to something outside itself")

    def _shuffle(self, op: str) -> None:
        if op == "POP_MARK" or (op == "POP" and self.marks and self.marks[-1] == len(self.stack)):
            self._since_mark()
        elif op == "POP":
            self._pop(1)
        else:
            self.stack.append(self.stack[-1])

    def _collect(self, op: str, items: list[Any]) -> None:
        if op == "DICT":
            self.stack.append({})
            self._set(items)
        elif op == "FROZENSET":
            self.stack.append(frozenset(item for item, _ in _hashable((item, None) for item in items)))
        else:
            self.stack.append(tuple(items) if op == "TUPLE" else items)

    def _add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(item for item, _ in _hashable((item, None) for item in items))
        elif isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Inert):
            target.items.extend(items)
        else:
            raise ValueError(f"it appends to a {type(target).__name__}")

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        pairs = list(zip(items[::2], items[1::2], strict=True))
        if isinstance(target, dict):
            target.update(_hashable(pairs))
        elif isinstance(target, Inert):
            target.items.extend(pairs)
        else:
            raise ValueError(f"it sets items of a {type(target).__name__}")

    def _build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, OrderedDict | StoredTensor):  # whose attributes say nothing that is needed
            raise ValueError(f"it sets the state of a {type(target).__name__}")


def _hashable(pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Keys that are compared in no time: tuples within tuples can take forever."""
    for key, value in pairs:
        plain = (str, int, float, bytes, type(None), Name, Inert)
        if not isinstance(key, plain) and not (isinstance(key, tuple) and all(isinstance(k, plain) for k in key)):
            raise ValueError(f"it looks things up by a {type(key).__name__}")
        yield key, value


def _call(of: Any, args: Any) -> Any:
    """What stands for `of(*args)`; the tensors are described, everything else is a record of the call."""
    if not isinstance(of, Name | Inert) or not isinstance(args, tuple):
        raise ValueError(f"it calls a {type(of).__name__}")
    if isinstance(of, Inert):
        return Inert(of.of, args)
    known = str(of)
    if known == "collections.OrderedDict":
        return OrderedDict(_hashable(args[0] if args else ()))
    if known in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return args[0]
    if known == "torch.Size":
        return tuple(*args)
    if known == "torch._tensor._rebuild_from_type_v2":  # (function, type, its arguments, attributes)
        return _call(args[0], args[2])
    if known in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
        storage, offset, shape, stride = args[:4]
        return _tensor(storage, offset, tuple(shape), tuple(stride))
    return Inert(known, args)


def _tensor(storage: Any, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> StoredTensor:
    if not isinstance(storage, Storage) or len(shape) != len(stride):
        raise ValueError("it describes a tensor without numbers")
    if any(type(n) is not int or not 0 <= n < 2**63 for n in (offset, *shape, *stride)):
        raise ValueError("it describes a tensor with sizes that are no sizes")
    if 0 not in shape:
        last = storage.start + offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        # The second part: no tensor that repeats a number over and over to look large.
        if last >= storage.numel or math.prod(shape) > storage.numel:
            raise ValueError(f"it describes a tensor of shape {shape} in a storage of {storage.numel} numbers")
    return StoredTensor(storage, storage.start + offset, shape, stride)
