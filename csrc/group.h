// A *group* is the workers that share one step of a Markov chain; a driver is written once against it:
//   CPU   LaneGroup   kLanes chains sit in the SIMD lanes of one thread; R is a vector, loops run over
//                     the elements of the event.
//   CUDA  ThreadGroup `G` threads hold one chain in shared memory; R is a number, loops are strided.
// Both offer each, sum, load, store and random numbers with the same meaning and the same bits.
//
// sum32, the order of every reduction that decides something: accumulator l of 32 adds the elements
// l, l+32, l+64 … in turn, then a butterfly over 16, 8, 4, 2, 1; longer sums go in chunks of 4096 whose
// sums are added by the same rule.
#pragma once
#include "philox.h"

namespace PYSAMP_NS {

inline constexpr int64_t kChunk = 4096;

// The last steps of sum32: a butterfly over m ≤ 32 accumulators, and a sum over chunks.
template <class R> HD R butterfly(R* part, int m) {
  if (m == 0) return R{};
  int half = 16;
  while (half >= m && half > 1) half /= 2;
  for (; half > 0; half /= 2) {
    for (int l = 0; l + half < m; ++l) part[l] = part[l] + part[l + half];
    m = m < half ? m : half;
  }
  return part[0];
}
template <class R, class G, class F> HD R sum_chunks(const G& g, int64_t n, F f) {
  if (n <= kChunk) return g.sum_chunk(0, n, f);
  R part[32];
  int64_t k = 0;
  for (int64_t begin = 0; begin < n; begin += kChunk, ++k) {
    const R chunk = g.sum_chunk(begin, begin + kChunk < n ? begin + kChunk : n, f);
    part[k % 32] = k < 32 ? chunk : part[k % 32] + chunk;
  }
  return butterfly(part, k < 32 ? int(k) : 32);
}

#ifdef __CUDACC__

// G threads of a block that hold one chain. G ≤ 32 lies within a warp and may sum; larger groups are
// whole blocks, for single-site moves.
template <class S, int G> struct ThreadGroup {
  using Real = S;
  static constexpr int kSize = Block<S>::kSize;
  int64_t row, n_rows;
  uint32_t first_chain;
  bool valid;  // false for the padding groups of the last block, which compute but do not store

  __device__ int lane() const { return threadIdx.x % G; }
  __device__ uint32_t chain() const { return first_chain + uint32_t(row); }
  __device__ void sync() const {
    if (G <= 32)
      __syncwarp();
    else
      __syncthreads();
  }
  template <class F> __device__ void each(int64_t n, F f) const {
    for (int64_t i = lane(); i < n; i += G) f(i);
    sync();
  }
  template <class F> __device__ S sum_chunk(int64_t begin, int64_t end, F f) const {
    S total = S(0);
    for (int64_t i = begin + lane(); i < end; i += G) total = total + f(i);
    UNROLL
    for (int half = G / 2; half > 0; half /= 2)
      total = total + __shfl_xor_sync(0xffffffffu, total, half, G);
    return total;
  }
  template <class F> __device__ S sum(int64_t n, F f) const {
    static_assert(G <= 32, "sums are defined within a warp");
    if (n <= kChunk) {
      const S total = sum_chunk(0, n, f);
      sync();
      return total;
    }
    S mine = S(0);  // accumulator of chunk sums: lane l adds chunks l, l+32, …
    int64_t k = 0;
    for (int64_t begin = 0; begin < n; begin += kChunk, ++k) {
      const S part = sum_chunk(begin, begin + kChunk < n ? begin + kChunk : n, f);
      if (k % 32 == lane()) mine = mine + part;
    }
    UNROLL
    for (int half = G / 2; half > 0; half /= 2)
      mine = mine + __shfl_xor_sync(0xffffffffu, mine, half, G);
    sync();
    return mine;
  }
  template <class F> __device__ S sum_any(int64_t n, F f) const { return sum(n, f); }
  // K sums at once in the order of sum32: f(i, sums) adds the terms of i. Warps take chunks in turn.
  template <int K, class F> __device__ void sums(int64_t n, S (&out)[K], F f) const {
    constexpr int width = G < 32 ? G : 32, warps = G / width, mine = 32 / warps;
    static_assert(G == 32 || G == 256, "chunks go over whole warps");
    static __shared__ S parts[K][32];
    const int warp = lane() / width, l = lane() % width;
    const int64_t chunks = (n + kChunk - 1) / kChunk;
    S held[K][mine];  // chunk sums k ≡ warp + warps·m, in turn
    for (int k = 0; k < K; ++k)
      for (int m = 0; m < mine; ++m) held[k][m] = S(0);
    for (int64_t chunk = warp; chunk < chunks; chunk += warps) {
      S sum[K];
      for (int k = 0; k < K; ++k) sum[k] = S(0);
      const int64_t end = (chunk + 1) * kChunk < n ? (chunk + 1) * kChunk : n;
      for (int64_t i = chunk * kChunk + l; i < end; i += width) f(i, sum);
      for (int k = 0; k < K; ++k) {
        UNROLL
        for (int half = width / 2; half > 0; half /= 2)
          sum[k] = sum[k] + __shfl_xor_sync(0xffffffffu, sum[k], half, width);
        held[k][chunk / warps % mine] = held[k][chunk / warps % mine] + sum[k];
      }
    }
    if constexpr (warps == 1) {
      for (int k = 0; k < K; ++k) out[k] = butterfly(held[k], chunks < 32 ? int(chunks) : 32);
    } else {
      for (int k = 0; k < K; ++k)
        for (int m = 0; m < mine; ++m)
          if (l == 0) parts[k][warp + warps * m] = held[k][m];
      __syncthreads();
      for (int k = 0; k < K; ++k) {
        S part[32];
        for (int m = 0; m < 32; ++m) part[m] = parts[k][m];
        out[k] = butterfly(part, chunks < 32 ? int(chunks) : 32);
      }
    }
    sync();
  }
  __device__ S over_group(S value) const {  // where no decision hangs on the order
    constexpr int width = G < 32 ? G : 32;
    UNROLL
    for (int half = width / 2; half > 0; half /= 2)
      value = value + __shfl_xor_sync(0xffffffffu, value, half, width);
    if constexpr (G <= 32) return value;
    static __shared__ S parts[G / 32 > 0 ? G / 32 : 1];
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    S total = parts[0];
    for (int w = 1; w < G / 32; ++w) total = total + parts[w];
    __syncthreads();
    return total;
  }
  __device__ S total(S count) const {  // small whole numbers over the group: exact in any order
    if constexpr (G <= 32) {
      UNROLL
      for (int half = G / 2; half > 0; half /= 2)
        count += __shfl_xor_sync(0xffffffffu, count, half, G);
      return count;
    } else {
      static __shared__ S sum;
      if (threadIdx.x == 0) sum = S(0);
      __syncthreads();
      atomicAdd(&sum, count);
      __syncthreads();
      const S out = sum;
      __syncthreads();
      return out;
    }
  }
  __device__ S load(const S* p) const { return p[row]; }
  __device__ void store(S* p, S v) const {
    if (valid && lane() == 0) p[row] = v;
  }
  __device__ void store(S* p, int64_t index, int64_t per_row, S v) const {
    if (valid && lane() == 0) p[row * per_row + index] = v;
  }
  __device__ void load(const S* p, int64_t n, S* out) const {
    each(n, [&](int64_t i) INLINE { out[i] = p[row * n + i]; });
  }
  __device__ void store(S* p, int64_t index, int64_t per_row, int64_t n, const S* v) const {
    S* out = p + (row * per_row + index) * n;
    for (int64_t i = lane(); i < n && valid; i += G) out[i] = v[i];
    sync();  // nobody changes v before all have stored
  }
  __device__ Block<S> block(const Key& key, uint32_t index, uint32_t step, uint32_t stream) const {
    return make_block(philox(key, index, chain(), step, stream), S());
  }
};

#else  // CPU

// kLanes<S> chains in the lanes of one thread. Rows past the end repeat the last one and are not
// stored.
template <class S> struct LaneGroup {
  using Real = Lanes<S>;
  static constexpr int W = kLanes<S>;
  static constexpr int kSize = Block<S>::kSize;
  int64_t row, n_rows;
  U64 chain_even{}, chain_odd{};  // float64 has half as many lanes and uses chain_even alone

  LaneGroup(int64_t row, int64_t n_rows, uint32_t first_chain) : row(row), n_rows(n_rows) {
    for (int l = 0; l < W; ++l) {
      const uint32_t chain = first_chain + uint32_t(source(l));
      if constexpr (sizeof(S) == 8)
        chain_even[l] = chain, chain_odd[l] = chain;
      else if (l % 2)
        chain_odd[l / 2] = chain;
      else
        chain_even[l / 2] = chain;
    }
  }
  int64_t source(int lane) const { return row + lane < n_rows ? row + lane : n_rows - 1; }
  int lanes() const { return n_rows - row < W ? int(n_rows - row) : W; }
  void sync() const {}

  template <class F> HD void each(int64_t n, F f) const {
    for (int64_t i = 0; i < n; ++i) f(i);
  }
  template <class F> HD Real sum_chunk(int64_t begin, int64_t end, F f) const {
    Real part[32];
    const int m = end - begin < 32 ? int(end - begin) : 32;
    for (int l = 0; l < m; ++l) {
      Real total = f(begin + l);
      for (int64_t i = begin + l + 32; i < end; i += 32) total = total + f(i);
      part[l] = total;
    }
    return butterfly(part, m);
  }
  template <class F> HD Real sum(int64_t n, F f) const { return sum_chunks<Real>(*this, n, f); }
  template <class F> HD Real sum_any(int64_t n,
                                     F f) const {  // where no decision hangs on the order
    Real total = f(0);
    int64_t i = 1;
    if (n >= 8) {  // four sums at once hide the latency of the additions
      Real a = f(1), b = f(2), c = f(3);
      for (i = 4; i + 4 <= n; i += 4) {
        total = total + f(i);
        a = a + f(i + 1);
        b = b + f(i + 2);
        c = c + f(i + 3);
      }
      total = (total + a) + (b + c);
    }
    for (; i < n; ++i) total = total + f(i);
    return total;
  }
  // K sums at once in the order of sum32: f(i, sums) adds the terms of i.
  template <int K, class F> HD void sums(int64_t n, Real (&out)[K], F f) const {
    Real chunks[K][32], part[32][K];
    int64_t c = 0;
    for (int64_t begin = 0; begin < n; begin += kChunk, ++c) {
      const int64_t end = begin + kChunk < n ? begin + kChunk : n;
      for (int l = 0; l < 32; ++l)
        for (int k = 0; k < K; ++k) part[l][k] = Real{};
      for (int64_t i = begin; i < end; ++i) f(i, part[(i - begin) % 32]);
      const int m = end - begin < 32 ? int(end - begin) : 32;
      for (int k = 0; k < K; ++k) {
        Real column[32];
        for (int l = 0; l < m; ++l) column[l] = part[l][k];
        const Real sum = butterfly(column, m);
        chunks[k][c % 32] = c < 32 ? sum : chunks[k][c % 32] + sum;
      }
    }
    for (int k = 0; k < K; ++k) out[k] = butterfly(chunks[k], c < 32 ? int(c) : 32);
  }
  Real total(Real count) const { return count; }

  Real load(const S* p) const {
    Real v;
    for (int l = 0; l < W; ++l) v[l] = p[source(l)];
    return v;
  }
  void store(S* p, Real v) const {
    for (int l = 0; l < lanes(); ++l) p[row + l] = v[l];
  }
  void store(S* p, int64_t index, int64_t per_row, Real v) const {
    for (int l = 0; l < lanes(); ++l) p[(row + l) * per_row + index] = v[l];
  }
  // (rows, n) in memory ↔ [n][lane] here: squares in registers, the ragged end number by number.
  void load(const S* p, int64_t n, Real* out) const {
    int64_t i = 0;
    for (; i + W <= n; i += W) {
      Real square[W];
      for (int l = 0; l < W; ++l) square[l] = load_lanes(p + source(l) * n + i);
      transpose<S>(square);
      for (int j = 0; j < W; ++j) out[i + j] = square[j];
    }
    S* to = reinterpret_cast<S*>(out);
    for (int l = 0; l < W; ++l)
      for (int64_t j = i; j < n; ++j) to[j * W + l] = p[source(l) * n + j];
  }
  void store(S* p, int64_t index, int64_t per_row, int64_t n, const Real* v) const {
    const int active = lanes();
    int64_t i = 0;
    for (; i + W <= n; i += W) {
      Real square[W];
      for (int j = 0; j < W; ++j) square[j] = v[i + j];
      transpose<S>(square);
      for (int l = 0; l < active; ++l)
        store_lanes(p + ((row + l) * per_row + index) * n + i, square[l]);
    }
    const S* from = reinterpret_cast<const S*>(v);
    for (int l = 0; l < active; ++l)
      for (int64_t j = i; j < n; ++j) p[((row + l) * per_row + index) * n + j] = from[j * W + l];
  }
  HD Block<Real> block(const Key& key, uint32_t index, uint32_t step, uint32_t stream) const {
    const HalfWords even = philox_chains(key, index, chain_even, step, stream);
    if constexpr (sizeof(S) == 8)
      return make_block(even);
    else
      return make_block(even, philox_chains(key, index, chain_odd, step, stream));
  }
};

// One chain in one thread, its elements in the lanes where the compiler finds it: for few chains of large
// events. R is a number; loops have no order that anything hangs on, but for the sums.
template <class S> struct SerialGroup {
  using Real = S;
  static constexpr int kSize = Block<S>::kSize;
  int64_t row;
  uint32_t number;

  uint32_t chain() const { return number; }
  void sync() const {}
  template <class F> HD void each(int64_t n, F f) const {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) f(i);
  }
  template <class F> HD S sum_chunk(int64_t begin, int64_t end, F f) const {
    S part[32];
    const int m = end - begin < 32 ? int(end - begin) : 32;
#pragma GCC ivdep
    for (int l = 0; l < m; ++l) part[l] = f(begin + l);
    int64_t i = begin + 32;
    for (; i + 32 <= end; i += 32) {
#pragma GCC ivdep
      for (int l = 0; l < 32; ++l) part[l] = part[l] + f(i + l);
    }
    for (int l = 0; i + l < end; ++l) part[l] = part[l] + f(i + l);
    return butterfly(part, m);
  }
  template <class F> HD S sum(int64_t n, F f) const { return sum_chunks<S>(*this, n, f); }
  template <class F> HD S sum_any(int64_t n, F f) const { return sum(n, f); }
  S total(S count) const { return count; }
  S load(const S* p) const { return p[row]; }
  void store(S* p, S v) const { p[row] = v; }
  void store(S* p, int64_t index, int64_t per_row, S v) const { p[row * per_row + index] = v; }
  void load(const S* p, int64_t n, S* out) const {
    for (int64_t i = 0; i < n; ++i) out[i] = p[row * n + i];
  }
  void store(S* p, int64_t index, int64_t per_row, int64_t n, const S* v) const {
    for (int64_t i = 0; i < n; ++i) p[(row * per_row + index) * n + i] = v[i];
  }
};

