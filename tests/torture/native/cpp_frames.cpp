// C++ frames between a portal and await_: they own objects with destructors,
// and throw and catch exceptions within a step, before and after a suspension.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

long constructed = 0;
long destroyed = 0;

class Guard {
   public:
    Guard() : text_("a string that is too long for the small one"), self_(this)
    {
        constructed++;
    }
    Guard(const Guard &) = delete;
    Guard &operator=(const Guard &) = delete;
    ~Guard()
    {
        if (self_ != this || text_.size() != 43) {
            Py_FatalError("a C++ object on the stack was overwritten");
        }
        destroyed++;
    }

   private:
    std::string text_;
    Guard *self_;
};

struct PythonError : std::runtime_error {
    PythonError() : std::runtime_error("a Python exception is set") {}
};

struct Reference {
    explicit Reference(PyObject *object) : object_(object) {}
    Reference(const Reference &) = delete;
    ~Reference() { Py_XDECREF(object_); }
    PyObject *release()
    {
        PyObject *object = object_;
        object_ = nullptr;
        return object;
    }
    PyObject *object_;
};

PyObject *
call_or_throw(PyObject *function)
{
    Guard guard;
    std::vector<std::unique_ptr<Guard>> guards;
    for (int i = 0; i < 3; i++) {
        guards.push_back(std::make_unique<Guard>());
    }
    Reference result(PyObject_CallNoArgs(function));
    if (result.object_ == nullptr) {
        throw PythonError();
    }
    return result.release();
}

void
throw_number(int depth)
{
    Guard guard;
    if (depth == 0) {
        throw depth;
    }
    throw_number(depth - 1);
}

// Throw across a few frames and catch; count what is caught.
int
throw_and_catch(int times)
{
    int caught = 0;
    for (int i = 0; i < times; i++) {
        try {
            Guard guard;
            throw_number(5);
        }
        catch (int) {
            caught++;
        }
    }
    return caught;
}

// The Python exception travels as a C++ exception between two C++ frames.
PyObject *
guarded(PyObject *, PyObject *function)
{
    try {
        Guard outer;
        return call_or_throw(function);
    }
    catch (const PythonError &) {
        return nullptr;
    }
}

// Throws before, between and after calls.
PyObject *
throwing(PyObject *, PyObject *function)
{
    Guard guard;
    if (throw_and_catch(2) != 2) {
        Py_FatalError("a C++ exception was not caught");
    }
    try {
        Reference first(call_or_throw(function));
        throw std::runtime_error("on purpose, with a result in hand");
    }
    catch (const PythonError &) {
        return nullptr;
    }
    catch (const std::runtime_error &error) {
        if (throw_and_catch(1) != 1
            || std::string(error.what()).find("on purpose") != 0) {
            Py_FatalError("a C++ exception was not caught");
        }
    }
    Py_RETURN_NONE;
}

// Calls while a C++ exception is being handled.  What is being handled is
// noted per thread by the C++ runtime, which no engine knows about: tasks that
// do this must be resumed in the reverse order of their suspensions.
PyObject *
calling_in_handler(PyObject *, PyObject *function)
{
    Guard guard;
    try {
        throw std::runtime_error("handled while Python code runs");
    }
    catch (const std::runtime_error &) {
        return PyObject_CallNoArgs(function);
    }
}

PyObject *
alive(PyObject *, PyObject *)
{
    return PyLong_FromLong(constructed - destroyed);
}

PyObject *
guard_count(PyObject *, PyObject *)
{
    return PyLong_FromLong(constructed);
}

PyMethodDef methods[] = {
    {"guarded", guarded, METH_O, nullptr},
    {"throwing", throwing, METH_O, nullptr},
    {"calling_in_handler", calling_in_handler, METH_O, nullptr},
    {"alive", alive, METH_NOARGS, nullptr},
    {"guard_count", guard_count, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "torture_cpp_frames", nullptr, -1, methods,
    nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC
PyInit_torture_cpp_frames(void)
{
    return PyModule_Create(&definition);
}
