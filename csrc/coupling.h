// A stack of affine couplings, whose networks stay on chip through all layers: pysamp/couplings.py has the
// mathematics and the torch definition. Equal to it to rounding, not to the last bit: products are fused.
//
//   CPU   samples sit in SIMD lanes, `kVectors` vectors of them to a tile; a tile goes through all couplings
//         before the next one. Each layer is a matrix product in register blocks of kRows outputs by
//         kVectors vectors; weights are read as they lie, [in][out], the outputs of a block side by side.
//   CUDA  a block of threads holds a tile of samples in shared memory through all couplings; each thread
//         makes 8 outputs of 8 samples at a time, weights come through the caches.
#pragma once
#include "launch.h"
#include "maths.h"

namespace PYSAMP_NS {

struct CouplingLayout {
  int64_t dim, n_couplings, hidden, n_hidden, nets, alternate;

  HD int64_t first() const { return alternate ? (dim + 1) / 2 : dim / 2; }
  HD int64_t moved(int64_t c) const { return c % 2 ? dim - first() : first(); }
  // Coordinate k of set 0 or 1.
  HD int64_t at(int64_t set, int64_t k) const {
    return alternate ? 2 * k + set : set ? first() + k : k;
  }
  HD int64_t outputs(int64_t c) const { return 2 * moved(c) / nets; }  // of each network
  HD int64_t size(int64_t c) const {                                   // numbers of coupling c
    const int64_t in = dim - moved(c), h = hidden;
    return nets * ((in + 1) * h + (n_hidden - 1) * (h + 1) * h + (h + 1) * outputs(c));
  }
  HD int64_t total() const { return (n_couplings + 1) / 2 * size(0) + n_couplings / 2 * size(1); }
  HD int64_t offset(int64_t c) const { return (c + 1) / 2 * size(0) + c / 2 * size(1); }
};

// Where the matrix and the bias of one layer of one network lie.
template <class S> struct LayerOf {
  const S *weight, *bias;
  int64_t in, out, stride;  // stride between rows of inputs
};
template <class S>
HD LayerOf<S> coupling_layer(const CouplingLayout& l, const S* w, int64_t c, int64_t net,
                             int64_t layer) {
  const int64_t in = l.dim - l.moved(c), h = l.hidden, k = l.nets, out = l.outputs(c);
  w += l.offset(c);
  if (layer == 0) return {w + net * h, w + in * k * h + net * h, in, h, k * h};
  w += (in + 1) * k * h;
  if (layer < l.n_hidden) {
    w += (layer - 1) * k * h * (h + 1);
    return {w + net * h * h, w + k * h * h + net * h, h, h, h};
  }
  w += (l.n_hidden - 1) * k * h * (h + 1);
  return {w + net * h * out, w + k * h * out + net * out, h, out, out};
}

// x = n ln 2 + r for |x| below 80, NaN staying NaN: r, and 2^n.
template <class R> struct Reduced {
  R r, power;
  HD explicit Reduced(R x) {
    using S = Scalar<R>;
    using C = Constants<S>;
    const R t = x * C::kLog2e + C::kRound, n = t - C::kRound;
    r = (x - n * C::kLn2Hi) - n * C::kLn2Lo;
    power = from_bits(((bits(t) - bits(R{} + C::kRound)) << C::kMantissa) + C::kOne);
  }
};
template <class R> HD R exp_bounded(R x) {
  const Reduced<R> y(x);
  return y.power * expm1_tail(y.r, Scalar<R>()) + y.power;
}
// (e^{2x} − 1) / (e^{2x} + 1), accurate near 0 as well.
template <class R> HD R tanh_portable(R x) {
  using S = Scalar<R>;
  const R top = R{} + S(sizeof(S) == 4 ? 10 : 20);  // where tanh is 1 to rounding
  R y = select(x > top, top, x);
  y = select(y < -top, -top, y);
  const Reduced<R> z(y + y);
  const R e = z.power * expm1_tail(z.r, S()) + (z.power - S(1));
  return e / (e + S(2));
}

// One coordinate: v becomes its image, s is returned. The raw outputs of S and T come in.
template <class R>
HD R couple(R& v, R raw_scale, R raw_shift, Scalar<R> a, bool inverse) {
  const R s = a * tanh_portable(raw_scale), t = a * raw_shift;
  v = inverse ? v * exp_bounded(-s) - t : (v + t) * exp_bounded(s);
  return s;
}

// What one call works on: rows of `in` (n, dim) to rows of `out` and ln det.
template <class S> struct CouplingCall {
  CouplingLayout l;
  const S* weights;
  S scale;
  bool inverse;
  const S* in;
  S *out, *log_det;
  int64_t n;

  HD int64_t coupling(int64_t step) const { return inverse ? l.n_couplings - 1 - step : step; }
  HD int64_t hidden_rows() const { return l.nets * l.n_hidden * l.hidden; }
};

#ifdef __CUDACC__

HD float fused(float a, float b, float c) { return fmaf(a, b, c); }
HD double fused(double a, double b, double c) { return fma(a, b, c); }

inline constexpr int kCouplingThreads = 128, kTile = 8;  // kTile outputs of kTile samples a thread

// kTile numbers side by side; `Aligned` has them loaded four at a time.
template <class S> struct alignas(16) Four {
  S value[4];
};
template <class S, bool Aligned> HD void load_tile(const S* from, S* to) {
  if (Aligned) {
    UNROLL for (int q = 0; q < kTile; q += 4) {
      const Four<S> four = *reinterpret_cast<const Four<S>*>(from + q);
      UNROLL for (int i = 0; i < 4; ++i) to[q + i] = four.value[i];
    }
  } else {
    UNROLL for (int i = 0; i < kTile; ++i) to[i] = from[i];
  }
}

// sum[i][j] = Σ_k w[k·stride + i] x[k·m + j]; only `rows` of the kTile rows i exist where not Aligned.
template <class S, bool Aligned>
HD void products_of_thread(const S* w, int64_t stride, int rows, int64_t in, const S* x, int m,
                           S (&sum)[kTile][kTile]) {
#pragma unroll 2
  for (int64_t k = 0; k < in; ++k, w += stride, x += m) {
    S a[kTile], u[kTile];
    if (Aligned) {
      load_tile<S, true>(w, a);
    } else {
      UNROLL for (int i = 0; i < kTile; ++i) a[i] = i < rows ? w[i] : S(0);
    }
    load_tile<S, true>(x, u);
    UNROLL for (int i = 0; i < kTile; ++i) UNROLL for (int j = 0; j < kTile; ++j) sum[i][j] =
        fused(a[i], u[j], sum[i][j]);
  }
}

// y (out, m) = W^T x (in, m) + b, rectified or not; x and y in shared memory, m a multiple of kTile.
template <class S>
__device__ void layer_of_block(const LayerOf<S>& l, const S* x, S* y, int m, bool rectify) {
  const int across = m / kTile;  // threads side by side over the samples
  const int column = int(threadIdx.x) % across * kTile;
  const int64_t step = int64_t(blockDim.x) / across * kTile;
  const bool aligned = reinterpret_cast<uintptr_t>(l.weight) % 16 == 0 && l.stride % 4 == 0;
  for (int64_t row = int64_t(threadIdx.x) / across * kTile; row < l.out; row += step) {
    S sum[kTile][kTile] = {};
    const int rows = l.out - row < kTile ? int(l.out - row) : kTile;
    if (aligned && rows == kTile)
      products_of_thread<S, true>(l.weight + row, l.stride, rows, l.in, x + column, m, sum);
    else
      products_of_thread<S, false>(l.weight + row, l.stride, rows, l.in, x + column, m, sum);
    UNROLL for (int i = 0; i < kTile; ++i) {
      if (i >= rows) break;
      UNROLL for (int j = 0; j < kTile; ++j) {
        const S value = sum[i][j] + l.bias[row + i];
        y[(row + i) * m + column + j] = rectify && value < S(0) ? S(0) : value;
      }
    }
  }
}

// m samples a block. Shared memory: both sets of coordinates (dim, m), two hidden layers (hidden, m), the
// outputs of S and T (dim + 1, m).
template <class S> __global__ void couplings_kernel(CouplingCall<S> call, int m) {
  const CouplingLayout& l = call.l;
  extern __shared__ __align__(16) unsigned char raw[];
  S* coordinates = reinterpret_cast<S*>(raw);
  S* h1 = coordinates + l.dim * m;
  S* h2 = h1 + l.hidden * m;
  S* outputs = h2 + l.hidden * m;
  const int64_t first = int64_t(blockIdx.x) * m, half = l.moved(0);
  // Neighbouring threads take neighbouring numbers of a sample; row r of `coordinates` is its r-th number
  // in the order of the sets.
  const auto row_of = [&](int64_t k) {
    if (!l.alternate) return k;
    return k % 2 ? half + k / 2 : k / 2;
  };
  for (int64_t e = threadIdx.x; e < l.dim * m; e += blockDim.x) {
    const int64_t sample = e / l.dim, k = e % l.dim;
    coordinates[row_of(k) * m + sample] =
        first + sample < call.n ? call.in[(first + sample) * l.dim + k] : S(0);
  }
  S total = S(0);  // of the sample that this thread adds up, if it has one
  __syncthreads();
  for (int64_t step = 0; step < l.n_couplings; ++step) {
    const int64_t c = call.coupling(step), moved = l.moved(c);
    S* v = coordinates + (c % 2 ? half * m : 0);
    const S* u = coordinates + (c % 2 ? 0 : half * m);
    for (int64_t net = 0; net < l.nets; ++net) {
      const S* x = u;
      S* y = h1;
      for (int64_t layer = 0; layer < l.n_hidden; ++layer) {
        layer_of_block(coupling_layer(l, call.weights, c, net, layer), x, y, m, true);
        __syncthreads();
        x = y, y = y == h1 ? h2 : h1;
      }
      layer_of_block(coupling_layer(l, call.weights, c, net, l.n_hidden), x,
                     outputs + net * moved * m, m, false);
      __syncthreads();
    }
    for (int64_t e = threadIdx.x; e < moved * m; e += blockDim.x)
      outputs[e] = couple(v[e], outputs[e], outputs[moved * m + e], call.scale, call.inverse);
    __syncthreads();
    if (threadIdx.x < m)
      for (int64_t k = 0; k < moved; ++k) total = total + outputs[k * m + threadIdx.x];
    __syncthreads();
  }
  if (threadIdx.x < m && first + threadIdx.x < call.n)
    call.log_det[first + threadIdx.x] = call.inverse ? -total : total;
  for (int64_t e = threadIdx.x; e < l.dim * m; e += blockDim.x) {
    const int64_t sample = e / l.dim, k = e % l.dim;
    if (first + sample < call.n)
      call.out[(first + sample) * l.dim + k] = coordinates[row_of(k) * m + sample];
  }
}

template <class S> void run_couplings(const Device& device, const CouplingCall<S>& call) {
  if (call.n == 0) return;
  DeviceGuard guard(device);
  const CouplingLayout& l = call.l;
  const auto stream = static_cast<cudaStream_t>(device.stream);
  // As many samples a block as leave room for two blocks on a multiprocessor, or at least for one.
  const int64_t rows = 2 * l.dim + 1 + 2 * l.hidden, limit = shared_limit(device);
  const auto bytes = [&](int m) { return rows * m * int64_t(sizeof(S)); };
  int m = 64;
  while (m > 16 && bytes(m) > limit / 2) m /= 2;
  while (m > kTile && bytes(m) > limit) m /= 2;
  check(bytes(m) <= limit, "hidden must leave room for 8 samples in shared memory, got hidden = " +
                               std::to_string(l.hidden) + " with dim = " + std::to_string(l.dim));
  auto* kernel = couplings_kernel<S>;
  if (bytes(m) > 48 * 1024)
    CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes(m))));
  PYSAMP_LAUNCH(kernel, unsigned((call.n + m - 1) / m), kCouplingThreads, size_t(bytes(m)), stream,
                call, m);
  after_launch(stream, "couplings");
}

