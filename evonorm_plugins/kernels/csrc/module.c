/* What Python calls: the entries of cpu.py, which take their arguments by position.
 *
 * An entry is a line of ENTRIES: its name, the C function, and the fields of `problem` that its
 * arguments are put into, in their order. Of Python only the stable ABI is used, so that one
 * library serves every version.
 */
#include <Python.h>

#include <math.h>
#include <stddef.h>

#include "driver.h"

/* To be raised in cpu.py, too, when an entry changes: a library from before is then not used. */
enum { INTERFACE = 1 };
/* Elements from which on other threads of Python run meanwhile: below, the switch takes longer. */
enum { LARGE_WORK = 32 << 10 };

/* How an argument is read, and what a tensor must be. Those but X and LIKE_X are contiguous and of
   float32, and None is null. RESULT: made in cpu.py, taken as it is. */
enum {
    X = 1,      /* (N, C, ...), dense: sets the shape, the dtype and the memory format */
    LIKE_X,     /* of its shape, dtype and format */
    GAMMA,      /* (C) or (N, C): sets affine_stride */
    LIKE_GAMMA,
    OF_CHANNEL, /* (C) */
    OF_OWN,     /* (N, C) */
    OF_GROUP,   /* (N, G): sets the groups */
    RESULT,
    INT64,
    INT32,
    NUMBER
};

typedef struct {
    int type;
    size_t offset;
} field;

#define AT(type, name) {type, offsetof(problem, name)}
#define COMMON AT(INT32, threads), AT(X, x)
#define PARAMETERS AT(GAMMA, weight), AT(OF_CHANNEL, v)
#define GRADIENTS AT(RESULT, weight_grad), AT(RESULT, bias_grad), AT(RESULT, v_grad)
#define GIVEN AT(INT32, kind), AT(NUMBER, eps), AT(OF_OWN, mean), AT(OF_OWN, var), \
              AT(OF_CHANNEL, batch_mean), AT(OF_CHANNEL, batch_var)
#define DY AT(LIKE_X, dy)
#define OUT AT(RESULT, out)
#define BIAS AT(LIKE_GAMMA, bias)
#define MOST_FIELDS 20

int evonorm_sample_forward(const problem *p);
int evonorm_sample_backward(const problem *p);
int evonorm_batch_forward(const problem *p, int steps);
int evonorm_batch_backward(const problem *p, int steps);
int evonorm_affine_forward(const problem *p);
int evonorm_affine_backward(const problem *p);

static int batch_forward(const problem *p)
{
    return evonorm_batch_forward(p, STEP_READ | STEP_FOLD | STEP_WRITE);
}

static int batch_moments(const problem *p) { return evonorm_batch_forward(p, STEP_READ); }

static int batch_apply(const problem *p) { return evonorm_batch_forward(p, STEP_WRITE); }

static int batch_backward(const problem *p)
{
    return evonorm_batch_backward(p, STEP_READ | STEP_FOLD | STEP_WRITE | STEP_PARAMETERS);
}

static int batch_reduce(const problem *p)
{
    return evonorm_batch_backward(p, STEP_READ | STEP_FOLD | STEP_PARAMETERS);
}

static int batch_input_gradient(const problem *p) { return evonorm_batch_backward(p, STEP_WRITE); }

typedef struct {
    const char *name;
    int (*function)(const problem *);
    field fields[MOST_FIELDS]; /* up to the first of type 0 */
} entry;

