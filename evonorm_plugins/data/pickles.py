"""Pickles of plain data, read without running what they may hold."""

import pickle

from evonorm_plugins.errors import DataError

# What NumPy's arrays are pickled with; the module has moved between versions.
_PLAIN = {
    *(("numpy.core.multiarray", name) for name in ("_reconstruct", "scalar")),
    *(("numpy._core.multiarray", name) for name in ("_reconstruct", "scalar")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("_codecs", "encode"),
}


class _Plain(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no plain data")
        return super().find_class(module, name)


def load_plain(path):
    """The arrays, numbers, strings and containers of a pickle.

    Raises:
        DataError: it cannot be read, or holds anything else.
    """
    try:
        with open(path, "rb") as f:
            return _Plain(f, encoding="latin1").load()
    except Exception as error:  # a damaged pickle may fail anywhere
        raise DataError(f"{path} cannot be read: {error}") from None
