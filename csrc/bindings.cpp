// The Python module: one line an entry point. The same file makes _cpu, _cpu_v3, _cpu_v4 and _cuda.
#include "bindings.h"

#include "ops.h"

#ifndef PYSAMP_MODULE
#define PYSAMP_MODULE _cpu
#endif
#ifndef PYSAMP_ISA
#define PYSAMP_ISA "x86-64"
#endif

using namespace PYSAMP_NS;

namespace {

template <class S> void bind_numbers(py::module_& m, const char* name, Numbers kind) {
  m.def(
      name,
      [kind](View<S, 2> out, uint64_t seed, int64_t step, int64_t stream, int64_t first_chain,
             int64_t first) {
        check_counters(step, 0, first_chain, out.size[0]);
        check_numbers(first, out.size[1], Block<S>::kSize);
        py::gil_scoped_release release;
        random_numbers<S>(out, Address{seed, step, stream, first_chain, first}, kind);
      },
      py::arg("out"), py::arg("seed"), py::arg("step"), py::arg("stream"), py::arg("first_chain"),
      py::arg("first"));
}

template <class S> void bind_sum(py::module_& m) {
  m.def(
      "sum32",
      [](View<S, 2> x, View<S, 1> out) {
        py::gil_scoped_release release;
        sum_rows<S>(x, out);
      },
      py::arg("x"), py::arg("out"));
}

}  // namespace

PYBIND11_MODULE(PYSAMP_MODULE, m, py::mod_gil_not_used()) {
  m.doc() = "Native kernels of pysamp; call them through pysamp.ops.";
  m.attr("isa") = PYSAMP_ISA;
  m.attr("architectures") = std::string(
#ifdef PYSAMP_ARCHITECTURES
      PYSAMP_ARCHITECTURES
#endif
  );
  m.def("_use_fallback", [](bool on) { use_fallback() = on; });
  m.def("bits", [](View<int32_t, 2> out, uint64_t seed, int64_t step, int64_t stream,
                   int64_t first_chain, int64_t first) {
    check_counters(step, 0, first_chain, out.size[0]);
    check_numbers(first, out.size[1], 4);
    py::gil_scoped_release release;
    random_bits(out, Address{seed, step, stream, first_chain, first});
  });
  bind_numbers<float>(m, "uniform", Numbers::kUniform);
  bind_numbers<double>(m, "uniform", Numbers::kUniform);
  bind_numbers<float>(m, "normal", Numbers::kNormal);
  bind_numbers<double>(m, "normal", Numbers::kNormal);
  bind_numbers<float>(m, "log_uniform", Numbers::kLogUniform);
  bind_numbers<double>(m, "log_uniform", Numbers::kLogUniform);
  bind_sum<float>(m);
  bind_sum<double>(m);
  bind_energy<Phi4>(m, "phi4");
  bind_sites<Phi4>(m, "phi4");
  bind_energy<Mixture>(m, "mixture");
}
