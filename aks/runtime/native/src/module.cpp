// The Python module: integers in, an integer out. Everything else is in kernels.cpp.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "error.hpp"
#include "kernels.hpp"

namespace nb = nanobind;

namespace {

constexpr size_t kMaxCall = 64;

// The exception of aks.core.errors for a code of aks.h.
const char *name_of(int code) {
    switch (code) {
        case AKS_ERROR_DRIVER: return "DriverError";
        case AKS_ERROR_ARGUMENT: return "InvalidProblemError";
        default: return "ArtifactError";
    }
}

struct Values {
    explicit Values(const nb::args &arguments, size_t skip = 0) : count(arguments.size() - skip) {
        if (arguments.size() < skip || count > kMaxCall) throw aks::Error(AKS_ERROR_ARGUMENT, "a call has at most 64 values");
        for (size_t at = 0; at < count + skip; ++at) {
            const long long value = PyLong_AsLongLong(PyTuple_GET_ITEM(arguments.ptr(), static_cast<Py_ssize_t>(at)));
            if (value == -1 && PyErr_Occurred()) throw nb::python_error();
            values[at] = value;
        }
    }
    std::span<const int64_t> span() const { return {values, count}; }
    size_t count;
    int64_t values[kMaxCall + 1];
};

// The values of a call, and the stream after them.
struct Call : Values {
    explicit Call(const nb::args &arguments)
        : Values(arguments, 1), stream(reinterpret_cast<aks::cuda::Stream>(values[count])) {}
    aks::cuda::Stream stream;
};

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "Select and launch kernels of a bundle: see aks.runtime.native.";
    nb::register_exception_translator(
        [](const std::exception_ptr &pointer, void *) {
            try {
                std::rethrow_exception(pointer);
            } catch (const aks::Error &error) {
                PyErr_SetString(nb::module_::import_("aks.core.errors").attr(name_of(error.code)).ptr(), error.what());
            }
        },
        nullptr);
    nb::class_<aks::Kernels>(module, "Kernels")
        .def(
            "__init__",
            [](aks::Kernels *self, nb::bytes table, nb::bytes code, int device, const std::string &driver,
               const std::vector<std::string> &cublaslt) {
                const std::string_view texts[] = {{table.c_str(), table.size()}, {code.c_str(), code.size()}};
                nb::gil_scoped_release release;  // the bytes are immutable, and the caller holds them
                new (self) aks::Kernels(texts[0], texts[1], device, driver, cublaslt);
            },
            nb::arg("table"), nb::arg("code"), nb::arg("device"), nb::arg("driver") = aks::kDriver,
            nb::arg("cublaslt") = aks::kCublasLt)
        .def("select",
             [](const aks::Kernels &self, nb::args arguments) {
                 const Values values(arguments);
                 return self.select(values.span());
             })
        .def("launch",
             [](aks::Kernels &self, nb::args arguments) {
                 const Call call(arguments);
                 int config = 0;
                 // The driver may block for room in the stream's queue: other threads go on meanwhile.
                 nb::gil_scoped_release release;
                 return self.launch(call.span(), call.stream, config) ? config : -1 - config;
             })
        .def("prepare",
             [](aks::Kernels &self, nb::args arguments) {
                 const Call call(arguments);
                 int config = 0;
                 nb::gil_scoped_release release;
                 return self.prepare(call.span(), call.stream, config) ? config : -1 - config;
             })
        .def("time",
             [](aks::Kernels &self, size_t repeats, bool driver_alone, nb::args arguments) {
                 const Call call(arguments);
                 const nb::gil_scoped_release release;
                 return self.time(call.span(), call.stream, repeats, driver_alone);
             })
        .def("counts",
             [](const aks::Kernels &self) {
                 const aks::Counts counts = self.counts();
                 nb::dict result;
                 result["modules"] = counts.modules;
                 result["allocations"] = counts.allocations;
                 result["launches"] = counts.launches;
                 result["illegal_favourites"] = counts.illegal_favourites;
                 result["without_kernel"] = counts.without_kernel;
                 result["without_scratch"] = counts.without_scratch;
                 result["plans"] = counts.plans;
                 result["without_plan"] = counts.without_plan;
                 return result;
             })
        .def_prop_ro("problem_count", [](const aks::Kernels &self) { return self.table().parameters.size(); })
        .def("take_misses",
             [](aks::Kernels &self) {
                 const aks::Misses misses = self.take_misses();
                 nb::list problems;
                 for (const auto &[problem, count] : misses.problems) problems.append(nb::make_tuple(problem, count));
                 return nb::make_tuple(misses.reasons, problems);
             })
        .def_prop_ro("cublaslt", &aks::Kernels::cublaslt)
        .def_prop_ro("call_count", [](const aks::Kernels &self) { return self.table().call_values; });
}