static const entry ENTRIES[] = {
    {"sample_forward", evonorm_sample_forward,
     {COMMON, PARAMETERS, BIAS, AT(INT64, groups), AT(NUMBER, eps), AT(INT32, centred), OUT,
      AT(RESULT, mean), AT(RESULT, rstd)}},
    {"sample_backward", evonorm_sample_backward,
     {COMMON, PARAMETERS, AT(OF_GROUP, mean), AT(OF_GROUP, rstd), AT(INT32, centred), DY, OUT,
      GRADIENTS}},
    {"batch_moments", batch_moments, {COMMON, AT(INT32, centred), AT(RESULT, moments)}},
    {"batch_apply", batch_apply, {COMMON, PARAMETERS, GIVEN, BIAS, OUT}},
    {"batch_forward", batch_forward,
     {COMMON, PARAMETERS, GIVEN, BIAS, OUT, AT(INT32, centred), AT(INT32, own_batch)}},
    {"batch_backward", batch_backward,
     {COMMON, PARAMETERS, GIVEN, DY, OUT, GRADIENTS, AT(RESULT, batch_var_grad)}},
    {"batch_reduce", batch_reduce,
     {COMMON, PARAMETERS, GIVEN, DY, GRADIENTS, AT(RESULT, std_grad), AT(RESULT, batch_var_grad)}},
    {"batch_input_gradient", batch_input_gradient,
     {COMMON, PARAMETERS, GIVEN, DY, OUT, AT(OF_OWN, std_grad), AT(OF_CHANNEL, batch_var_grad),
      AT(RESULT, batch_count)}},
    {"affine_forward", evonorm_affine_forward, {COMMON, AT(GAMMA, weight), BIAS, OUT}},
    {"affine_backward", evonorm_affine_backward,
     {COMMON, AT(GAMMA, weight), DY, OUT, AT(RESULT, weight_grad), AT(RESULT, bias_grad)}},
};
enum { COUNT = sizeof(ENTRIES) / sizeof(ENTRIES[0]) };

/* What `prepare` is given, and names of a tensor's attributes. */
static PyObject *unfit, *dtypes[3], *no_arguments, *as_channels_last;
static PyObject *dtype_name, *shape_name, *is_cpu_name, *is_contiguous_name, *is_neg_name, *data_ptr_name;

static int is_true(PyObject *value)
{
    int result = value == Py_True;
    Py_XDECREF(value);
    return result;
}

static int ask(PyObject *tensor, PyObject *method)
{
    return is_true(PyObject_CallMethodObjArgs(tensor, method, NULL));
}

static void *address_of(PyObject *tensor)
{
    PyObject *value = PyObject_CallMethodObjArgs(tensor, data_ptr_name, NULL);
    if (!value) return NULL;
    void *address = (void *)(uintptr_t)PyLong_AsUnsignedLongLong(value);
    Py_DECREF(value);
    return address;
}

enum { MOST_AXES = 8 };

/* The number of axes, or -1; sizes beyond them are 1. */
static int read_shape(PyObject *tensor, int64_t sizes[MOST_AXES])
{
    PyObject *shape = PyObject_GetAttr(tensor, shape_name);
    Py_ssize_t axes = shape ? PyTuple_Size(shape) : -1;
    if (axes > MOST_AXES) axes = -1;
    for (Py_ssize_t i = 0; i < MOST_AXES; i++)
        sizes[i] = i < axes ? PyLong_AsLongLong(PyTuple_GetItem(shape, i)) : 1;
    Py_XDECREF(shape);
    return (int)axes;
}

static int dtype_of(PyObject *tensor)
{
    PyObject *dtype = PyObject_GetAttr(tensor, dtype_name);
    Py_XDECREF(dtype); /* one of a few that live as long as torch */
    for (int i = 0; i < 3; i++)
        if (dtype && dtype == dtypes[i]) return i;
    return -1;
}

static int is_contiguous(PyObject *tensor, int channels_last)
{
    if (!channels_last) return ask(tensor, is_contiguous_name);
    PyObject *method = PyObject_GetAttr(tensor, is_contiguous_name);
    PyObject *value = method ? PyObject_Call(method, no_arguments, as_channels_last) : NULL;
    Py_XDECREF(method);
    return is_true(value);
}

static int is_plain(PyObject *tensor)
{
    return is_true(PyObject_GetAttr(tensor, is_cpu_name)) && !ask(tensor, is_neg_name);
}

/* Whether the tensor is what x must be. */
static int read_x(problem *p, PyObject *x)
{
    int64_t sizes[MOST_AXES];
    int axes = read_shape(x, sizes), dtype = dtype_of(x);
    if (axes < 2 || dtype < 0 || !is_plain(x)) return 0;
    p->samples = sizes[0];
    p->channels = sizes[1];
    p->pixels = 1;
    for (int i = 2; i < axes; i++) p->pixels *= sizes[i];
    p->dtype = dtype;
    p->channels_last = !is_contiguous(x, 0);
    if (p->channels_last && !is_contiguous(x, 1)) return 0;
    return p->samples * p->channels * p->pixels > 0;
}

