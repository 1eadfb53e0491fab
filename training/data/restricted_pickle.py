"""Read a pickle without running a line of it: numpy arrays, tensors and builtin containers, nothing else.

A pickle is a program. Every name that it calls is either refused or stood for by a class below, which keeps what it is
given and builds the object itself: numpy's own constructors can be talked into reading foreign memory by a forged
dtype, and torch's loaders run pickles of their own.
"""

import codecs
import io
import math
import os
import pickle
import struct
from contextlib import contextmanager

import numpy as np

# bytes from this size on are left in the file, where that is asked for
LARGE = 1 << 20
TORCH_DTYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
# what a damaged or hostile stream makes an unpickler stumble over
STUMBLES = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


class UnsafePickleError(ValueError):
    """A pickle asks for something else than numpy arrays and builtin containers. Nothing of it has run."""


def load_pickle(path, leave_large_arrays=False):
    """Read a pickle of dicts, lists, tuples, sets, strings, numbers, numpy arrays (also of objects) and torch tensors.

    Args:
        path (str or Path): pickles of Python 2 and 3, protocols 0 to 5.
        leave_large_arrays (bool): arrays of numbers of 1 MiB and more stay in the file, each an [`ArrayInFile`].

    Returns:
        The object. Its arrays may be read-only; tensors are arrays (bfloat16 becomes float32), OrderedDict and
        defaultdict are dicts.

    Raises:
        OSError: the file cannot be read.
        UnsafePickleError: it names any other global; the message says which.
        ValueError: it is not a pickle, is damaged, or holds an array whose dtype and bytes do not fit each other.
    """
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise ValueError(f"{path} is a zip archive, as torch.save and numpy.savez write; expected a pickle")
        file.seek(0)
        unpickler = (_LeavingUnpickler if leave_large_arrays else _RestrictedUnpickler)(file, encoding="latin1")
        try:
            return _with_arrays(unpickler.load())
        except UnsafePickleError as error:
            raise UnsafePickleError(f"{path} is refused: {error}") from None
        # the caller hears one kind of error
        except STUMBLES as error:
            raise ValueError(
                f"{path} cannot be read as a pickle of features: {type(error).__name__}: {error}"
            ) from None


class ArrayInFile:
    """
    An array that stays in a file: `array[index]` and `array[start:stop]` read a row, or rows, of its first axis.

    Attributes:
        dtype (`np.dtype`), shape (`tuple[int]`), ndim (`int`): as of the array.
    """

    def __init__(self, content, dtype, shape):
        self._content, self.dtype, self.shape, self.ndim = content, dtype, shape, len(shape)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        if not isinstance(rows, slice):
            return self._read(range(len(self))[rows], 1)[0]
        start, stop, step = rows.indices(len(self))
        return self._read(start, max(0, stop - start))[::step]

    def __array__(self, dtype=None, copy=None):
        return self[:] if dtype is None else self[:].astype(dtype)

    def _read(self, start, count):
        row = math.prod(self.shape[1:])
        place = self._content.offset + start * row * self.dtype.itemsize
        return np.fromfile(self._content.path, self.dtype, count * row, offset=place).reshape(count, *self.shape[1:])


class _BytesInFile:
    """Bytes of a pickle that were not read: where they stand."""

    __slots__ = ("offset", "path", "size")

    def __init__(self, path, offset, size):
        if offset + size > os.path.getsize(path):
            raise EOFError("the file ends within an array")
        self.path, self.offset, self.size = path, offset, size

    def __len__(self):
        return self.size

    def __setstate__(self, state):
        raise UnsafePickleError("it sets the state of bytes")

    def read(self):
        with _opened(self) as file:
            return file.read(self.size)


class _ByteArrayInFile(_BytesInFile):
    __slots__ = ()

    def read(self):
        return bytearray(super().read())


class _TextInFile(_BytesInFile):
    """A string of a pickle that was not read, in UTF-8."""

    __slots__ = ()

    def read(self):
        return super().read().decode("utf-8", "surrogatepass")

    def as_bytes(self):
        """The bytes that protocols below 3 write as a string of as many characters; never both in memory."""
        decoder, found, left = codecs.getincrementaldecoder("utf-8")(), io.BytesIO(), self.size
        with _opened(self) as file:
            while left:
                piece = file.read(min(left, LARGE))
                found.write(decoder.decode(piece).encode("latin1"))
                left -= len(piece)
        decoder.decode(b"", final=True)
        return found.getvalue()


