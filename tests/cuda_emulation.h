// A CPU in the place of a GPU: the CUDA sources of csrc/, compiled by g++ with this header first, run their
// blocks one after the other and the threads of a block as fibres that switch at barriers. It checks what
// can be wrong without a device (indices, strides, reductions, who stores, who waits), not speed.
// A thread that ends while others wait at a barrier is reported: on a GPU it would hang or be undefined.
#pragma once
#include <math.h>  // fmaf and fma: nvcc knows them
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#define __CUDACC__ 1
#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__
#define __align__(n) __attribute__((aligned(n)))

struct Index {
  unsigned x = 0;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaFuncAttributeMaxDynamicSharedMemorySize };
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline constexpr int kSharedBytes = 227 * 1024;  // of an H100
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  return *value = kSharedBytes, cudaSuccess;
}
template <class K> cudaError_t cudaFuncSetAttribute(K, int, int) { return cudaSuccess; }
inline cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t) {
  return *memory = std::malloc(bytes), cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t) { return std::free(memory), cudaSuccess; }

namespace PYSAMP_NS {
alignas(16) inline unsigned char raw[kSharedBytes];
}

namespace emulation {

struct Fibre {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(256 * 1024);
  int waits = 0;  // 0 runs, 1 at a warp barrier, 2 at a block barrier
  bool done = false;
};
inline ucontext_t scheduler;
inline std::vector<Fibre>* fibres = nullptr;
inline const std::function<void()>* body = nullptr;
inline unsigned current = 0;
inline double exchange[32 * 32];

inline void enter() {
  (*body)();
  (*fibres)[current].done = true;
  swapcontext(&(*fibres)[current].context, &scheduler);
}

inline void wait(int kind) {
  Fibre& me = (*fibres)[current];
  me.waits = kind;
  swapcontext(&me.context, &scheduler);
}

// Release fibres [begin, end) if all of them stand at this kind of barrier.
inline bool release(unsigned begin, unsigned end, int kind) {
  for (unsigned t = begin; t < end; ++t)
    if ((*fibres)[t].done || (*fibres)[t].waits != kind) return false;
  for (unsigned t = begin; t < end; ++t) (*fibres)[t].waits = 0;
  return true;
}

template <class F> void launch(unsigned blocks, unsigned threads, size_t shared, F f) {
  if (shared > size_t(kSharedBytes)) throw std::runtime_error("emulation: too much shared memory");
  std::vector<Fibre> pool(threads);
  const std::function<void()> call = f;
  fibres = &pool;
  body = &call;
  blockDim.x = threads;
  gridDim.x = blocks;
  for (unsigned b = 0; b < blocks; ++b) {
    blockIdx.x = b;
    std::memset(PYSAMP_NS::raw, 0xff, shared);  // NaN: nothing may rely on what memory held
    for (unsigned t = 0; t < threads; ++t) {
      Fibre& fibre = pool[t];
      fibre.done = false, fibre.waits = 0;
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.data();
      fibre.context.uc_stack.ss_size = fibre.stack.size();
      fibre.context.uc_link = nullptr;
      makecontext(&fibre.context, enter, 0);
    }
    for (;;) {
      bool ran = false, all = true;
      for (unsigned t = 0; t < threads; ++t) {
        if (pool[t].done) continue;
        all = false;
        if (pool[t].waits) continue;
        current = t;
        threadIdx.x = t;
        swapcontext(&scheduler, &pool[t].context);
        ran = true;
      }
      if (all) break;
      bool released = release(0, threads, 2);
      for (unsigned w = 0; w < threads; w += 32)
        released |= release(w, w + 32 < threads ? w + 32 : threads, 1);
      if (!ran && !released) throw std::runtime_error("emulation: a barrier that not all reach");
    }
  }
}

}  // namespace emulation

inline void __syncwarp() { emulation::wait(1); }
inline void __syncthreads() { emulation::wait(2); }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask, int width) {
  const unsigned me = threadIdx.x, group = me / unsigned(width) * unsigned(width);
  emulation::exchange[me] = value;
  emulation::wait(1);
  const T other = T(emulation::exchange[group + ((me - group) ^ unsigned(mask))]);
  emulation::wait(1);
  return other;
}
template <class T> T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}

inline int atomicMin(int* address, int value) {
  const int before = *address;
  *address = value < before ? value : before;
  return before;
}

#define PYSAMP_LAUNCH(kernel, blocks, threads, shared, stream, ...) \
  ((void)(stream), emulation::launch(blocks, threads, shared, [&] { kernel(__VA_ARGS__); }))