static int is_like_x(const problem *p, PyObject *x, PyObject *dy)
{
    int64_t sizes[MOST_AXES], wanted[MOST_AXES];
    if (read_shape(dy, sizes) != read_shape(x, wanted) || dtype_of(dy) != p->dtype) return 0;
    for (int i = 0; i < MOST_AXES; i++)
        if (sizes[i] != wanted[i]) return 0;
    return is_plain(dy) && is_contiguous(dy, p->channels_last);
}

/* Whether the shape is one that the type allows; sets what depends on it. */
static int has_shape(problem *p, int type, PyObject *tensor)
{
    int64_t sizes[MOST_AXES], n = p->samples, c = p->channels;
    int axes = read_shape(tensor, sizes);
    int is_channel = axes == 1 && sizes[0] == c;
    int is_own = axes == 2 && sizes[0] == n && sizes[1] == c;
    switch (type) {
    case GAMMA: p->affine_stride = is_own ? c : 0; return is_channel || is_own;
    case LIKE_GAMMA: return p->affine_stride ? is_own : is_channel;
    case OF_CHANNEL: return is_channel;
    case OF_OWN: return is_own;
    default: /* OF_GROUP */
        if (axes != 2 || sizes[0] != n || (p->groups && sizes[1] != p->groups)) return 0;
        p->groups = sizes[1];
        return 1;
    }
}

/* Whether it is what it must be. */
static int read_argument(problem *p, PyObject *x, const field *f, PyObject *value)
{
    char *at = (char *)p + f->offset;
    switch (f->type) {
    case INT64: *(int64_t *)at = PyLong_AsLongLong(value); return 1;
    case INT32: *(int32_t *)at = (int32_t)PyLong_AsLong(value); return 1;
    case NUMBER: *(double *)at = PyFloat_AsDouble(value); return 1;
    case X:
        if (!read_x(p, value)) return 0;
        break;
    case LIKE_X:
        if (!is_like_x(p, x, value)) return 0;
        break;
    case RESULT:
        if (value == Py_None) return 1;
        break;
    default:
        if (value == Py_None) return 1;
        if (dtype_of(value) != FLOAT32 || !has_shape(p, f->type, value) || !is_plain(value)
            || !is_contiguous(value, 0))
            return 0;
    }
    *(void **)at = address_of(value);
    return *(void **)at != NULL;
}