@contextmanager
def _opened(content):
    """Bytes, read or not, as a file whose position is where they begin."""
    if not isinstance(content, _BytesInFile):
        yield io.BytesIO(content)
        return
    with open(content.path, "rb") as file:
        file.seek(content.offset)
        yield file


class _Stand:
    """What stands where a pickle names something; by itself, it takes no state."""

    __slots__ = ()

    def __setstate__(self, state):
        raise UnsafePickleError(f"it sets the state of what {type(self).__name__[8:]} stands for")


class _PickledDtype(_Stand):
    """Stands where the pickle says numpy.dtype: keeps the type's name, refuses structures, ignores flags."""

    __slots__ = ("dtype",)

    def __init__(self, code, align=False, copy=True):
        if not isinstance(code, str) or code[:1] not in "biufcSUO" or not (code[1:] or "0").isdigit():
            raise UnsafePickleError(f"it asks for the array type {code!r}; only plain numbers, strings and objects")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        _version, byte_order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None) or byte_order not in ("<", ">", "|", "="):
            raise UnsafePickleError("it asks for a structured array; only plain numbers, strings and objects")
        self.dtype = self.dtype.newbyteorder(byte_order)


class _PickledClass(_Stand):
    """Stands where the pickle says numpy.ndarray: a name to pass on, never called."""

    __slots__ = ()

    def __new__(cls, *_):
        raise UnsafePickleError("it calls numpy.ndarray itself, which no pickled array does")


class _PickledArray(_Stand):
    """Stands where the pickle says numpy's _reconstruct: an array in the making."""

    __slots__ = ("content", "dtype", "order", "shape")

    def __init__(self, array_class, shape, code):
        if array_class is not _PickledClass:
            raise UnsafePickleError(f"it asks for an array of the class {array_class!r}")
        self.content = None

    def __setstate__(self, state):
        _version, shape, dtype, is_fortran, content = state
        self._fill(content, dtype, shape, "F" if is_fortran else "C")

    def _fill(self, content, dtype, shape, order):
        if not isinstance(dtype, _PickledDtype):
            raise UnsafePickleError(f"it gives an array the type {dtype!r}")
        self.dtype, self.order = dtype.dtype, order
        self.shape = tuple(int(size) for size in shape)
        # Python 2 wrote an array's bytes as a str, which arrives here as latin1 text
        self.content = content.encode("latin1") if isinstance(content, str) else content

    def build(self, resolve):
        """The array itself; `resolve` turns each object of an object array."""
        if self.content is None:
            return np.empty(0, dtype=bool)
        size = math.prod(self.shape)
        if self.dtype.hasobject:
            if not isinstance(self.content, list) or len(self.content) != size:
                raise ValueError(f"an object array of shape {self.shape} does not come with {size} objects")
            array = np.empty(size, dtype=object)
            for index, item in enumerate(self.content):
                array[index] = resolve(item)
        else:
            known = isinstance(self.content, bytes | bytearray | _BytesInFile)
            if not known or min(self.shape, default=0) < 0 or len(self.content) != size * self.dtype.itemsize:
                raise ValueError(f"an array of shape {self.shape} and type {self.dtype} comes with other bytes")
            if isinstance(self.content, _BytesInFile):
                if self.order == "C" and self.dtype.kind in "biufc" and self.shape:
                    return ArrayInFile(self.content, self.dtype, self.shape)
                self.content = self.content.read()
            # frombuffer knows no zero-width strings and no empty buffers
            array = np.frombuffer(self.content, self.dtype) if len(self.content) else np.zeros(size, self.dtype)
        return array.reshape(self.shape, order=self.order)


class _PickledBuffer(_PickledArray):
    """Stands where the pickle says numpy's _frombuffer (protocol 5)."""

    __slots__ = ()

    def __init__(self, buffer, dtype, shape, order):
        if order not in ("C", "F"):
            raise UnsafePickleError(f"it asks for an array in the order {order!r}")
        self._fill(buffer, dtype, shape, order)


class _PickledScalar(_PickledArray):
    """Stands where the pickle says numpy's scalar."""

    __slots__ = ()

    def __init__(self, dtype, content=None):
        self._fill(
            [content] if isinstance(dtype, _PickledDtype) and dtype.dtype.hasobject else content, dtype, (), "C"
        )

    def build(self, resolve):
        return super().build(resolve)[()]


