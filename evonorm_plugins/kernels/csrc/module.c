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

/* How an argument is read. SHAPE: (N, C, ...) of x; OF_SAMPLES: whether gamma is of each sample. */
enum { SHAPE = 1, OF_SAMPLES, INT64, INT32, NUMBER, ADDRESS };

typedef struct {
    int type;
    size_t offset;
} field;

#define AT(type, name) {type, offsetof(problem, name)}
#define COMMON {SHAPE, 0}, AT(INT32, dtype), AT(INT32, channels_last), AT(INT32, threads), AT(ADDRESS, x)
#define GAMMA {OF_SAMPLES, 0}, AT(ADDRESS, weight)
#define GRADIENTS AT(ADDRESS, weight_grad), AT(ADDRESS, bias_grad), AT(ADDRESS, v_grad)
#define GROUPED AT(INT64, groups), AT(INT32, centred), AT(ADDRESS, mean), AT(ADDRESS, rstd)
#define OF_BATCH AT(INT32, kind), AT(NUMBER, eps), AT(ADDRESS, mean), AT(ADDRESS, var), \
                 AT(ADDRESS, batch_mean), AT(ADDRESS, batch_var)
#define MOST_FIELDS 24

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

#define DY AT(ADDRESS, dy)
#define OUT AT(ADDRESS, out)
#define BIAS AT(ADDRESS, bias)
#define V AT(ADDRESS, v)

static const entry ENTRIES[] = {
    {"sample_forward", evonorm_sample_forward,
     {COMMON, GAMMA, V, GROUPED, AT(NUMBER, eps), BIAS, OUT}},
    {"sample_backward", evonorm_sample_backward, {COMMON, GAMMA, V, GROUPED, DY, OUT, GRADIENTS}},
    {"batch_moments", batch_moments, {COMMON, AT(INT32, centred), AT(ADDRESS, moments)}},
    {"batch_apply", batch_apply, {COMMON, GAMMA, V, OF_BATCH, BIAS, OUT}},
    {"batch_forward", batch_forward,
     {COMMON, GAMMA, V, OF_BATCH, BIAS, OUT, AT(INT32, centred), AT(INT32, own_batch)}},
    {"batch_backward", batch_backward,
     {COMMON, GAMMA, V, OF_BATCH, DY, OUT, GRADIENTS, AT(ADDRESS, batch_var_grad)}},
    {"batch_reduce", batch_reduce,
     {COMMON, GAMMA, V, OF_BATCH, DY, GRADIENTS, AT(ADDRESS, std_grad),
      AT(ADDRESS, batch_var_grad)}},
    {"batch_input_gradient", batch_input_gradient,
     {COMMON, GAMMA, V, OF_BATCH, DY, OUT, AT(ADDRESS, std_grad), AT(ADDRESS, batch_var_grad),
      AT(ADDRESS, batch_count)}},
    {"affine_forward", evonorm_affine_forward, {COMMON, GAMMA, BIAS, OUT}},
    {"affine_backward", evonorm_affine_backward,
     {COMMON, GAMMA, DY, OUT, AT(ADDRESS, weight_grad), AT(ADDRESS, bias_grad)}},
};
enum { COUNT = sizeof(ENTRIES) / sizeof(ENTRIES[0]) };

/* None: null. */
static void *address_of(PyObject *value)
{
    return value == Py_None ? NULL : (void *)(uintptr_t)PyLong_AsUnsignedLongLong(value);
}

static void read_shape(problem *p, PyObject *shape)
{
    Py_ssize_t axes = PyTuple_Size(shape);
    if (axes < 2) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "a shape of (N, C, ...) is missing");
        return;
    }
    p->samples = PyLong_AsLongLong(PyTuple_GetItem(shape, 0));
    p->channels = PyLong_AsLongLong(PyTuple_GetItem(shape, 1));
    p->pixels = 1;
    for (Py_ssize_t i = 2; i < axes; i++) p->pixels *= PyLong_AsLongLong(PyTuple_GetItem(shape, i));
}

static void read_argument(problem *p, const field *f, PyObject *value)
{
    char *at = (char *)p + f->offset;
    switch (f->type) {
    case SHAPE: read_shape(p, value); break;
    case OF_SAMPLES: p->affine_stride = PyLong_AsLong(value) ? p->channels : 0; break;
    case INT64: *(int64_t *)at = PyLong_AsLongLong(value); break;
    case INT32: *(int32_t *)at = (int32_t)PyLong_AsLong(value); break;
    case NUMBER: *(double *)at = PyFloat_AsDouble(value); break;
    default: *(void **)at = address_of(value);
    }
}

static PyObject *finish(const problem *p, int status)
{
    if (status == SHORT_OF_MEMORY)
        return PyErr_Format(PyExc_MemoryError,
                            "no memory for the sums over x of (N, C, H * W) = (%lld, %lld, %lld)",
                            (long long)p->samples, (long long)p->channels, (long long)p->pixels);
    if (status != DONE) {
        PyErr_SetString(PyExc_ValueError,
                        "the CPU kernels were not given all they need, or a tensor without memory");
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Every function of ENTRIES. */
static PyObject *call_entry(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    const entry *e = PyCapsule_GetPointer(self, NULL);
    problem p = {0};
    if (!e) return NULL;
    Py_ssize_t i = 0;
    for (; e->fields[i].type && i < given; i++) read_argument(&p, &e->fields[i], arguments[i]);
    if (PyErr_Occurred()) return NULL;
    if (e->fields[i].type || i < given)
        return PyErr_Format(PyExc_TypeError, "%s was given %zd arguments", e->name, given);
    if (p.samples * p.channels * p.pixels < LARGE_WORK) return finish(&p, e->function(&p));
    PyThreadState *others = PyEval_SaveThread();
    int status = e->function(&p);
    PyEval_RestoreThread(others);
    return finish(&p, status);
}

/* Average, value: addresses of `count` floats; the share of the value in what comes of both. An
   average that would not be finite stays as it is. */
static PyObject *move_average(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    (void)self;
    if (given != 4)
        return PyErr_Format(PyExc_TypeError, "move_average was given %zd arguments", given);
    float *average = address_of(arguments[0]);
    const float *value = address_of(arguments[1]);
    int64_t count = PyLong_AsLongLong(arguments[2]);
    float share = (float)PyFloat_AsDouble(arguments[3]);
    if (PyErr_Occurred()) return NULL;
    for (int64_t i = 0; i < count; i++) {
        float step = value[i] - average[i];
        /* From the nearer end, as torch.lerp: a share of 1 gives the value itself. */
        float moved = share < 0.5f ? average[i] + share * step : value[i] - (1 - share) * step;
        if (isfinite(moved)) average[i] = moved;
    }
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