static PyObject *finish(const problem *p, int status)
{
    if (status == SHORT_OF_MEMORY)
        return PyErr_Format(PyExc_MemoryError,
                            "no memory for the sums over x of (N, C, H * W) = (%lld, %lld, %lld)",
                            (long long)p->samples, (long long)p->channels, (long long)p->pixels);
    if (status != DONE) {
        PyErr_Clear(); /* such as that a sparse tensor has no address */
        PyErr_SetString(unfit ? unfit : PyExc_RuntimeError,
                        "the CPU kernels were not given all they need, or a tensor that they "
                        "cannot take, or one without memory");
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Every function of ENTRIES. */
static PyObject *call_entry(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    const entry *e = PyCapsule_GetPointer(self, NULL);
    problem p = {0};
    Py_ssize_t i = 0;
    if (!e) return NULL;
    for (; e->fields[i].type && i < given; i++)
        if (!read_argument(&p, arguments[1], &e->fields[i], arguments[i])) return finish(&p, REFUSED);
    if (PyErr_Occurred()) return NULL;
    if (e->fields[i].type || i < given)
        return PyErr_Format(PyExc_TypeError, "%s was given %zd arguments", e->name, given);
    if (p.samples * p.channels * p.pixels < LARGE_WORK) return finish(&p, e->function(&p));
    PyThreadState *others = PyEval_SaveThread();
    int status = e->function(&p);
    PyEval_RestoreThread(others);
    return finish(&p, status);
}

/* The average, the value, and its share in what comes of both; (C) each. An average that would not be
   finite stays as it is. */
static PyObject *move_average(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    (void)self;
    problem p = {0};
    int64_t sizes[MOST_AXES];
    if (given != 3)
        return PyErr_Format(PyExc_TypeError, "move_average was given %zd arguments", given);
    float share = (float)PyFloat_AsDouble(arguments[2]);
    if (PyErr_Occurred()) return NULL;
    read_shape(arguments[0], sizes);
    p.channels = sizes[0];
    float *average;
    const float *value;
    field f = {OF_CHANNEL, offsetof(problem, batch_var)};
    if (!read_argument(&p, NULL, &f, arguments[0])) return finish(&p, REFUSED);
    average = p.batch_var;
    if (!read_argument(&p, NULL, &f, arguments[1])) return finish(&p, REFUSED);
    value = p.batch_var;
    if (!average || !value) return finish(&p, REFUSED);
    for (int64_t i = 0; i < p.channels; i++) {
        float step = value[i] - average[i];
        /* From the nearer end, as torch.lerp: a share of 1 gives the value itself. */
        float moved = share < 0.5f ? average[i] + share * step : value[i] - (1 - share) * step;
        if (isfinite(moved)) average[i] = moved;
    }
    Py_RETURN_NONE;
}

/* What is raised where a tensor is not as it must be; the dtypes, in the order of the enum; the
   keywords that ask is_contiguous for channels_last. */
static PyObject *prepare(PyObject *self, PyObject *arguments)
{
    (void)self;
    if (!PyArg_ParseTuple(arguments, "OOOOO", &unfit, &dtypes[0], &dtypes[1], &dtypes[2],
                          &as_channels_last))
        return NULL;
    Py_INCREF(unfit), Py_INCREF(as_channels_last);
    for (int i = 0; i < 3; i++) Py_INCREF(dtypes[i]);
    no_arguments = PyTuple_New(0);
    dtype_name = PyUnicode_InternFromString("dtype");
    shape_name = PyUnicode_InternFromString("shape");
    is_cpu_name = PyUnicode_InternFromString("is_cpu");
    is_contiguous_name = PyUnicode_InternFromString("is_contiguous");
    is_neg_name = PyUnicode_InternFromString("is_neg");
    data_ptr_name = PyUnicode_InternFromString("data_ptr");
    Py_RETURN_NONE;
}

static PyObject *level(PyObject *self, PyObject *none)
{
    (void)self, (void)none;
    return PyLong_FromLong(evonorm_level());
}

static PyObject *choose(PyObject *self, PyObject *wanted)
{
    (void)self;
    long number = PyLong_AsLong(wanted);
    if (PyErr_Occurred()) return NULL;
    evonorm_choose((int)number);
    Py_RETURN_NONE;
}

static PyMethodDef OTHERS[] = {
    {"move_average", (PyCFunction)(void (*)(void))move_average, METH_FASTCALL, NULL},
    {"prepare", prepare, METH_VARARGS, NULL},
    {"level", level, METH_NOARGS, NULL},
    {"choose", choose, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef DEFINITION = {PyModuleDef_HEAD_INIT, .m_name = "_evonorm", .m_size = -1,
                                        .m_methods = OTHERS};
static PyMethodDef METHODS[COUNT];

/* The module's function of an entry, which is handed the entry in place of the module. */
static int add_entry(PyObject *module, int i)
{
    PyObject *self = PyCapsule_New((void *)&ENTRIES[i], NULL, NULL);
    if (!self) return -1;
    METHODS[i] = (PyMethodDef){ENTRIES[i].name, (PyCFunction)(void (*)(void))call_entry,
                               METH_FASTCALL, NULL};
    PyObject *function = PyCFunction_NewEx(&METHODS[i], self, NULL);
    Py_DECREF(self);
    if (!function) return -1;
    int status = PyObject_SetAttrString(module, ENTRIES[i].name, function);
    Py_DECREF(function);
    return status;
}

PyMODINIT_FUNC PyInit__evonorm(void)
{
    PyObject *module = PyModule_Create(&DEFINITION);
    if (!module) return NULL;
    int status = PyModule_AddIntConstant(module, "INTERFACE", INTERFACE);
    if (!status) status = PyModule_AddIntConstant(module, "HAS_OPENMP", evonorm_has_openmp());
    for (int i = 0; i < COUNT && !status; i++) status = add_entry(module, i);
    if (!status) return module;
    Py_DECREF(module);
    return NULL;
}
