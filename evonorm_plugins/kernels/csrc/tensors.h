/* What a kernel must know of a tensor of Python. */
#ifndef EVONORM_TENSORS_H
#define EVONORM_TENSORS_H

#include <Python.h> /* before all others */

#include <stdint.h>

enum { MOST_AXES = 8 };
enum { CPU = -1, ANY_DEVICE = -2 };
enum { OTHER = -1, COUNTER = -2 }; /* dtypes; the latter, int64, is known with DLPack alone */

typedef struct {
    void *data;
    int axes, dtype; /* dtype: none of those of x where it is negative */
    int device;      /* CPU, or the number of a GPU */
    int64_t sizes[MOST_AXES], strides[MOST_AXES];
} view;

/* The dtypes, in the order of the enum of evonorm.h; torch.Tensor; its __dlpack_c_exchange_api__ or
   None. Returns 0 and an exception where it fails. */
int evonorm_prepare_tensors(PyObject *dtypes[3], PyObject *type, PyObject *functions);

/* Whether it is a tensor of a CPU or, with DLPack, of a GPU, which is then read. There may be an
   exception where it is not. */
int evonorm_read_view(PyObject *tensor, view *to);

/* The same of one whose numbers are as they lie in memory, not their negatives. */
int evonorm_read_plain(PyObject *tensor, view *to);

int evonorm_is_contiguous(const view *t);
int evonorm_is_channels_last(const view *t);

#endif
