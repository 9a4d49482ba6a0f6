/* What Python calls: the entries of cpu.py, which take their arguments by position.
 *
 * An entry is a line of ENTRIES: its name, the C function, and the fields of `problem` that its
 * arguments are put into, in their order. Of Python only the stable ABI is used, so that one
 * library serves every version.
 */
#include "arguments.h"

#include <stddef.h>

#include "average.h"
#include "driver.h"
#include "sizes.h"

/* To be raised in cpu.py, too, when an entry changes: a library from before is then not used. */
enum { INTERFACE = 5 };
/* Elements from which on other threads of Python run meanwhile: below, the switch takes longer. */
enum { LARGE_WORK = 32 << 10 };

#define AT(type, name) {type, offsetof(problem, name)}
#define COMMON AT(INT32, threads), AT(X, x)
#define PARAMETERS AT(GAMMA, weight), AT(OF_CHANNEL, v)
#define GRADIENTS AT(RESULT, weight_grad), AT(RESULT, bias_grad), AT(RESULT, v_grad)
#define GIVEN AT(INT32, kind), AT(NUMBER, eps), AT(OF_OWN, mean), AT(OF_OWN, var), \
              AT(OF_CHANNEL, batch_mean), AT(OF_CHANNEL, batch_var)
#define DY AT(LIKE_X, dy)
#define OUT AT(RESULT, out)
#define BIAS AT(LIKE_GAMMA, bias)
#define OF_ACTIVATION AT(INT32, kind), AT(INT32, centred), AT(INT32, from_mean)
#define MOST_FIELDS 20

int evonorm_sample_forward(const problem *p);
int evonorm_sample_backward(const problem *p);
int evonorm_group_forward(const problem *p);
int evonorm_group_backward(const problem *p);
int evonorm_batch_norm_forward(const problem *p);
int evonorm_batch_norm_backward(const problem *p);
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
      AT(RESULT_OF_GROUP, mean)}},
    {"sample_backward", evonorm_sample_backward,
     {COMMON, PARAMETERS, AT(OF_GROUP, mean), AT(INT32, centred), DY, OUT,
      GRADIENTS}},
    {"group_forward", evonorm_group_forward,
     {COMMON, PARAMETERS, BIAS, OF_ACTIVATION, AT(INT64, groups), AT(NUMBER, eps), OUT,
      AT(RESULT_OF_GROUP, mean)}},
    {"group_backward", evonorm_group_backward,
     {COMMON, PARAMETERS, BIAS, OF_ACTIVATION, AT(OF_GROUP, mean), DY, OUT,
      GRADIENTS}},
    {"batch_norm_forward", evonorm_batch_norm_forward,
     {COMMON, PARAMETERS, BIAS, AT(INT32, kind), AT(NUMBER, eps), AT(OF_CHANNEL, batch_mean),
      AT(OF_CHANNEL, batch_var), OUT, AT(OF_BATCH, mean)}},
    {"batch_norm_backward", evonorm_batch_norm_backward,
     {COMMON, PARAMETERS, BIAS, AT(INT32, kind), AT(OF_BATCH, mean), DY, OUT, GRADIENTS}},
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

static PyObject *finish(const problem *p, int status)
{
    if (status == SHORT_OF_MEMORY)
        return PyErr_Format(PyExc_MemoryError,
                            "no memory for the sums over x of (N, C, H * W) = (%lld, %lld, %lld)",
                            (long long)p->samples, (long long)p->channels, (long long)p->pixels);
    if (status != DONE)
        return evonorm_refuse("the CPU kernels were not given all they need, or a tensor that they "
                              "cannot take, or one without memory");
    Py_RETURN_NONE;
}

/* Every function of ENTRIES. */
static PyObject *call_entry(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    const entry *e = PyCapsule_GetPointer(self, NULL);
    problem p = {0};
    view x = {.device = CPU};
    Py_ssize_t i = 0;
    if (!e) return NULL;
    for (; e->fields[i].type && i < given; i++)
        if (!evonorm_read_argument(&p, &x, &e->fields[i], arguments[i])) return finish(&p, REFUSED);
    if (PyErr_Occurred()) return NULL;
    if (e->fields[i].type || i < given)
        return PyErr_Format(PyExc_TypeError, "%s was given %zd arguments", e->name, given);
    if (p.samples * p.channels * p.pixels < LARGE_WORK) return finish(&p, e->function(&p));
    PyThreadState *others = PyEval_SaveThread();
    int status = e->function(&p);
    PyEval_RestoreThread(others);
    return finish(&p, status);
}

static PyObject *move_average(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    (void)self;
    problem none = {0};
    view average, value;
    if (given != 3)
        return PyErr_Format(PyExc_TypeError, "move_average was given %zd arguments", given);
    float share = (float)PyFloat_AsDouble(arguments[2]);
    if (PyErr_Occurred()) return NULL;
    if (!evonorm_read_plain(arguments[0], &average) || !evonorm_read_plain(arguments[1], &value))
        return finish(&none, REFUSED);
    return finish(&none, evonorm_move_average(&average, &value, share));
}

static PyObject *move_moments(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    (void)self;
    problem none = {0};
    view of[4];
    if (given != 5)
        return PyErr_Format(PyExc_TypeError, "move_moments was given %zd arguments", given);
    double share = PyFloat_AsDouble(arguments[4]);
    if (PyErr_Occurred()) return NULL;
    for (int i = 0; i < 4; i++)
        if (!evonorm_read_plain(arguments[i], &of[i])) return finish(&none, REFUSED);
    return finish(&none, evonorm_move_moments(&of[0], &of[1], &of[2], &of[3], share));
}

/* What is raised where a tensor is not as it must be; and what tensors.h needs: the dtypes, torch.Tensor
   and its table of functions. */
static PyObject *prepare(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *dtypes[3], *type, *functions;
    if (!PyArg_ParseTuple(arguments, "OOOOOO", &evonorm_unfit, &dtypes[0], &dtypes[1], &dtypes[2], &type,
                          &functions))
        return NULL;
    Py_INCREF(evonorm_unfit);
    if (!evonorm_prepare_tensors(dtypes, type, functions)) return NULL;
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
    {"move_moments", (PyCFunction)(void (*)(void))move_moments, METH_FASTCALL, NULL},
    {"sizes", (PyCFunction)(void (*)(void))evonorm_sizes, METH_FASTCALL, NULL},
    {"addresses", evonorm_addresses, METH_O, NULL},
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