#else  // CPU

template <int N> struct Count {
  static constexpr int value = N;
};

// Outputs by vectors of a register block: 24 of 32 registers with AVX-512, 12 of 16 without.
inline constexpr int kVectors = 3;
inline constexpr int kRows = kVectorBytes == 64 ? 8 : 4;

// f(i, v, Σ_k w[k·along + i·across] x[k·stride + v]) for ROWS rows i and V vectors v; across is 1 where
// NEXT says so. The compiler fuses the products (see CMakeLists).
template <class S, int ROWS, int V, bool NEXT, class F>
HD void product_block(const S* w, int64_t along, int64_t across, int64_t n, const Lanes<S>* x,
                      int64_t stride, F f) {
  Lanes<S> sum[ROWS][V] = {};
  for (int64_t k = 0; k < n; ++k, w += along, x += stride) {
    UNROLL16 for (int i = 0; i < ROWS; ++i) {
      UNROLL16 for (int v = 0; v < V; ++v) sum[i][v] = sum[i][v] + w[NEXT ? i : i * across] * x[v];
    }
  }
  UNROLL16 for (int i = 0; i < ROWS; ++i) {
    UNROLL16 for (int v = 0; v < V; ++v) f(i, v, sum[i][v]);
  }
}
// The same for any number of rows; f(row, v, sum).
template <class S, int V, bool NEXT, class F>
HD void product(int64_t rows, const S* w, int64_t along, int64_t across, int64_t n,
                const Lanes<S>* x, int64_t stride, F f) {
  int64_t row = 0;
  const auto block = [&](auto size) INLINE {
    constexpr int ROWS = decltype(size)::value;
    for (; row + ROWS <= rows; row += ROWS)
      product_block<S, ROWS, V, NEXT>(
          w + row * across, along, across, n, x, stride,
          [&](int i, int v, Lanes<S> sum) INLINE { f(row + i, v, sum); });
  };
  block(Count<kRows>());
  block(Count<2>());
  block(Count<1>());
}

