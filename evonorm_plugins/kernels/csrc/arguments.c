/* Reads the arguments of module.c and sizes.c: tensors and numbers. */
#include "arguments.h"

#include <math.h>

/* Whether the tensor is what x must be. */
static int read_x(problem *p, PyObject *tensor, view *x)
{
    int device = x->device;
    if (tensor == Py_None || !evonorm_read_plain(tensor, x) || x->axes != 4 || x->dtype < 0) return 0;
    if (device != ANY_DEVICE && device != x->device) return 0;
    p->samples = x->sizes[0];
    p->channels = x->sizes[1];
    p->pixels = x->sizes[2] * x->sizes[3];
    p->dtype = x->dtype;
    p->channels_last = !evonorm_is_contiguous(x);
    if (p->channels_last && !evonorm_is_channels_last(x)) return 0;
    return p->samples * p->channels * p->pixels > 0;
}

static int is_like_x(const problem *p, const view *x, const view *dy)
{
    if (dy->axes != x->axes || dy->dtype != x->dtype) return 0;
    for (int i = 0; i < x->axes; i++)
        if (dy->sizes[i] != x->sizes[i]) return 0;
    return p->channels_last ? evonorm_is_channels_last(dy) : evonorm_is_contiguous(dy);
}

/* Whether the shape is one that the type allows; sets what depends on it. */
static int has_shape(problem *p, int type, const view *t)
{
    int64_t n = p->samples, c = p->channels;
    int is_channel = t->axes == 1 && t->sizes[0] == c;
    int is_own = t->axes == 2 && t->sizes[0] == n && t->sizes[1] == c;
    switch (type) {
    case GAMMA: p->affine_stride = is_own ? c : 0; return is_channel || is_own;
    case LIKE_GAMMA: return p->affine_stride ? is_own : is_channel;
    case OF_CHANNEL: return is_channel;
    case OF_OWN: return is_own;
    case OF_BATCH:
        if (t->axes != 2 || t->sizes[0] < 2 || t->sizes[0] > 3 || t->sizes[1] != c) return 0;
        p->own_batch = t->sizes[0] == 3;
        return 1;
    default: /* OF_GROUP */
        if (t->axes != 3 || t->sizes[0] != 2 || t->sizes[1] != n) return 0;
        p->groups = t->sizes[2];
        return 1;
    }
}

int evonorm_read_argument(problem *p, view *x, const field *f, PyObject *value)
{
    char *at = (char *)p + f->offset;
    view t;
    switch (f->type) {
    case INT64: *(int64_t *)at = PyLong_AsLongLong(value); return 1;
    case INT32: *(int32_t *)at = (int32_t)PyLong_AsLong(value); return 1;
    case NUMBER: {
        double number = PyFloat_AsDouble(value);
        *(double *)at = number;
        return number >= 0 && isfinite(number);
    }
    case X:
        if (!read_x(p, value, x)) return 0;
        *(void **)at = x->data;
        return x->data != NULL;
    case LIKE_X:
        if (value == Py_None || !evonorm_read_plain(value, &t) || !is_like_x(p, x, &t)) return 0;
        break;
    case RESULT:
    case RESULT_OF_GROUP:
        if (value == Py_None) return 1;
        if (!evonorm_read_view(value, &t)) return 0;
        break;
    default:
        if (value == Py_None) return 1;
        if (!evonorm_read_plain(value, &t) || t.dtype != FLOAT32 || !has_shape(p, f->type, &t)
            || !evonorm_is_contiguous(&t))
            return 0;
    }
    *(void **)at = t.data;
    if (f->type == OF_GROUP || f->type == RESULT_OF_GROUP)
        p->rstd = (float *)t.data + p->samples * p->groups;
    if (f->type == OF_BATCH) p->rstd = (float *)t.data + p->channels;
    if (x->device == ANY_DEVICE) x->device = t.device;
    return t.data != NULL && t.device == x->device;
}

PyObject *evonorm_unfit;

PyObject *evonorm_refuse(const char *why)
{
    PyErr_Clear(); /* such as that a sparse tensor has no address */
    PyErr_SetString(evonorm_unfit ? evonorm_unfit : PyExc_RuntimeError, why);
    return NULL;
}
