"""Errors of other processes end a run as those of this one do."""

import pytest
import torch
from torch.multiprocessing import ProcessRaisedException, start_processes
from torch.utils.data import DataLoader, Dataset

from evonorm_plugins.errors import CollapseError, DataError, InputError, RunError
from evonorm_plugins.integrations.detectron2.processes import original_errors


def fail(_, error):
    raise error


@pytest.mark.parametrize(
    ("error", "kind"),
    [(DataError("image 3 is broken"), InputError), (CollapseError("it is over"), RunError)],
)
def test_of_a_process_of_the_run(error, kind):
    with pytest.raises(kind) as caught, original_errors():
        start_processes(fail, (error,), nprocs=1, start_method="fork")
    assert str(caught.value) == str(error)


def test_another_error_stays_as_it_is():
    with pytest.raises(ProcessRaisedException, match="KeyError"), original_errors():
        start_processes(fail, (KeyError("x"),), nprocs=1, start_method="fork")


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, k):
        raise DataError("image 3 is broken")


@pytest.mark.parametrize("workers", [0, 1])
def test_of_a_process_that_reads_images(workers):
    with pytest.raises(InputError) as caught, original_errors():
        list(DataLoader(Broken(), num_workers=workers, generator=torch.Generator()))
    assert str(caught.value) == "image 3 is broken"