#endif

// Fill z[0…n) with uniforms or normals of one transition, one number an element, and return the
// acceptance threshold ln u, the next number of the same stream. z has room for padded(n) numbers.
HD int64_t padded(int64_t n) { return (n + 3) / 4 * 4 + 4; }

#ifndef __CUDACC__
// Blocks first, first + 1, … of one chain in the lanes: cells of four numbers in float32, two in float64.
template <class S>
HD Block<Lanes<S>> blocks_in_lanes(const Key& key, uint32_t chain, uint64_t first, int stride,
                                   uint32_t step, uint32_t stream) {
  constexpr int W = kLanes<S>, halves = W / (sizeof(S) == 4 ? 2 : 1);
  U64 even, odd;
  UNROLL16 for (int l = 0; l < halves; ++l) {
    even[l] = uint64_t((sizeof(S) == 4 ? 2 * l : l) * stride);
    odd[l] = uint64_t((2 * l + 1) * stride);
  }
  const U64 from = broadcast(first);
  const HalfWords low = philox_blocks(key, from + even, chain, step, stream);
  if constexpr (sizeof(S) == 8)
    return make_block(low);
  else
    return make_block(low, philox_blocks(key, from + odd, chain, step, stream));
}

// draw() for a chain in one thread: whole blocks in the lanes, back to the order of numbers by a store.
template <bool gaussian, class S>
HD S draw(const SerialGroup<S>& g, const Key& key, uint32_t step, uint32_t stream, int64_t n,
          S* z) {
  constexpr int K = Block<S>::kSize, W = kLanes<S>;
  const int64_t next = gaussian ? (n + 1) / 2 * 2 : n;
  const int64_t blocks = (n + K - 1) / K, last = next / K;
  S threshold{};
  for (int64_t b = 0; b < blocks || b <= last; b += W) {
    const auto lanes = blocks_in_lanes<S>(key, g.chain(), uint64_t(b), 1, step, stream);
    Lanes<S> v[K];
    if (gaussian)
      lanes.normals(v);
    else
      lanes.uniforms(v);
    const int64_t count = blocks - b < W ? blocks - b : W;
    for (int64_t l = 0; l < count; ++l)
      for (int j = 0; j < K; ++j) z[(b + l) * K + j] = v[j][l];
    if (last >= b && last < b + W) {
      const Lanes<S> thresholds = next % K == 0   ? lanes.log_uniform_at(0)
                                  : next % K == 1 ? lanes.log_uniform_at(1)
                                  : next % K == 2 ? lanes.log_uniform_at(K - 2)
                                                  : lanes.log_uniform_at(K - 1);
      threshold = thresholds[last - b];
    }
  }
  return threshold;
}
#endif

template <bool gaussian, class G>
HD typename G::Real draw(const G& g, const Key& key, uint32_t step, uint32_t stream, int64_t n,
                         typename G::Real* z) {
  using R = typename G::Real;
  constexpr int K = G::kSize;
  const int64_t next = gaussian ? (n + 1) / 2 * 2 : n;  // Box–Muller numbers come in pairs
  const int64_t blocks = (n + K - 1) / K, last = next / K;
  R* threshold = z + (padded(n) - 1);
  g.each(last < blocks ? blocks : last + 1, [&](int64_t b) INLINE {
    const Block<R> block = g.block(key, uint32_t(b), step, stream);
    R v[K];
    if (b < blocks) {
      if (gaussian)
        block.normals(v);
      else
        block.uniforms(v);
      for (int j = 0; j < K; ++j) z[b * K + j] = v[j];
    }
    if (b == last) *threshold = block.log_uniform_at(int(next % K));
  });
  return *threshold;
}

}  // namespace PYSAMP_NS