// y (out) = W^T x (in) + b for the V vectors of a tile, rectified or not.
template <class S, int V>
HD void layer_of_tile(const LayerOf<S>& l, const Lanes<S>* x, Lanes<S>* y, bool rectify) {
  product<S, V, true>(l.out, l.weight, l.stride, 1, l.in, x, V,
                      [&](int64_t row, int v, Lanes<S> sum) INLINE {
                        const Lanes<S> value = sum + l.bias[row];
                        y[row * V + v] = rectify ? select(value < S(0), Lanes<S>{}, value) : value;
                      });
}

// V vectors of samples, first … of n: rows of memory as both sets of coordinates, and back. Samples from n
// on are zero.
template <class S, int V> struct TileOf {
  using R = Lanes<S>;
  static constexpr int kSamples = V * kLanes<S>;
  const CouplingLayout& l;
  int64_t first;
  int count;

  TileOf(const CouplingLayout& layout, int64_t first_sample, int64_t n)
      : l(layout), first(first_sample),
        count(n - first_sample < kSamples ? int(n - first_sample) : kSamples) {}
  R* set(R* memory, int64_t which) const { return memory + (which ? l.moved(0) * V : 0); }
  void load(const S* in, R* memory) const {
    for (int64_t which = 0; which < 2; ++which)
      for (int64_t k = 0; k < l.moved(which); ++k) {
        S* row = reinterpret_cast<S*>(set(memory, which) + k * V);
        const S* from = in + first * l.dim + l.at(which, k);
        for (int j = 0; j < kSamples; ++j) row[j] = j < count ? from[j * l.dim] : S(0);
      }
  }
  void store(const R* memory, S* out) const {
    for (int64_t which = 0; which < 2; ++which)
      for (int64_t k = 0; k < l.moved(which); ++k) {
        const S* row = reinterpret_cast<const S*>(memory + ((which ? l.moved(0) : 0) + k) * V);
        S* to = out + first * l.dim + l.at(which, k);
        for (int j = 0; j < count; ++j) to[j * l.dim] = row[j];
      }
  }
};

