// From Python to views and back: the only header that knows of pybind11 and of DLPack. A user's native
// target includes it to bind its own functor (examples/native_target).
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "chains.h"

namespace py = pybind11;

namespace PYSAMP_NS {

// The C exchange API of DLPack (dlpack.h 1.2 and later): layouts fixed by its ABI. torch ≥ 2.10 shows it
// as the capsule Tensor.__dlpack_c_exchange_api__, a table that fills a DLTensor from a Python tensor
// without reference counting or synchronisation.
namespace dlpack {
struct Tensor {
  void* data;
  int32_t device_type, device_index;
  int32_t ndim;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct Exchange {
  uint32_t major, minor;
  const void* previous;
  void *allocate, *from_object, *to_object;
  int (*tensor_from_object)(void* object, Tensor* out);
  int (*current_stream)(int32_t device_type, int32_t device_index, void** out);
};
inline constexpr uint8_t kInt = 0, kFloat = 2;
}  // namespace dlpack

inline bool& use_fallback() {  // a test sets it to take the path of a torch without the table
  static bool on = false;
  return on;
}

// The table of the tensor's type, or null. torch has one tensor class and a few subclasses.
inline const dlpack::Exchange* exchange_of(PyObject* object) {
  static PyTypeObject* known = nullptr;
  static const dlpack::Exchange* table = nullptr;
  if (use_fallback()) return nullptr;
  if (Py_TYPE(object) == known) return table;
  PyObject* capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(Py_TYPE(object)),
                                             "__dlpack_c_exchange_api__");
  if (!capsule) {
    PyErr_Clear();
    return nullptr;
  }
  const dlpack::Exchange* found = nullptr;
  if (PyCapsule_IsValid(capsule, "dlpack_exchange_api"))
    found =
        static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  Py_DECREF(capsule);
  if (!found || found->major != 1 || !found->tensor_from_object || !found->current_stream)
    return nullptr;
  known = Py_TYPE(object);
  table = found;
  return table;
}

template <class T> struct TypeName;
template <> struct TypeName<float> {
  static constexpr auto value = py::detail::const_name("float32");
  static constexpr const char* torch = "torch.float32";
};
template <> struct TypeName<double> {
  static constexpr auto value = py::detail::const_name("float64");
  static constexpr const char* torch = "torch.float64";
};
template <> struct TypeName<int32_t> {
  static constexpr auto value = py::detail::const_name("int32");
  static constexpr const char* torch = "torch.int32";
};

#ifdef __CUDACC__
#error "bindings.h is compiled by the host compiler alone"
#endif
#ifdef PYSAMP_CUDA_MODULE
inline constexpr int kModuleDevice = Device::kCuda;
inline constexpr const char* kModuleDeviceName = "CUDA";
#else
inline constexpr int kModuleDevice = Device::kCpu;
inline constexpr const char* kModuleDeviceName = "CPU";
#endif

inline std::string shape_text(int64_t ndim, const int64_t* shape) {
  std::string text = "(";
  for (int64_t i = 0; i < ndim; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (ndim == 1 ? ",)" : ")");
}

// Fill a view, or return false where the object is no tensor of this type (the next overload may fit).
template <class T, int N> bool view_of(PyObject* object, View<T, N>& view) {
  int64_t shape[16], strides[16];
  int64_t ndim = 0;
  int device_type = 0;
  if (const dlpack::Exchange* api = exchange_of(object)) {
    dlpack::Tensor t;
    if (api->tensor_from_object(object, &t) != 0) throw py::error_already_set();
    if (t.type_lanes != 1 || t.type_bits != 8 * sizeof(T) ||
        t.type_code != (std::is_floating_point<T>::value ? dlpack::kFloat : dlpack::kInt))
      return false;
    ndim = t.ndim;
    if (ndim > 16) throw py::value_error("expected a tensor of at most 16 dimensions");
    for (int i = 0; i < ndim; ++i) shape[i] = t.shape[i], strides[i] = t.strides[i];
    view.data = reinterpret_cast<T*>(static_cast<char*>(t.data) + t.byte_offset);
    device_type = t.device_type;
    view.device.index = t.device_index;
    if (device_type == Device::kCuda && kModuleDevice == Device::kCuda &&
        api->current_stream(device_type, t.device_index, &view.device.stream) != 0)
      throw py::error_already_set();
  } else {
    const py::handle t(object);
    if (!py::hasattr(t, "data_ptr") || !py::hasattr(t, "stride")) return false;
    if (py::str(t.attr("dtype")).cast<std::string>() != TypeName<T>::torch) return false;
    const auto sizes = t.attr("shape").cast<std::vector<int64_t>>();
    const auto steps = t.attr("stride")().cast<std::vector<int64_t>>();
    ndim = int64_t(sizes.size());
    if (ndim > 16) throw py::value_error("expected a tensor of at most 16 dimensions");
    for (int i = 0; i < ndim; ++i) shape[i] = sizes[size_t(i)], strides[i] = steps[size_t(i)];
    view.data = reinterpret_cast<T*>(t.attr("data_ptr")().cast<uintptr_t>());
    const py::object device = t.attr("device");
    const auto type = device.attr("type").cast<std::string>();
    device_type = type == "cpu" ? Device::kCpu : type == "cuda" ? Device::kCuda : 0;
    view.device.index = device.attr("index").is_none() ? 0 : device.attr("index").cast<int>();
    if (device_type == Device::kCuda && kModuleDevice == Device::kCuda)
      view.device.stream = reinterpret_cast<void*>(py::module_::import("torch")
                                                       .attr("cuda")
                                                       .attr("current_stream")(device)
                                                       .attr("cuda_stream")
                                                       .cast<uintptr_t>());
  }
  if (ndim != N)
    throw py::value_error("expected a tensor of rank " + std::to_string(N) + ", got shape " +
                          shape_text(ndim, shape));
  if (device_type != kModuleDevice)
    throw py::value_error(std::string("expected a ") + kModuleDeviceName +
                          " tensor, got one on another device");
  int64_t expected = 1, numbers = 1;
  for (int i = 0; i < N; ++i) numbers *= shape[i];
  for (int i = N - 1; i >= 0; --i) {
    if (numbers > 0 && shape[i] > 1 && strides[i] != expected)
      throw py::value_error("expected a contiguous tensor, got strides " + shape_text(N, strides) +
                            " for shape " + shape_text(N, shape));
    expected *= shape[i];
    view.size[i] = shape[i];
  }
  view.device.kind = device_type;
  return true;
}

// ---------------------------------------------------------------------------------------------------
// One energy functor with its chains. All tensors of a call live on one device; sizes are checked here,
// names are those of pysamp/ops.py.

template <template <class> class E, class S>
Energy<S> make_energy(const View<S, 1>& params, const View<int32_t, 1>& table,
                      const std::vector<int64_t>& layout, int64_t event) {
  Energy<S> e;
  check(layout.size() <= kMaxLayout, "layout: at most " + std::to_string(kMaxLayout) + " numbers");
  e.params = params.data;
  e.table = table.data;
  e.host_table = kModuleDevice == Device::kCpu ? table.data : nullptr;
  e.n_layout = int(layout.size());
  for (size_t i = 0; i < layout.size(); ++i) e.layout[i] = layout[i];
  E<S>::check(e, event, params.size[0], table.size[0]);
  return e;
}

template <class S, int N>
void same(const View<S, N>& v, const Device& device, std::array<int64_t, N> size,
          const char* name) {
  for (int i = 0; i < N; ++i)
    check(v.size[i] == size[size_t(i)], std::string(name) + ": expected shape " +
                                            shape_text(N, size.data()) + ", got " +
                                            shape_text(N, v.size));
  check(v.device.index == device.index, std::string(name) + ": on another device than x");
}

inline void check_counters(int64_t step, int64_t n_steps, int64_t first_chain, int64_t n_rows) {
  constexpr int64_t limit = int64_t(1) << 32;
  check(step >= 0 && n_steps >= 0 && step <= limit && n_steps <= limit - step,
        "step: the counter ends at 2^32 transitions, got " + std::to_string(step) + " + " +
            std::to_string(n_steps));
  check(first_chain >= 0 && first_chain <= limit && n_rows <= limit - first_chain,
        "first_chain: the counter ends at 2^32 chains, got " + std::to_string(first_chain) + " + " +
            std::to_string(n_rows));
}

inline void check_numbers(int64_t first, int64_t n, int64_t per_block) {
  const int64_t limit = per_block << 32;
  check(first >= 0 && first <= limit && n <= limit - first,
        "first: the counter ends at 2^32 blocks, got " + std::to_string(first) + " + " +
            std::to_string(n) + " numbers");
}

template <class S>
using Optional1 = std::optional<View<S, 1>>;
template <class S>
using Optional2 = std::optional<View<S, 2>>;

// What all chain calls take; the order is that of ops.chain in pysamp/ops.py.
template <class S> struct ChainCall {
  Chains<S> c;
  ChainCall(const View<S, 2>& x, const Optional1<S>& scale, const Optional1<S>& beta,
            const Optional2<S>& centre, const Optional1<S>& precision, uint64_t seed, int64_t step,
            int64_t first_chain, int64_t n_steps, int64_t thin, const View<S, 2>& x_out,
            const View<S, 1>& accept, const View<S, 1>& nonfinite,
            const std::optional<View<S, 3>>& trace_x, const Optional2<S>& matrix = std::nullopt) {
    const int64_t rows = x.size[0], n = x.size[1];
    check_counters(step, n_steps, first_chain, rows);
    check(n_steps >= 1, "n_steps must be positive, got " + std::to_string(n_steps));
    c.device = x.device;
    c.n = n, c.n_rows = rows, c.first_chain = first_chain;
    c.seed = seed, c.step = step, c.n_steps = n_steps, c.thin = thin;
    c.x = x.data;
    if (scale) same<S, 1>(*scale, x.device, {rows}, "scale"), c.scale = scale->data;
    if (beta) same<S, 1>(*beta, x.device, {rows}, "beta"), c.beta = beta->data;
    check(bool(centre) == bool(precision), "centre and precision go together");
    if (centre) {
      same<S, 2>(*centre, x.device, {rows, n}, "centre");
      same<S, 1>(*precision, x.device, {rows}, "precision");
      c.centre = centre->data, c.precision = precision->data;
    }
    if (matrix) {
      check(bool(centre), "matrix needs centre and precision");
      same<S, 2>(*matrix, x.device, {n, n}, "matrix");
      c.matrix = matrix->data;
    }
    same<S, 2>(x_out, x.device, {rows, n}, "x_out");
    same<S, 1>(accept, x.device, {rows}, "accept");
    same<S, 1>(nonfinite, x.device, {rows}, "nonfinite");
    c.x_out = x_out.data, c.accept = accept.data, c.nonfinite = nonfinite.data;
    if (trace_x) {
      check(thin >= 1 && n_steps % thin == 0, "thin must divide n_steps");
      same<S, 3>(*trace_x, x.device, {rows, n_steps / thin, n}, "trace_x");
      c.trace_x = trace_x->data;
    }
  }
};

enum class Needs {
  kScore,
  kNoScore,
  kAny
};  // kAny: a chain that evaluates at the start without one

template <template <class> class E, class S>
void bind_chain(py::module_& m, const std::string& name, typename Entry<E, S>::Call* call,
                Needs needs = Needs::kScore) {
  m.def(name.c_str(),
        [call, needs](
            View<S, 2> x, Optional1<S> log_prob, Optional2<S> score, View<S, 1> scale,
            View<S, 1> params, View<int32_t, 1> table, const std::vector<int64_t>& layout,
            Optional1<S> beta, Optional2<S> centre, Optional1<S> precision, Optional2<S> matrix,
            uint64_t seed, int64_t step, int64_t first_chain, int64_t n_steps, int64_t thin,
            int64_t n_leapfrog, std::array<double, 4> adapt, int64_t n_mean, View<S, 2> x_out,
            View<S, 1> log_prob_out, Optional2<S> score_out, View<S, 1> accept,
            View<S, 1> nonfinite, Optional1<S> scale_out, std::optional<View<S, 3>> trace_x,
            Optional2<S> trace_log_prob, Optional2<S> mean_out) {
          const auto energy = make_energy<E, S>(params, table, layout, x.size[1]);
          ChainCall<S> all(x, scale, beta, centre, precision, seed, step, first_chain, n_steps,
                           thin, x_out, accept, nonfinite, trace_x, matrix);
          Chains<S>& c = all.c;
          const int64_t rows = x.size[0], n = x.size[1];
          same<S, 1>(log_prob_out, x.device, {rows}, "log_prob_out");
          c.log_prob_out = log_prob_out.data;
          check(bool(score) == bool(score_out), "score and score_out go together");
          check(needs != Needs::kScore || score, "score: this chain needs it");
          check(needs != Needs::kNoScore || !score, "score: this chain takes none");
          check(log_prob || (needs == Needs::kAny && !score), "log_prob: this chain needs it");
          if (log_prob) {
            same<S, 1>(*log_prob, x.device, {rows}, "log_prob");
            c.log_prob = log_prob->data;
          }
          if (score) {
            same<S, 2>(*score, x.device, {rows, n}, "score");
            same<S, 2>(*score_out, x.device, {rows, n}, "score_out");
            c.score = score->data, c.score_out = score_out->data;
          }
          if (scale_out) {
            same<S, 1>(*scale_out, x.device, {rows}, "scale_out");
            c.scale_out = scale_out->data;
          }
          if (trace_log_prob) {
            check(bool(trace_x), "trace_log_prob needs trace_x");
            same<S, 2>(*trace_log_prob, x.device, {rows, n_steps / thin}, "trace_log_prob");
            c.trace_log_prob = trace_log_prob->data;
          }
          if (mean_out) {
            check(needs == Needs::kAny, "mean_out: this chain takes no means");
            check(n_mean >= 1 && n_mean <= n_steps, "n_mean must lie in 1 … n_steps");
            same<S, 2>(*mean_out, x.device, {rows, n}, "mean_out");
            c.mean_out = mean_out->data, c.n_mean = n_mean;
          }
          check(n_leapfrog >= 1, "n_leapfrog must be positive, got " + std::to_string(n_leapfrog));
          c.n_leapfrog = n_leapfrog;
          c.factor = S(adapt[0]), c.cap = S(adapt[1]);
          c.log_low = S(adapt[2]), c.log_high = S(adapt[3]);
          py::gil_scoped_release release;
          call(energy, c);
        });
}

template <template <class> class E, class S> void bind_evaluate(py::module_& m,
                                                                const std::string& name) {
  m.def(name.c_str(),
        [](View<S, 2> x, View<S, 1> params, View<int32_t, 1> table,
           const std::vector<int64_t>& layout, View<S, 1> log_prob, Optional2<S> score) {
          const auto energy = make_energy<E, S>(params, table, layout, x.size[1]);
          Chains<S> c;
          c.device = x.device;
          c.n_rows = x.size[0], c.n = x.size[1], c.x = x.data;
          same<S, 1>(log_prob, x.device, {c.n_rows}, "log_prob");
          c.log_prob_out = log_prob.data;
          if (score)
            same<S, 2>(*score, x.device, {c.n_rows, c.n}, "score"), c.score_out = score->data;
          py::gil_scoped_release release;
          evaluate<E, S>(energy, c);
        });
}

// Sites by colour, each once.
inline Colours make_colours(const View<int32_t, 1>& order, const std::vector<int64_t>& starts,
                            int64_t n_sites) {
  Colours colours;
  check(starts.size() >= 2 && starts.size() <= Colours::kMax + 1,
        "starts: from 1 to " + std::to_string(Colours::kMax) + " colours");
  check(starts.front() == 0 && starts.back() == n_sites && order.size[0] == n_sites,
        "order and starts: every site has one colour");
  colours.n = int(starts.size()) - 1;
  for (size_t i = 0; i < starts.size(); ++i) {
    check(i == 0 || starts[i] >= starts[i - 1], "starts: not in order");
    colours.start[i] = starts[i];
  }
  colours.order = order.data;
  if (kModuleDevice == Device::kCpu) {  // on a device the list is the caller's word
    std::vector<char> seen(size_t(n_sites), 0);
    for (int64_t i = 0; i < order.size[0]; ++i) {
      const int32_t site = order.data[i];
      if (site < 0 || site >= n_sites || seen[size_t(site)])
        check(false,
              "order: every site once, got " + std::to_string(site) + " at " + std::to_string(i));
      seen[size_t(site)] = 1;
    }
  }
  return colours;
}

template <template <class> class E, class S> void bind_sites_of(py::module_& m,
                                                                const std::string& name) {
  m.def(name.c_str(), [](View<S, 2> x, View<S, 1> scale, View<S, 1> params, View<int32_t, 1> table,
                         const std::vector<int64_t>& layout, View<int32_t, 1> order,
                         const std::vector<int64_t>& starts, Optional1<S> beta, Optional2<S> centre,
                         Optional1<S> precision, uint64_t seed, int64_t step, int64_t first_chain,
                         int64_t n_steps, int64_t thin, View<S, 2> x_out, View<S, 1> accept,
                         View<S, 1> nonfinite, std::optional<View<S, 3>> trace_x) {
    const auto energy = make_energy<E, S>(params, table, layout, x.size[1]);
    ChainCall<S> all(x, scale, beta, centre, precision, seed, step, first_chain, n_steps, thin,
                     x_out, accept, nonfinite, trace_x);
    const Colours colours = make_colours(order, starts, x.size[1]);
    py::gil_scoped_release release;
    SiteEntry<E, S>::sites(energy, all.c, colours);
  });
}

// Bind NAME_log_prob_and_score, NAME_mala, NAME_ula, NAME_hmc and NAME_metropolis for float32 and float64.
template <template <class> class E> void bind_energy(py::module_& m, const std::string& name) {
  m.attr("device") = kModuleDevice == Device::kCuda ? "cuda" : "cpu";
  bind_evaluate<E, float>(m, name + "_log_prob_and_score");
  bind_evaluate<E, double>(m, name + "_log_prob_and_score");
  bind_chain<E, float>(m, name + "_mala", &Entry<E, float>::mala, Needs::kAny);
  bind_chain<E, double>(m, name + "_mala", &Entry<E, double>::mala, Needs::kAny);
  bind_chain<E, float>(m, name + "_ula", &Entry<E, float>::ula);
  bind_chain<E, double>(m, name + "_ula", &Entry<E, double>::ula);
  bind_chain<E, float>(m, name + "_hmc", &Entry<E, float>::hmc);
  bind_chain<E, double>(m, name + "_hmc", &Entry<E, double>::hmc);
  bind_chain<E, float>(m, name + "_metropolis", &Entry<E, float>::metropolis, Needs::kNoScore);
  bind_chain<E, double>(m, name + "_metropolis", &Entry<E, double>::metropolis, Needs::kNoScore);
}

// Bind NAME_sites, for functors with `local`.
template <template <class> class E> void bind_sites(py::module_& m, const std::string& name) {
  bind_sites_of<E, float>(m, name + "_sites");
  bind_sites_of<E, double>(m, name + "_sites");
}

}  // namespace PYSAMP_NS

namespace pybind11::detail {
template <class T, int N> struct type_caster<PYSAMP_NS::View<T, N>> {
  using Type = PYSAMP_NS::View<T, N>;
  PYBIND11_TYPE_CASTER(Type, const_name("Tensor[") + PYSAMP_NS::TypeName<T>::value +
                                 const_name(", ") + const_name<N>() + const_name("d]"));
  bool load(handle source, bool) { return PYSAMP_NS::view_of(source.ptr(), value); }
};
}  // namespace pybind11::detail
