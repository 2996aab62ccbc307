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

template <class S> void bind_couplings(py::module_& m) {
  m.def(
      "affine_couplings",
      [](View<S, 2> x, View<S, 1> params, double scale, const std::vector<int64_t>& layout,
         bool inverse, View<S, 2> out, View<S, 1> log_det) {
        py::gil_scoped_release release;
        affine_couplings<S>(x, params, S(scale), layout, inverse, out, log_det);
      },
      py::arg("x"), py::arg("params"), py::arg("scale"), py::arg("layout"), py::arg("inverse"),
      py::arg("out"), py::arg("log_det"));
#ifndef PYSAMP_CUDA_MODULE
  m.def(
      "affine_couplings_vjp",
      [](View<S, 2> image, View<S, 1> params, double scale, const std::vector<int64_t>& layout,
         bool inverse, View<S, 2> grad_image, View<S, 1> grad_log_det, View<S, 2> grad_x,
         View<S, 1> grad_params) {
        py::gil_scoped_release release;
        affine_couplings_vjp<S>(image, params, S(scale), layout, inverse, grad_image, grad_log_det,
                                grad_x, grad_params);
      },
      py::arg("image"), py::arg("params"), py::arg("scale"), py::arg("layout"), py::arg("inverse"),
      py::arg("grad_image"), py::arg("grad_log_det"), py::arg("grad_x"), py::arg("grad_params"));
#endif
}

// ---------------------------------------------------------------------------------------------------
// Lattice fields: sweeps of single-site moves, and cluster moves.

template <class S> Recorder<S> make_recorder(const std::optional<View<S, 3>>& records,
                                             const Optional2<S>& waves, int64_t every,
                                             const Chains<S>& c, const Energy<S>& e) {
  Recorder<S> recorder;
  if (!records) return recorder;
  check(c.thin >= 1 && c.n_steps % c.thin == 0, "thin must divide n_steps");
  check(every >= 1 && c.thin % every == 0, "every must divide thin");
  check(bool(waves), "records need waves");
  same<S, 2>(*waves, c.device, {e.layout[1], e.layout[0]}, "waves");
  same<S, 3>(*records, c.device, {c.n_rows, c.n_steps / c.thin, kRecord}, "records");
  recorder.waves = waves->data, recorder.every = every, recorder.out = records->data;
  return recorder;
}

template <template <class> class E, class S>
void bind_sweeps_of(py::module_& m, const char* name, void (*call)(const SweepCall<S>&)) {
  m.def(name, [call](View<S, 2> x, Optional1<S> scale, View<S, 1> params, View<int32_t, 1> table,
                     const std::vector<int64_t>& layout, View<int32_t, 1> order,
                     const std::vector<int64_t>& starts, const std::vector<int>& moves,
                     Optional1<S> beta, Optional2<S> centre, Optional1<S> precision, uint64_t seed,
                     int64_t step, int64_t first_chain, int64_t n_steps, int64_t thin,
                     int64_t every, int in_lanes, View<S, 2> x_out, View<S, 1> accept,
                     View<S, 1> nonfinite, std::optional<View<S, 3>> trace_x, Optional2<S> waves,
                     std::optional<View<S, 3>> records) {
    SweepCall<S> all;
    all.energy = make_energy<E, S>(params, table, layout, x.size[1]);
    all.c = ChainCall<S>(x, scale, beta, centre, precision, seed, step, first_chain, n_steps, thin,
                         x_out, accept, nonfinite, trace_x)
                .c;
    all.c.thin = thin;
    all.colours = make_colours(order, starts, layout[0]);
    all.recorder = make_recorder(records, waves, every, all.c, all.energy);
    check(in_lanes >= 0 && in_lanes <= 2, "in_lanes is 0 (choose), 1 (chains) or 2 (sites)");
    all.layout = Layout(in_lanes);
    check(!moves.empty() && moves.size() <= Program::kMax,
          "moves: from 1 to " + std::to_string(Program::kMax) + " sweeps a step");
    check((step + n_steps) * int64_t(moves.size()) <= int64_t(1) << 32,
          "step: the counter ends at 2^32 sweeps");
    const int64_t n = layout[3];
    constexpr bool unit = std::is_same<E<S>, Spins<S>>::value;
    for (const int move : moves) {
      check(move >= 0 && move <= 2, "moves: no move has number " + std::to_string(move));
      check(Move(move) != Move::kReflect || n > 1, "moves: one component has no over-relaxation");
      check(Move(move) != Move::kReflect || !centre,
            "moves: a tilted field has no over-relaxation");
      check(Move(move) != Move::kHeatBath || !unit || n <= 3,
            "moves: no heat bath for spins of more than three components");
      check(Move(move) != Move::kMetropolis || scale || (unit && n == 1),
            "scale: Metropolis needs it");
      check(!unit || !centre, "spins are not tilted");
      all.program.move[all.program.n++] = Move(move);
      all.program.refusing +=
          Move(move) == Move::kMetropolis || (Move(move) == Move::kHeatBath && (!unit || n == 2));
    }
    py::gil_scoped_release release;
    call(all);
  });
}