class _PickledStorage(_Stand):
    """Stands where the pickle says torch.storage._load_from_bytes: finds the numbers in what torch.save wrote."""

    __slots__ = ("content", "dtype", "size", "widen")

    def __init__(self, content):
        with _opened(content) as file:
            start = file.tell()
            for _ in range(3):  # a magic number, the format's version, the writer's sizes of types
                _RestrictedUnpickler(file).load()
            kind, name, _key, _device, size, view = _StorageUnpickler(file).load()
            keys = _RestrictedUnpickler(file).load()
            (count,) = struct.unpack("<q", file.read(8))
            if kind != "storage" or view is not None or len(keys) != 1 or count != size or size < 0:
                raise UnsafePickleError("it holds a tensor's numbers in another layout than torch.save's")
            self.dtype, self.size, self.widen = np.dtype(TORCH_DTYPES[name]), size, name == "BFloat16Storage"
            place, length = file.tell(), size * self.dtype.itemsize
        if isinstance(content, _BytesInFile):
            if place + length > start + content.size:
                raise EOFError("a tensor's numbers end early")
            self.content = _BytesInFile(content.path, place, length)
        else:
            self.content = content[place : place + length]
            if len(self.content) != length:
                raise EOFError("a tensor's numbers end early")


class _PickledTensor(_Stand):
    """Stands where the pickle says torch._utils._rebuild_tensor_v2: an array over a storage."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage, offset, size, stride, *_):
        if not isinstance(storage, _PickledStorage) or len(size) != len(stride) or min((offset, *size, *stride)) < 0:
            raise UnsafePickleError("it builds a tensor of something else than a storage")
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(size), tuple(stride)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= storage.size:
            raise UnsafePickleError("it builds a tensor that reaches beyond its storage")

    def build(self, resolve):
        content, dtype = self.storage.content, self.storage.dtype
        contiguous = tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        if isinstance(content, _BytesInFile):
            if self.strides == contiguous and self.shape and not self.storage.widen:
                size, start = math.prod(self.shape) * dtype.itemsize, content.offset + self.offset * dtype.itemsize
                return ArrayInFile(_BytesInFile(content.path, start, size), dtype, self.shape)
            content = content.read()
        if not math.prod(self.shape):
            return np.zeros(self.shape, dtype)
        values = np.frombuffer(content, dtype)[self.offset :]
        if self.storage.widen:
            # bfloat16 is the upper half of float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        strides = [step * values.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(values, self.shape, strides, writeable=False)


class _PickledBytes(_Stand):
    """Stands where the pickle says _codecs.encode, which is how protocols 0 to 2 write bytes: gives those bytes."""

    __slots__ = ()

    def __new__(cls, text, encoding="latin1"):
        if encoding not in ("latin1", "latin-1"):
            raise UnsafePickleError(f"it asks for the codec {encoding!r}")
        return text.as_bytes() if isinstance(text, _TextInFile) else text.encode("latin1")


class _PickledByteArray(_Stand):
    """Stands where the pickle says bytearray."""

    __slots__ = ()

    def __new__(cls, content=b"", *encoding):
        return bytearray(content.read() if isinstance(content, _BytesInFile) else content, *encoding)


class _PickledDefaultDict(dict):
    """Stands where the pickle says collections.defaultdict: a dict without a factory."""

    __slots__ = ()

    def __init__(self, _factory=None, *content):
        super().__init__(*content)

    def __setstate__(self, state):
        raise UnsafePickleError("it sets the state of a defaultdict")


class _PickledFactory(_Stand):
    """Stands where a defaultdict names the type of its values: never called."""

    __slots__ = ()

    def __new__(cls, *_):
        raise UnsafePickleError("it calls a builtin type by name, which only a defaultdict mentions")


_NUMPY_STANDS = {
    ("multiarray", "_reconstruct"): _PickledArray,
    ("multiarray", "scalar"): _PickledScalar,
    ("numeric", "_frombuffer"): _PickledBuffer,
}
_ADMITTED = {
    **{
        (f"numpy.{core}.{module}", name): stand
        for core in ("core", "_core")
        for (module, name), stand in _NUMPY_STANDS.items()
    },
    ("numpy", "ndarray"): _PickledClass,
    ("numpy", "dtype"): _PickledDtype,
    ("torch._utils", "_rebuild_tensor_v2"): _PickledTensor,
    ("torch.storage", "_load_from_bytes"): _PickledStorage,
    ("_codecs", "encode"): _PickledBytes,
    ("collections", "OrderedDict"): dict,
    ("collections", "defaultdict"): _PickledDefaultDict,
    # what old protocols write by name; every other builtin type has its own opcode
    **{("builtins", kind.__name__): kind for kind in (set, frozenset, complex, bytes)},
    ("builtins", "bytearray"): _PickledByteArray,
    **{("builtins", kind.__name__): _PickledFactory for kind in (list, dict, tuple, int, float, str, bool)},
}


def _find_class(unpickler, module, name):
    # Python 2 called the module so
    admitted = _ADMITTED.get(("builtins" if module == "__builtin__" else module, name))
    if admitted is None:
        raise UnsafePickleError(
            f"it asks for {module}.{name}; only numpy arrays, tensors and builtin containers are admitted"
        )
    return admitted


class _RestrictedUnpickler(pickle.Unpickler):
    find_class = _find_class


class _StorageUnpickler(pickle.Unpickler):
    """Of the one pickle in what torch.save wrote that names a storage, by its type's name."""

    def find_class(self, module, name):
        if module != "torch" or name not in TORCH_DTYPES:
            raise UnsafePickleError(f"it asks for {module}.{name} in a tensor")
        return name

    def persistent_load(self, description):
        return description


