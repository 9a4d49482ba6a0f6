/* What the Triton kernels ask of tensors. */
#ifndef EVONORM_SIZES_H
#define EVONORM_SIZES_H

#include <Python.h>

/* `sizes(roles, *tensors)` and `addresses(tensors)` of kernels/sizes.py, METH_FASTCALL and METH_O. */
PyObject *evonorm_sizes(PyObject *self, PyObject *const *arguments, Py_ssize_t given);
PyObject *evonorm_addresses(PyObject *self, PyObject *tensors);

#endif
