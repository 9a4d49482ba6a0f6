"""Read pickles of arrays and plain values without running what they hold.

A pickle names functions and has them called. The names here stand for functions of this file,
which make arrays of numbers and texts from bytes; any other name is refused. NumPy's own functions
are not called: the state that they take from a pickle is trusted.
"""

import pickle
import re
from collections import OrderedDict

import numpy as np

from evonorm_plugins.errors import DataError, reason

_DTYPE = re.compile(r"[<>=|]?(?:[biufc]\d{1,2}|[SUa]\d+|\?)")
_PLAIN = (str, bytes, bytearray, bool, int, float, complex, type(None), np.generic)


def load_plain(path):
    """The content of a pickle: arrays, numbers, texts, lists, tuples, sets and dictionaries.

    Texts of Python 2 are read as Latin-1.

    Raises:
        DataError: it cannot be read, or holds anything else; says what.
    """
    try:
        with open(path, "rb") as file:
            return _content(_Unpickler(file, encoding="latin1").load())
    except Exception as error:  # of opcodes in an order that makes no sense
        raise DataError(f"{path} cannot be read: {reason(error)}") from None


class _Array:
    def __init__(self, array=None):
        self.array = array

    def __setstate__(self, state):
        shape, dtype, in_columns, content = state[-4:]
        content = content.encode("latin1") if isinstance(content, str) else content
        self.array = _array(content, dtype, shape, "F" if in_columns else "C")


class _Dtype:
    def __init__(self, name, *_):
        name = name.decode("latin1") if isinstance(name, bytes) else name
        if not _DTYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"it holds an array of {name!r}, not of numbers or texts")
        self.dtype = np.dtype(name)

    def __setstate__(self, state):
        _, order, *fields = state
        if any(field is not None for field in fields[:3]):
            raise pickle.UnpicklingError("it holds an array of records")
        self.dtype = self.dtype.newbyteorder(order)


class _Functions:
    """Its bound methods have no attributes that a pickle could set."""

    def no_bytes(self):
        return b""

    def reconstruct(self, *_):
        return _Array()

    def from_buffer(self, content, dtype, shape, order):
        return _Array(_array(content, dtype, shape, order))

    def scalar(self, dtype, content):
        content = content.encode("latin1") if isinstance(content, str) else content
        return _array(content, dtype, (), "C")[()]

    def encode(self, text, encoding):
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it holds bytes written as {encoding!r}")
        return text.encode("latin1")


def _array(content, dtype, shape, order):
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError("it holds an array of objects")
    return np.ndarray(shape, dtype.dtype, content, order=order).copy(order="K")


def _known():
    functions = _Functions()
    known = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): functions.encode,
        ("builtins", "bytes"): functions.no_bytes,  # how Python 2 gets empty ones
        ("collections", "OrderedDict"): OrderedDict,
    }
    for core in ("numpy.core", "numpy._core"):
        known[f"{core}.multiarray", "_reconstruct"] = functions.reconstruct
        known[f"{core}.multiarray", "scalar"] = functions.scalar
        known[f"{core}.numeric", "_frombuffer"] = functions.from_buffer
    for kind in (set, frozenset, bytearray, complex):
        known["builtins", kind.__name__] = kind
    return known


_KNOWN = _known()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        module = "builtins" if module == "__builtin__" else module
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _KNOWN[module, name]


def _content(value):
    if isinstance(value, _Array) and value.array is not None:
        return value.array
    if type(value) in (dict, OrderedDict):
        return type(value)((_content(k), _content(v)) for k, v in value.items())
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(_content, value))
    if isinstance(value, _PLAIN):
        return value
    raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
