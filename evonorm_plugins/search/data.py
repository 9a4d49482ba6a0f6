"""The images that candidates are trained on and compared by."""

import functools

from evonorm_plugins.classification import config as classification
from evonorm_plugins.classification.data import open_data
from evonorm_plugins.search.config import data_values


def task_data(task):
    """The :class:`evonorm_plugins.classification.data.Data` of a task, read once by a process.

    Raises:
        DataError: as for :func:`evonorm_plugins.classification.data.open_data`.
    """
    return _read(tuple(data_values(task).items()))


def check_data(task):
    """Read the images of a task and let them go again.

    Raises:
        DataError: as for :func:`task_data`.
    """
    task_data(task)
    _read.cache_clear()


@functools.lru_cache(maxsize=1)
def _read(values):
    return open_data(classification.from_dict(dict(values)))
