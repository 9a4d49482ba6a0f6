/* Reads torch's tensors without torch's headers. */
#include "tensors.h"

#include "evonorm.h"

static PyObject *dtypes[3]; /* in the order of the enum */
/* Names of a tensor's attributes. */
static PyObject *dtype_name, *shape_name, *stride_name, *is_cpu_name, *data_ptr_name;
static PyObject *is_neg; /* torch.Tensor's function: found once, for it is called most */

/* Of the DLPack protocol, what this file needs: dmlc.github.io/dlpack/latest/c_api.html. The table of
   functions lets a tensor be read in a tenth of the time that its attributes take. */
typedef struct {
    void *data;
    int32_t device, device_number;
    int32_t axes;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *sizes, *strides;
    uint64_t offset;
} dl_tensor;

typedef struct {
    struct {
        uint32_t major, minor;
    } version;
    void *previous, *unused[3];
    int (*read)(void *tensor, dl_tensor *to); /* 0, or -1 and an exception */
} dl_functions;

static const dl_functions *dlpack; /* null: torch before 2.10 */

enum { DL_CPU = 1, DL_CUDA = 2, DL_ROCM = 10, DL_INT = 0, DL_FLOAT = 2, DL_BFLOAT = 4 };

static int read_by_dlpack(PyObject *tensor, view *to)
{
    dl_tensor t;
    if (dlpack->read(tensor, &t) || t.axes > MOST_AXES || t.lanes != 1) return 0;
    if (t.device != DL_CPU && t.device != DL_CUDA && t.device != DL_ROCM) return 0;
    to->device = t.device == DL_CPU ? CPU : t.device_number;
    to->data = t.data ? (char *)t.data + t.offset : NULL;
    to->axes = t.axes;
    to->dtype = t.code == DL_FLOAT && t.bits == 32    ? FLOAT32
                : t.code == DL_BFLOAT && t.bits == 16 ? BFLOAT16
                : t.code == DL_FLOAT && t.bits == 16  ? FLOAT16
                : t.code == DL_INT && t.bits == 64    ? COUNTER
                                                      : OTHER;
    for (int i = 0; i < t.axes; i++) {
        to->sizes[i] = t.sizes[i];
        to->strides[i] = t.strides[i];
    }
    return 1;
}

static int is_true(PyObject *value)
{
    int result = value == Py_True;
    Py_XDECREF(value);
    return result;
}

static int read_tuple(PyObject *tuple, int64_t numbers[MOST_AXES])
{
    Py_ssize_t axes = tuple ? PyTuple_Size(tuple) : -1;
    if (axes > MOST_AXES) axes = -1;
    for (Py_ssize_t i = 0; i < axes; i++) numbers[i] = PyLong_AsLongLong(PyTuple_GetItem(tuple, i));
    Py_XDECREF(tuple);
    return (int)axes;
}

static int read_by_attributes(PyObject *tensor, view *to)
{
    if (!is_true(PyObject_GetAttr(tensor, is_cpu_name))) return 0;
    to->device = CPU;
    to->axes = read_tuple(PyObject_GetAttr(tensor, shape_name), to->sizes);
    int axes = read_tuple(PyObject_CallMethodObjArgs(tensor, stride_name, NULL), to->strides);
    PyObject *dtype = PyObject_GetAttr(tensor, dtype_name);
    PyObject *address = PyObject_CallMethodObjArgs(tensor, data_ptr_name, NULL);
    to->dtype = OTHER;
    for (int i = 0; i < 3; i++)
        if (dtype && dtype == dtypes[i]) to->dtype = i;
    to->data = address ? (void *)(uintptr_t)PyLong_AsUnsignedLongLong(address) : NULL;
    Py_XDECREF(dtype);
    Py_XDECREF(address);
    return to->axes >= 0 && axes == to->axes && address;
}

int evonorm_read_view(PyObject *tensor, view *to)
{
    return dlpack ? read_by_dlpack(tensor, to) : read_by_attributes(tensor, to);
}

int evonorm_read_plain(PyObject *tensor, view *to)
{
    if (!evonorm_read_view(tensor, to)) return 0;
    PyObject *answer = PyObject_CallFunctionObjArgs(is_neg, tensor, NULL);
    Py_XDECREF(answer);
    return answer == Py_False;
}

int evonorm_is_contiguous(const view *t)
{
    int64_t stride = 1;
    for (int i = t->axes; i-- > 0;) {
        if (t->sizes[i] != 1 && t->strides[i] != stride) return 0;
        stride *= t->sizes[i];
    }
    return 1;
}

int evonorm_is_channels_last(const view *t)
{
    int64_t stride = t->sizes[1];
    if (t->sizes[1] != 1 && t->strides[1] != 1) return 0;
    for (int i = t->axes; i-- > 2;) {
        if (t->sizes[i] != 1 && t->strides[i] != stride) return 0;
        stride *= t->sizes[i];
    }
    return t->sizes[0] == 1 || t->strides[0] == stride;
}

/* 0 and an exception where it fails. */
int evonorm_prepare_tensors(PyObject *given[3], PyObject *type, PyObject *functions)
{
    dlpack = NULL;
    is_neg = PyObject_GetAttrString(type, "is_neg");
    if (!is_neg) return 0;
    if (functions != Py_None) {
        dlpack = PyCapsule_GetPointer(functions, "dlpack_exchange_api");
        if (!dlpack) return 0;
        if (dlpack->version.major != 1 || !dlpack->read) dlpack = NULL;
    }
    for (int i = 0; i < 3; i++) {
        Py_INCREF(given[i]);
        dtypes[i] = given[i];
    }
    dtype_name = PyUnicode_InternFromString("dtype");
    shape_name = PyUnicode_InternFromString("shape");
    stride_name = PyUnicode_InternFromString("stride");
    is_cpu_name = PyUnicode_InternFromString("is_cpu");
    data_ptr_name = PyUnicode_InternFromString("data_ptr");
    return 1;
}
