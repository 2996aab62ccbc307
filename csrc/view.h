// View<T, N>: a pointer, N sizes and the device they live on; what a kernel knows of a tensor. Views
// are made, and checked, by the caster in bindings.cpp: right type, rank, contiguous, known device.
#pragma once
#include <cstdint>

#ifndef PYSAMP_NS
#define PYSAMP_NS pysamp_base
#endif

namespace PYSAMP_NS {

struct Device {
  enum Kind : int { kCpu = 1, kCuda = 2 };  // the numbers of DLPack
  int kind = kCpu;
  int index = 0;
  void* stream = nullptr;
};

template <class T, int N> struct View {
  T* data = nullptr;
  int64_t size[N] = {};
  Device device;
};

}  // namespace PYSAMP_NS