class _LeavingUnpickler(pickle._Unpickler):
    """
    The same in Python, which can be told to leave large bytes where they are. (The one in C reads them all; a pickle
    of many small values takes it a tenth of the time.)
    """

    find_class = _find_class
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file, **kwargs):
        super().__init__(file, **kwargs)
        self._file = file

    def _load_frame(self):
        # a frame only says how much to read ahead; without it, the file's position is that of the stream
        self.read(8)

    def _load(self, size, read, leave):
        if size < LARGE:
            self.append(read(self.read(size)))
        else:
            self.append(leave(self._file.name, self._file.tell(), size))
            self._file.seek(size, os.SEEK_CUR)

    def _load_bytes(self, size):
        self._load(size, bytes, _BytesInFile)

    def _load_byte_array(self, size):
        self._load(size, bytearray, _ByteArrayInFile)

    def _load_text(self, size):
        self._load(size, lambda content: content.decode("utf-8", "surrogatepass"), _TextInFile)

    dispatch[pickle.FRAME[0]] = _load_frame
    dispatch[pickle.BINBYTES[0]] = lambda self: self._load_bytes(*struct.unpack("<I", self.read(4)))
    dispatch[pickle.BINBYTES8[0]] = lambda self: self._load_bytes(*struct.unpack("<Q", self.read(8)))
    dispatch[pickle.BYTEARRAY8[0]] = lambda self: self._load_byte_array(*struct.unpack("<Q", self.read(8)))
    dispatch[pickle.BINUNICODE[0]] = lambda self: self._load_text(*struct.unpack("<I", self.read(4)))
    dispatch[pickle.BINUNICODE8[0]] = lambda self: self._load_text(*struct.unpack("<Q", self.read(8)))
    # of bytes that were left, there is nothing to make read-only
    dispatch[pickle.READONLY_BUFFER[0]] = lambda self: None


def _with_arrays(value):
    """`value` with the stands replaced by what they stand for, containers included; each object once."""
    done = {}

    def resolve(value):
        if isinstance(value, str | bytes | int | float | complex | bytearray | None):
            return value
        if isinstance(value, _BytesInFile):
            return value.read()
        if isinstance(value, type):
            raise UnsafePickleError(f"it holds the class {value.__name__} as a value")
        if id(value) not in done:
            done[id(value)] = None
            done[id(value)] = build(value)
        elif done[id(value)] is None:
            raise ValueError("a container holds itself")
        return done[id(value)]

    def build(value):
        if isinstance(value, _PickledArray | _PickledTensor):
            return value.build(resolve)
        if isinstance(value, _PickledDtype):
            return value.dtype
        if isinstance(value, dict):
            return {resolve(key): resolve(item) for key, item in value.items()}
        return type(value)(resolve(item) for item in value)

    return resolve(value)
