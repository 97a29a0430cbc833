// The Python module: plain integers for addresses, so that no version of PyTorch is built against. Stable ABI of 3.10.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "compute.h"
#include "shortlist.h"

using namespace glider;

namespace {

const char* const NAME = "glider.site";
const char* const ISAS[] = {"portable", "avx2", "avx512", "amx"};

// What a thread noted last. Numbers begin at 1 in each thread.
struct Note {
    Scratch memory;
    Py_ssize_t bytes = 0;
    int64_t number = 0;
};

Note& last_note() {
    static thread_local Note own;
    return own;
}

template <typename T> T* address(PyObject* number) { return static_cast<T*>(PyLong_AsVoidPtr(number)); }

void release(PyObject* capsule) {
    Site* site = static_cast<Site*>(PyCapsule_GetPointer(capsule, NAME));
    if (!site) return;
    free(site->scaling), free(site->absent), free(site->codes);
    free(site->step), free(site->residual), free(site->length);
    delete site;
}

Site* site_of(PyObject* capsule) { return static_cast<Site*>(PyCapsule_GetPointer(capsule, NAME)); }

template <typename T> T* copy(const T* from, int64_t count) {
    T* to = static_cast<T*>(malloc(count * sizeof(T) + 1));
    if (to) memcpy(to, from, count * sizeof(T));
    return to;
}

// All by their names: a, b, scaling, rows and absent are addresses, 0 for what there is not.
PyObject* make_site(PyObject*, PyObject* arguments, PyObject* named) {
    static const char* const names[] = {"experts", "rank", "width", "out", "bfloat16", "a", "b", "scaling", "rows",
                                        "absent", "standardise", "absolute", "renormalise", "divisor", "kept",
                                        "shortlist", nullptr};
    Py_ssize_t experts, rank, width, out, kept;
    int bfloat16, standardise, absolute, renormalise, wants_codes;
    double divisor;
    PyObject *a, *b, *scaling, *rows, *absent;
    if (!PyArg_ParseTupleAndKeywords(
            arguments, named, "$nnnnpOOOOOpppdnp:site", const_cast<char**>(names), &experts, &rank, &width, &out,
            &bfloat16, &a, &b, &scaling, &rows, &absent, &standardise, &absolute, &renormalise, &divisor, &kept,
            &wants_codes
        ))
        return nullptr;
    Site* site = new Site{};
    site->experts = experts, site->rank = rank, site->width = width, site->out = out;
    site->stored = bfloat16 ? Stored::bfloat16 : Stored::float32;
    site->a = address<void>(a), site->b = address<void>(b);
    site->rows = address<float>(rows);
    site->scaling = copy(address<float>(scaling), experts);
    const uint8_t* missing = address<uint8_t>(absent);
    site->absent = missing ? copy(missing, experts) : nullptr;
    site->standardise = standardise, site->absolute = absolute, site->renormalise = renormalise;
    site->divisor = (float)divisor, site->kept = kept < experts ? kept : experts;
    if (PyErr_Occurred()) {
        free(site->scaling), free(site->absent);
        delete site;
        return nullptr;
    }
    if (wants_codes && site->rows) {
        Py_BEGIN_ALLOW_THREADS make_codes(*site);
        Py_END_ALLOW_THREADS
    }
    return PyCapsule_New(site, NAME, release);
}

PyObject* wrong(const char* signature) {
    PyErr_SetString(PyExc_TypeError, signature);
    return nullptr;
}

// Sites that see the same tokens, and where each one's outputs begin. True, or an error is set.
struct Group {
    Site* sites[MOST_SITES];
    void* outputs[MOST_SITES];
    Py_ssize_t count = 0;