template <template <class> class E, class S>
void bind_clusters_of(py::module_& m, const char* name, void (*call)(const ClusterCall<S>&)) {
  m.def(name, [call](View<S, 2> x, View<S, 1> params, View<int32_t, 1> table,
                     const std::vector<int64_t>& layout, bool wolff, Optional1<S> beta,
                     uint64_t seed, int64_t step, int64_t first_chain, int64_t n_steps,
                     int64_t thin, int64_t every, View<S, 2> x_out, View<S, 1> size,
                     View<S, 1> accept, View<S, 1> nonfinite, std::optional<View<S, 3>> trace_x,
                     Optional2<S> waves, std::optional<View<S, 3>> records) {
    ClusterCall<S> all;
    all.energy = make_energy<E, S>(params, table, layout, x.size[1]);
    all.c = ChainCall<S>(x, std::nullopt, beta, std::nullopt, std::nullopt, seed, step, first_chain,
                         n_steps, thin, x_out, accept, nonfinite, trace_x)
                .c;
    all.c.thin = thin;
    all.recorder = make_recorder(records, waves, every, all.c, all.energy);
    same<S, 1>(size, x.device, {all.c.n_rows}, "size");
    all.size = size.data;
    all.wolff = wolff;
    all.unit = std::is_same<E<S>, Spins<S>>::value;
    py::gil_scoped_release release;
    call(all);
  });
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
  bind_couplings<float>(m);
  bind_couplings<double>(m);
  bind_energy<Phi4>(m, "phi4");
  bind_energy<Soft>(m, "soft");
  bind_evaluate<Spins, float>(m, "spins_log_prob_and_score");
  bind_evaluate<Spins, double>(m, "spins_log_prob_and_score");
  bind_sweeps_of<Phi4, float>(m, "phi4_sweeps", &sweep_phi4<float>);
  bind_sweeps_of<Phi4, double>(m, "phi4_sweeps", &sweep_phi4<double>);
  bind_sweeps_of<Soft, float>(m, "soft_sweeps", &sweep_soft<float>);
  bind_sweeps_of<Soft, double>(m, "soft_sweeps", &sweep_soft<double>);
  bind_sweeps_of<Spins, float>(m, "spins_sweeps", &sweep_spins<float>);
  bind_sweeps_of<Spins, double>(m, "spins_sweeps", &sweep_spins<double>);
  bind_clusters_of<Phi4, float>(m, "phi4_clusters", &cluster_phi4<float>);
  bind_clusters_of<Phi4, double>(m, "phi4_clusters", &cluster_phi4<double>);
  bind_clusters_of<Soft, float>(m, "soft_clusters", &cluster_phi4<float>);
  bind_clusters_of<Soft, double>(m, "soft_clusters", &cluster_phi4<double>);
  bind_clusters_of<Spins, float>(m, "spins_clusters", &cluster_spins<float>);
  bind_clusters_of<Spins, double>(m, "spins_clusters", &cluster_spins<double>);
  bind_energy<Mixture>(m, "mixture");
  bind_energy<Rings>(m, "rings");
  bind_energy<Funnel>(m, "funnel");
  bind_energy<Logistic>(m, "logistic");
}