// The raw outputs of one coupling for its V vectors u: S, then T, (moved) each. `hidden` holds the hidden
// layers of all networks one behind the other, which the gradient needs.
template <class S, int V>
void conditioner_of_tile(const CouplingLayout& l, const S* weights, int64_t c, const Lanes<S>* u,
                         Lanes<S>* hidden, Lanes<S>* outputs) {
  for (int64_t net = 0; net < l.nets; ++net) {
    const Lanes<S>* x = u;
    for (int64_t layer = 0; layer < l.n_hidden; ++layer, hidden += l.hidden * V) {
      layer_of_tile<S, V>(coupling_layer(l, weights, c, net, layer), x, hidden, true);
      x = hidden;
    }
    layer_of_tile<S, V>(coupling_layer(l, weights, c, net, l.n_hidden), x,
                        outputs + net * l.moved(c) * V, false);
  }
}

// f(tile, memory of a thread) for all tiles of samples; `rows` vectors a tile for each of its V.
template <class S, class F> void for_tiles(int64_t n, int64_t work, int64_t rows, F f) {
  using R = Lanes<S>;
  constexpr int W = kLanes<S>, M = kVectors * W;
  const int64_t tiles = (n + M - 1) / M;
  int threads = 1;
#ifdef _OPENMP
  if (n * work > 50 * kGrain)
    threads = int(tiles < omp_get_max_threads() ? tiles : omp_get_max_threads());
#endif
  const size_t bytes = (size_t(rows) * kVectors * sizeof(R) + 4095) / 4096 * 4096;
  void* memory = __builtin_malloc(bytes * size_t(threads) + kVectorBytes);
  if (!memory) throw std::bad_alloc();
  const uintptr_t aligned =
      (reinterpret_cast<uintptr_t>(memory) + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t tile = 0; tile < tiles; ++tile) {
    int me = 0;
#ifdef _OPENMP
    me = omp_get_thread_num();
#endif
    R* mine = reinterpret_cast<R*>(aligned + size_t(me) * bytes);
    const int64_t first = tile * M, vectors = (n - first + W - 1) / W;
    if (vectors >= 3)
      f(Count<3>(), first, me, mine);
    else if (vectors == 2)
      f(Count<2>(), first, me, mine);
    else
      f(Count<1>(), first, me, mine);
  }
  __builtin_free(memory);
}

