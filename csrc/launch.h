// How work is spread: `for_each` over elements, and `run_chains` over Markov chains, which all steps of a
// tile of chains run before the next tile, so that a tile stays in cache (CPU) or on chip (CUDA).
#pragma once
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include "group.h"
#include "view.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace PYSAMP_NS {

inline void check(bool condition, const std::string& text) {
  if (!condition) throw std::invalid_argument(text);
}

// Work below which a parallel region costs more than it gives, in element steps (about 20 µs).
inline constexpr int64_t kGrain = 20000;

enum class Groups { few, warp, wide };  // see run_chains

#ifdef __CUDACC__

inline void cuda_check(cudaError_t code, const char* what, const char* file, int line) {
  if (code == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code) + " at " + file +
                           ":" + std::to_string(line));
}
#define CUDA_CHECK(expression) \
  ::PYSAMP_NS::cuda_check((expression), #expression, __FILE__, __LINE__)

inline bool& synchronous() {  // PYSAMP_SYNC=1: wait after each launch, so the failing one is named
  static bool on = [] {
    const char* text = std::getenv("PYSAMP_SYNC");
    return text && text[0] == '1';
  }();
  return on;
}

struct DeviceGuard {
  int before = 0;
  explicit DeviceGuard(const Device& device) {
    CUDA_CHECK(cudaGetDevice(&before));
    if (before != device.index) CUDA_CHECK(cudaSetDevice(device.index));
  }
  ~DeviceGuard() { cudaSetDevice(before); }
};

inline void after_launch(cudaStream_t stream, const char* name) {
  cuda_check(cudaGetLastError(), name, __FILE__, __LINE__);
  if (synchronous()) cuda_check(cudaStreamSynchronize(stream), name, __FILE__, __LINE__);
}

// The one place where kernels are launched; tests/cuda_emulation.h puts a CPU in its place.
#ifndef PYSAMP_LAUNCH
#define PYSAMP_LAUNCH(kernel, blocks, threads, shared, stream, ...) \
  kernel<<<blocks, threads, shared, stream>>>(__VA_ARGS__)
#endif

template <class F> __global__ void for_each_kernel(int64_t n, F f) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x)
    f(i);
}

// f(i) for i < n; f is a functor with a const HD operator()(int64_t).
template <class F> void for_each(const Device& device, int64_t n, F f) {
  if (n == 0) return;
  DeviceGuard guard(device);
  const int64_t blocks = (n + 255) / 256;
  const auto stream = static_cast<cudaStream_t>(device.stream);
  auto* kernel = for_each_kernel<F>;
  PYSAMP_LAUNCH(kernel, unsigned(blocks < 65536 ? blocks : 65536), 256, 0, stream, n, f);
  after_launch(stream, "for_each");
}

inline int64_t shared_limit(const Device& device) {
  int bytes = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index));
  return bytes;
}

template <class S, int G, class Driver>
__global__ void chains_kernel(Driver driver, int64_t n_rows, uint32_t first_chain, int64_t reals,
                              S* workspace) {
  extern __shared__ __align__(16) unsigned char raw[];
  const int groups = blockDim.x / G, mine = threadIdx.x / G;
  int64_t row = int64_t(blockIdx.x) * groups + mine;
  S* scratch = workspace ? workspace + row * reals : reinterpret_cast<S*>(raw) + mine * reals;
  const bool valid = row < n_rows;
  ThreadGroup<S, G> group{valid ? row : n_rows - 1, n_rows, first_chain, valid};
  driver(group, scratch);
}

template <class S, int G, class Driver>
void launch_chains(const Device& device, int64_t n_rows, uint32_t first_chain, int64_t reals,
                   Driver driver) {
  const auto stream = static_cast<cudaStream_t>(device.stream);
  reals = (reals + 3) / 4 * 4;
  const int64_t bytes = reals * int64_t(sizeof(S)), limit = shared_limit(device);
  int groups = G > 32 ? 1 : 128 / G;
  while (groups > 1 && groups * G > 32 && groups * bytes > limit / 2) groups /= 2;
  const int64_t blocks = (n_rows + groups - 1) / groups;
  S* workspace = nullptr;
  auto* kernel = chains_kernel<S, G, Driver>;
  int64_t shared = groups * bytes;
  if (shared > limit) {  // too large for the chip: the same code on a global workspace
    shared = 0;
    CUDA_CHECK(
        cudaMallocAsync(reinterpret_cast<void**>(&workspace), blocks * groups * bytes, stream));
  } else if (shared > 48 * 1024) {
    CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
  }
  PYSAMP_LAUNCH(kernel, unsigned(blocks), groups * G, size_t(shared), stream, driver, n_rows,
                first_chain, reals, workspace);
  after_launch(stream, "chains");
  if (workspace) CUDA_CHECK(cudaFreeAsync(workspace, stream));
}

