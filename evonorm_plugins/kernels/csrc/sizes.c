/* Looks at tensors of any device for the Triton kernels, in a tenth of the time that Python takes. */
#include "arguments.h"

#include <string.h>

#include "sizes.h"

static const char UNFIT[] = "a tensor is not what the kernels take, or one is missing";

enum { ALIGNMENT = 16, MOST_TENSORS = 32, NONE_ADDRESS = 1 };

/* What a tensor of a role, a letter, must be. */
static const struct {
    char role;
    int may_be_none;
    field field;
} ROLES[] = {
    {'x', 0, {X, offsetof(problem, x)}},
    {'d', 0, {LIKE_X, offsetof(problem, dy)}},
    {'g', 0, {GAMMA, offsetof(problem, weight)}},
    {'b', 0, {LIKE_GAMMA, offsetof(problem, bias)}},
    {'s', 0, {OF_GROUP, offsetof(problem, mean)}},
    {'c', 1, {OF_CHANNEL, offsetof(problem, v)}},
    {'o', 1, {OF_OWN, offsetof(problem, var)}},
    {'a', 1, {RESULT, offsetof(problem, sums)}},
};
enum { COUNT = sizeof(ROLES) / sizeof(ROLES[0]) };

static int read_role(problem *p, view *x, char role, PyObject *tensor)
{
    for (int i = 0; i < COUNT; i++)
        if (ROLES[i].role == role)
            return (tensor != Py_None || ROLES[i].may_be_none)
                   && evonorm_read_argument(p, x, &ROLES[i].field, tensor);
    return 0;
}

/* Whether all tensors are what their roles say; the problem then has their sizes. */
static int read_all(problem *p, view *x, const char *roles, PyObject *const *tensors)
{
    const char *first = strchr(roles, 'x');
    if (first) {
        if (!read_role(p, x, 'x', tensors[first - roles])) return 0;
    } else { /* all are of channels */
        view t;
        if (tensors[0] == Py_None || !evonorm_read_view(tensors[0], &t) || t.axes != 1) return 0;
        p->channels = t.sizes[0];
    }
    for (int i = 0; roles[i]; i++)
        if (roles[i] != 'x' && !read_role(p, x, roles[i], tensors[i])) return 0;
    return 1;
}

static PyObject *tuple_of(const long long *numbers, int count)
{
    PyObject *tuple = PyTuple_New(count);
    for (int i = 0; tuple && i < count; i++)
        if (PyTuple_SetItem(tuple, i, PyLong_FromLongLong(numbers[i]))) Py_CLEAR(tuple);
    return tuple;
}

PyObject *evonorm_sizes(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    (void)self;
    problem p = {0};
    view x = {.device = ANY_DEVICE};
    Py_ssize_t count;
    const char *roles = given ? PyUnicode_AsUTF8AndSize(arguments[0], &count) : NULL;
    if (!roles || count == 0 || given <= count)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "sizes was given too little");
    if (!read_all(&p, &x, roles, arguments + 1) || PyErr_Occurred()) return evonorm_refuse(UNFIT);
    long long absent = 0;
    for (int i = 0; i < count; i++)
        if (arguments[1 + i] == Py_None) absent |= 1 << i;
    const long long found[] = {x.device, p.samples,        p.channels,           p.pixels, p.groups,
                               p.dtype,  p.channels_last, p.affine_stride != 0, absent};
    return tuple_of(found, sizeof(found) / sizeof(found[0]));
}

PyObject *evonorm_addresses(PyObject *self, PyObject *tensors)
{
    (void)self;
    long long found[MOST_TENSORS], unaligned = 0;
    Py_ssize_t count = PyTuple_Size(tensors);
    if (count < 0 || count > MOST_TENSORS)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "these are too many tensors");
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *tensor = PyTuple_GetItem(tensors, i);
        view t = {.data = NULL};
        if (tensor == Py_None)
            found[i] = NONE_ADDRESS;
        else if (!evonorm_read_view(tensor, &t))
            return evonorm_refuse(UNFIT);
        else
            found[i] = (long long)(uintptr_t)t.data;
        if (found[i] % ALIGNMENT) unaligned |= 1LL << i;
    }
    PyObject *pointers = tuple_of(found, (int)count);
    PyObject *pair = pointers ? Py_BuildValue("LN", unaligned, pointers) : NULL;
    return pair;
}