    bool read(PyObject* capsules, PyObject* addresses) {
        if (!PyTuple_Check(capsules) || !PyTuple_Check(addresses) || PyTuple_Size(capsules) != PyTuple_Size(addresses) ||
            PyTuple_Size(capsules) > MOST_SITES) {
            wrong("a tuple of sites, at most 8, and one of as many addresses");
            return false;
        }
        count = PyTuple_Size(capsules);
        for (Py_ssize_t i = 0; i < count; ++i) {
            sites[i] = site_of(PyTuple_GetItem(capsules, i));
            if (!sites[i]) return false;
            outputs[i] = address<void>(PyTuple_GetItem(addresses, i));
            if (sites[i]->width != sites[0]->width) {
                PyErr_SetString(PyExc_ValueError, "sites of different widths do not see the same tokens");
                return false;
            }
        }
        return true;
    }

    // Answer a call for every site; `call.y` is each one's own.
    PyObject* finish(Call call) {
        if (PyErr_Occurred()) return nullptr;
        bool good = true;
        Py_BEGIN_ALLOW_THREADS good = run_all(sites, outputs, count, call);
        Py_END_ALLOW_THREADS
        if (good) Py_RETURN_NONE;
        PyErr_SetString(PyExc_IndexError, "a decision names an expert that does not exist");
        return nullptr;
    }
};

Stored type_of(PyObject* bfloat16) { return PyObject_IsTrue(bfloat16) == 1 ? Stored::bfloat16 : Stored::float32; }

void read_rows(PyObject* const* given, Call& call) {
    call.index = address<int64_t>(given[0]);
    call.x_stride = PyLong_AsSsize_t(given[1]), call.y_stride = PyLong_AsSsize_t(given[2]);
    call.values = type_of(given[3]);
}

// route(sites, x, ys, T, term, B, query_of, index, x_stride, y_stride, bfloat16): each site decides
PyObject* route(PyObject*, PyObject* const* given, Py_ssize_t count) {
    if (count != 11) return wrong("route(sites, x, ys, T, term, B, query_of, index, x_stride, y_stride, bfloat16)");
    Group group;
    if (!group.read(given[0], given[2])) return nullptr;
    Call call{};
    call.x = address<void>(given[1]), call.tokens = PyLong_AsSsize_t(given[3]);
    call.term = address<float>(given[4]), call.queries = PyLong_AsSsize_t(given[5]);
    call.query_of = address<int64_t>(given[6]);
    read_rows(given + 7, call);
    return group.finish(call);
}

// apply(sites, x, ys, T, experts, weights, K, index, x_stride, y_stride, bfloat16): the decision is given, the same for all
PyObject* apply(PyObject*, PyObject* const* given, Py_ssize_t count) {
    if (count != 11) return wrong("apply(sites, x, ys, T, experts, weights, K, index, x_stride, y_stride, bfloat16)");
    Group group;
    if (!group.read(given[0], given[2])) return nullptr;
    Call call{};
    call.x = address<void>(given[1]), call.tokens = PyLong_AsSsize_t(given[3]);
    call.experts = address<int64_t>(given[4]), call.weights = address<float>(given[5]);
    call.kept = PyLong_AsSsize_t(given[6]);
    read_rows(given + 7, call);
    return group.finish(call);
}

// note(x, bytes): copy some memory; the number of the copy, which is this thread's last
PyObject* note(PyObject*, PyObject* const* given, Py_ssize_t count) {
    if (count != 2) return wrong("note(x, bytes)");
    const void* from = address<void>(given[0]);
    Py_ssize_t bytes = PyLong_AsSsize_t(given[1]);
    if (PyErr_Occurred()) return nullptr;
    Note& own = last_note();
    memcpy(own.memory.get(bytes + 1), from, bytes);
    own.bytes = bytes;
    return PyLong_FromLongLong(++own.number);
}

// same(number, x, bytes): whether memory is what it was when the copy of this number was made, and that is the last
PyObject* same(PyObject*, PyObject* const* given, Py_ssize_t count) {
    if (count != 3) return wrong("same(number, x, bytes)");
    int64_t number = PyLong_AsLongLong(given[0]);
    const void* from = address<void>(given[1]);
    Py_ssize_t bytes = PyLong_AsSsize_t(given[2]);
    if (PyErr_Occurred()) return nullptr;
    Note& own = last_note();
    return PyBool_FromLong(own.number == number && own.bytes == bytes && !memcmp(own.memory.memory, from, bytes));
}

// decide(site, x, T, term, B, query_of, experts, weights, bfloat16): the site's decision alone
PyObject* decide(PyObject*, PyObject* const* given, Py_ssize_t count) {
    if (count != 9) return wrong("decide(site, x, T, term, B, query_of, experts, weights, bfloat16)");
    Site* site = site_of(given[0]);
    if (!site) return nullptr;
    Call call{};
    call.x = address<void>(given[1]);
    call.tokens = PyLong_AsSsize_t(given[2]);
    call.term = address<float>(given[3]), call.queries = PyLong_AsSsize_t(given[4]);
    call.query_of = address<int64_t>(given[5]);
    call.experts_out = address<int64_t>(given[6]), call.weights_out = address<float>(given[7]);
    call.values = type_of(given[8]);
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS run(*site, call);
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

PyObject* isas(PyObject*, PyObject*) {
    PyObject* list = PyList_New(0);
    for (int i = 3; list && i >= 0; --i) {
        if (!supports((Isa)i)) continue;
        PyObject* name = PyUnicode_FromString(ISAS[i]);
        if (!name || PyList_Append(list, name)) Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

PyObject* isa(PyObject*, PyObject*) { return PyUnicode_FromString(ISAS[(int)chosen_isa()]); }

PyObject* use_isa(PyObject*, PyObject* name) {
    for (int i = 0; i < 4; ++i)
        if (PyUnicode_CompareWithASCIIString(name, ISAS[i]) == 0 && supports((Isa)i)) {
            chosen_isa() = (Isa)i;
            Py_RETURN_NONE;
        }
    PyErr_SetString(PyExc_ValueError, "this machine has no such instruction set");
    return nullptr;
}

// use_runtime(library): take the OpenMP runtime that a loaded library is linked to; whether there is one
PyObject* use_runtime(PyObject*, PyObject* library) {
    PyObject* bytes = PyUnicode_AsUTF8String(library);
    if (!bytes) return nullptr;
    bool found = runtime().find(PyBytes_AsString(bytes));
    Py_DECREF(bytes);
    return PyBool_FromLong(found);
}

PyObject* threads(PyObject*, PyObject*) { return PyLong_FromLong(runtime().available()); }

PyMethodDef methods[] = {
    {"site", (PyCFunction)(void (*)())make_site, METH_VARARGS | METH_KEYWORDS, "What is constant for one routed layer."},
    {"route", (PyCFunction)(void (*)())route, METH_FASTCALL, "Score, select, and add the experts' outputs to y."},
    {"apply", (PyCFunction)(void (*)())apply, METH_FASTCALL, "Add the outputs of the experts of a decision to y."},
    {"note", (PyCFunction)(void (*)())note, METH_FASTCALL, "Copy some memory, to tell later whether it changed."},
    {"same", (PyCFunction)(void (*)())same, METH_FASTCALL, "Whether memory is as this thread noted it last."},
    {"decide", (PyCFunction)(void (*)())decide, METH_FASTCALL, "Score and select."},
    {"isas", isas, METH_NOARGS, "Instruction sets of this machine, best first."},
    {"isa", isa, METH_NOARGS, "The instruction set in use."},
    {"use_isa", use_isa, METH_O, "Use another one."},
    {"use_runtime", use_runtime, METH_O, "Run threads in the OpenMP runtime of a loaded library."},
    {"threads", threads, METH_NOARGS, "Threads that a large call gets."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", "Routed LoRA experts on the CPU.", -1, methods,
                      nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&module); }
