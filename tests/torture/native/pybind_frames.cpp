// The same as cpp_frames.cpp, in the way of pybind11: Python exceptions are
// C++ exceptions from where they are raised to where the module is left.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <stdexcept>
#include <vector>

namespace py = pybind11;

namespace {

long constructed = 0;
long destroyed = 0;

struct Guard {
    Guard() { constructed++; }
    Guard(const Guard &) { constructed++; }
    ~Guard() { destroyed++; }
};

class Visitor {
   public:
    virtual ~Visitor() = default;
    virtual long visit(long number) = 0;
};

class PyVisitor : public Visitor {
   public:
    using Visitor::Visitor;
    long visit(long number) override
    {
        PYBIND11_OVERRIDE_PURE(long, Visitor, visit, number);
    }
};

long
visit_all(Visitor &visitor, long times)
{
    Guard guard;
    long sum = 0;
    for (long i = 0; i < times; i++) {
        Guard inner;
        sum += visitor.visit(i);
    }
    return sum;
}

std::vector<long>
transform(const std::function<long(long)> &function, long times)
{
    std::vector<long> results;
    for (long i = 0; i < times; i++) {
        Guard guard;
        try {
            results.push_back(function(i));
            throw std::out_of_range("after a call");
        }
        catch (const std::out_of_range &) {
            Guard handled;
        }
    }
    return results;
}

}  // namespace

PYBIND11_MODULE(torture_pybind_frames, module)
{
    py::class_<Visitor, PyVisitor>(module, "Visitor")
        .def(py::init<>())
        .def("visit", &Visitor::visit);
    module.def("visit_all", &visit_all);
    module.def("transform", &transform);
    module.def("alive", [] { return constructed - destroyed; });
}