template <class S, int V>
void couplings_of_tile(const CouplingCall<S>& call, int64_t first, Lanes<S>* memory) {
  const CouplingLayout& l = call.l;
  const TileOf<S, V> tile(l, first, call.n);
  Lanes<S>* hidden = memory + l.dim * V;
  Lanes<S>* outputs = hidden + call.hidden_rows() * V;
  tile.load(call.in, memory);
  Lanes<S> total[V] = {};
  for (int64_t step = 0; step < l.n_couplings; ++step) {
    const int64_t c = call.coupling(step), moved = l.moved(c);
    conditioner_of_tile<S, V>(l, call.weights, c, tile.set(memory, 1 - c % 2), hidden, outputs);
    Lanes<S>* values = tile.set(memory, c % 2);
    for (int64_t k = 0; k < moved; ++k)
      UNROLL for (int v = 0; v < V; ++v) total[v] =
          total[v] + couple(values[k * V + v], outputs[k * V + v], outputs[(moved + k) * V + v],
                            call.scale, call.inverse);
  }
  tile.store(memory, call.out);
  const S* sums = reinterpret_cast<const S*>(total);
  for (int j = 0; j < tile.count; ++j) call.log_det[first + j] = call.inverse ? -sums[j] : sums[j];
}

template <class S> void run_couplings(const Device&, const CouplingCall<S>& call) {
  const int64_t rows = 2 * call.l.dim + 2 + call.hidden_rows();
  for_tiles<S>(call.n, call.l.total(), rows, [&](auto size, int64_t first, int, Lanes<S>* mine) {
    couplings_of_tile<S, decltype(size)::value>(call, first, mine);
  });
}

#endif

}  // namespace PYSAMP_NS