// driver(group, scratch) for every chain; `scratch` holds `reals` numbers a chain, uninitialised.
// Events of n elements. What groups a device is compiled for: `wide` for single-site moves, a warp or a
// block to a chain; `few` for events that may be small, from two threads to a chain on; else a warp.
template <class S, Groups groups, class Driver>
void run_chains(const Device& device, int64_t n_rows, int64_t first_chain, int64_t n, int64_t steps,
                int64_t reals, Driver driver) {
  (void)steps;
  if (n_rows == 0) return;
  DeviceGuard guard(device);
  const uint32_t first = uint32_t(first_chain);
  if constexpr (groups == Groups::wide) {
    if (n > 512)
      launch_chains<S, 256>(device, n_rows, first, reals, driver);
    else
      launch_chains<S, 32>(device, n_rows, first, reals, driver);
  } else if constexpr (groups == Groups::warp) {
    launch_chains<S, 32>(device, n_rows, first, reals, driver);
  } else {
    if (n <= 2)
      launch_chains<S, 2>(device, n_rows, first, reals, driver);
    else if (n <= 8)
      launch_chains<S, 8>(device, n_rows, first, reals, driver);
    else
      launch_chains<S, 32>(device, n_rows, first, reals, driver);
  }
}

#else  // CPU

// f(i) for i < n, over threads when there is enough of it.
template <class F> void for_each(const Device&, int64_t n, F f, int64_t work_per_item = 1) {
#pragma omp parallel for schedule(static) if (n * work_per_item > kGrain)
  for (int64_t i = 0; i < n; ++i) f(i);
}

// Few chains of large events go one to a thread (SerialGroup), as a tile of lanes costs the same however few
// chains are in it.
template <class S, class Driver>
void run_serially(int64_t n_rows, int64_t first_chain, int64_t n, int64_t steps, int64_t reals,
                  const Driver& driver) {
  const bool parallel = n_rows > 1 && n_rows * n * steps > kGrain;
  (void)parallel;
  S* memory = static_cast<S*>(__builtin_malloc(size_t(n_rows * reals) * sizeof(S)));
  if (!memory) throw std::bad_alloc();
#pragma omp parallel for schedule(dynamic) if (parallel)
  for (int64_t row = 0; row < n_rows; ++row)
    driver(SerialGroup<S>{row, uint32_t(first_chain + row)}, memory + row * reals);
  __builtin_free(memory);
}

template <class S, Groups groups, class Driver>
void run_chains(const Device&, int64_t n_rows, int64_t first_chain, int64_t n, int64_t steps,
                int64_t reals, Driver driver) {
  using Real = Lanes<S>;
  constexpr int W = kLanes<S>;
  if constexpr (groups == Groups::warp)
    if (n >= 256 && 5 * n_rows <= W)
      return run_serially<S>(n_rows, first_chain, n, steps, reals, driver);
  const int64_t tiles = (n_rows + W - 1) / W;
  const bool parallel = tiles > 1 && n_rows * (n + 4) * (steps + 1) > kGrain;
  int threads = 1;
#ifdef _OPENMP
  if (parallel) threads = int(tiles < omp_get_max_threads() ? tiles : omp_get_max_threads());
#endif
  (void)parallel;
  const size_t bytes = (size_t(reals) * sizeof(Real) + 4095) / 4096 * 4096;
  void* memory = __builtin_malloc(bytes * size_t(threads) + kVectorBytes);
  if (!memory) throw std::bad_alloc();
  const uintptr_t aligned =
      (reinterpret_cast<uintptr_t>(memory) + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (int64_t tile = 0; tile < tiles; ++tile) {
    int me = 0;
#ifdef _OPENMP
    me = omp_get_thread_num();
#endif
    LaneGroup<S> group(tile * W, n_rows, uint32_t(first_chain));
    driver(group, reinterpret_cast<Real*>(aligned + size_t(me) * bytes));
  }
  __builtin_free(memory);
}

#endif

}  // namespace PYSAMP_NS
