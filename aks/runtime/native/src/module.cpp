// The Python module: integers in, an integer out. Everything else is in kernels.cpp.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "dlpack.hpp"
#include "error.hpp"
#include "gemm_call.hpp"
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
    Values(PyObject *const *arguments, size_t given, size_t skip = 0) : count(given - skip) {
        if (given < skip || count > kMaxCall) throw aks::Error(AKS_ERROR_ARGUMENT, "a call has at most 64 values");
        for (size_t at = 0; at < given; ++at) {
            const long long value = PyLong_AsLongLong(arguments[at]);
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
    Call(PyObject *const *arguments, size_t given)
        : Values(arguments, given, 1), stream(reinterpret_cast<aks::cuda::Stream>(values[count])) {}
    explicit Call(const nb::args &arguments) : Call(PySequence_Fast_ITEMS(arguments.ptr()), arguments.size()) {}
    aks::cuda::Stream stream;
};

void set_error(const aks::Error &error) {
    PyErr_SetString(nb::module_::import_("aks.core.errors").attr(name_of(error.code)).ptr(), error.what());
}

// A method that Python calls as it calls its own: nanobind makes a tuple of any number of arguments first, which takes
// as long as choosing does.
template <auto method>
PyObject *with_values(PyObject *self, PyObject *const *arguments, Py_ssize_t given) noexcept {
    if (!nb::inst_ready(self)) {
        PyErr_SetString(PyExc_TypeError, "these kernels were never loaded; call Kernels(...)");
        return nullptr;
    }
    try {
        return PyLong_FromLong(method(*nb::inst_ptr<aks::Kernels>(self), arguments, static_cast<size_t>(given)));
    } catch (const aks::Error &error) {
        set_error(error);
    } catch (nb::python_error &error) {
        error.restore();
    } catch (const std::bad_alloc &) {
        PyErr_NoMemory();
    }
    return nullptr;
}

int launch(aks::Kernels &kernels, PyObject *const *arguments, size_t given) {
    const Call call(arguments, given);
    int config = 0;
    // The driver may block for room in the stream's queue: other threads go on meanwhile.
    const nb::gil_scoped_release release;
    return kernels.launch(call.span(), call.stream, config) ? config : -1 - config;
}

int prepare(aks::Kernels &kernels, PyObject *const *arguments, size_t given) {
    const Call call(arguments, given);
    int config = 0;
    const nb::gil_scoped_release release;
    return kernels.prepare(call.span(), call.stream, config) ? config : -1 - config;
}

int select(aks::Kernels &kernels, PyObject *const *arguments, size_t given) {
    return kernels.select(Values(arguments, given).span());
}

PyMethodDef methods[] = {
    {"launch", reinterpret_cast<PyCFunction>(with_values<launch>), METH_FASTCALL, nullptr},
    {"prepare", reinterpret_cast<PyCFunction>(with_values<prepare>), METH_FASTCALL, nullptr},
    {"select", reinterpret_cast<PyCFunction>(with_values<select>), METH_FASTCALL, nullptr},
};

// aks.linear on tensors, which the library that they are of lends us.
class Linear {
  public:
    Linear(aks::Kernels &kernels, const nb::capsule &exchange) : kernels_(kernels) {
        auto *api = static_cast<const aks::dlpack::ExchangeApi *>(exchange.data(aks::dlpack::kCapsule));
        while (api && api->major != aks::dlpack::kMajorVersion) api = api->previous;
        if (kernels.table().op != "gemm" || kernels.table().call_values != aks::kGemmValues || !api || !api->lend) {
            throw aks::Error(AKS_ERROR_ARGUMENT, "tensors are read for kernels of gemm, by version 1 of DLPack; launch " +
                                                     kernels.table().op + " with plain values");
        }
        lend_ = api->lend;
    }

    nb::object launch(nb::handle x, nb::handle w, nb::handle out, bool static_weights, uintptr_t stream) {
        aks::dlpack::Tensor lent_x, lent_w, lent_out;
        aks::GemmCall call;
        if (!lend(x, lent_x) || !lend(w, lent_w) || !aks::gemm::pose(call, lent_x, lent_w, static_weights)) return nb::none();
        const std::span<const int64_t> values(&call.m, aks::kGemmValues);
        nb::object made = nb::borrow(out);
        // An output that the caller's library makes is aligned as it aligns all.
        if (out.is_none() && kernels_.is_ours(values)) made = make(x, lent_x, call.n);
        if (!made.is_none() && !(lend(made, lent_out) && aks::gemm::put_out(call, lent_x, lent_out))) return nb::none();
        int config = 0;
        bool launched = false;
        {
            const nb::gil_scoped_release release;
            launched = kernels_.launch(values, reinterpret_cast<aks::cuda::Stream>(stream), config);
        }
        return launched ? made : nb::int_(-1 - config);
    }

  private:
    bool lend(nb::handle object, aks::dlpack::Tensor &tensor) const {
        if (lend_(object.ptr(), &tensor) == 0) return true;
        // What has no memory of its own (sparse, say), or a type that DLPack does not know.
        if (!PyErr_ExceptionMatches(PyExc_RuntimeError) && !PyErr_ExceptionMatches(PyExc_BufferError)) {
            throw nb::python_error();
        }
        PyErr_Clear();
        return false;
    }

    static nb::object make(nb::handle x, const aks::dlpack::Tensor &lent, int64_t n) {
        const int32_t last = lent.dimensions - 1;
        nb::object shape = nb::steal(PyTuple_New(last + 1));
        for (int32_t at = 0; at <= last; ++at) {
            PyTuple_SET_ITEM(shape.ptr(), at, PyLong_FromLongLong(at == last ? n : lent.shape[at]));
        }
        return x.attr("new_empty")(shape);
    }

    aks::Kernels &kernels_;
    int (*lend_)(void *, aks::dlpack::Tensor *);
};

}  // namespace

NB_MODULE(_native, module) {
    nb::set_leak_warnings(false);  // a process keeps its dispatchers until it ends
    module.doc() = "Select and launch kernels of a bundle: see aks.runtime.native.";
    nb::register_exception_translator(
        [](const std::exception_ptr &pointer, void *) {
            try {
                std::rethrow_exception(pointer);
            } catch (const aks::Error &error) {
                set_error(error);
            }
        },
        nullptr);
    nb::class_<aks::Kernels> kernels(module, "Kernels");
    kernels
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
        .def_prop_rw("plans_ahead", &aks::Kernels::plans_ahead, &aks::Kernels::plan_ahead)
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
    for (PyMethodDef &method : methods) {
        kernels.attr(method.ml_name) = nb::steal(PyDescr_NewMethod(reinterpret_cast<PyTypeObject *>(kernels.ptr()), &method));
    }
    nb::class_<Linear>(module, "Linear")
        .def(nb::init<aks::Kernels &, const nb::capsule &>(), nb::arg("kernels"), nb::arg("exchange"), nb::keep_alive<1, 2>())
        .def("launch", &Linear::launch, nb::arg("x"), nb::arg("w"), nb::arg("out").none(), nb::arg("static_weights"),
             nb::arg("stream"));
}
