// Tables of random words, uniforms, normals and ln u, and the row sum of fixed order.
#include "ops.h"

namespace PYSAMP_NS {
namespace {

struct Counter {
  Key key;
  uint32_t step, stream, first_chain;
  explicit Counter(const Address& at)
      : key(make_key(at.seed)), step(uint32_t(at.step)), stream(uint32_t(at.stream)),
        first_chain(uint32_t(at.first_chain)) {}
};

// The words of a float32 block as they are, in the clothes of floats: they are only moved.
template <class R> HD void words(const Block<R, float>& block, R* v) {
  v[0] = from_bits((Int<R>)block.w0), v[1] = from_bits((Int<R>)block.w1);
  v[2] = from_bits((Int<R>)block.w2), v[3] = from_bits((Int<R>)block.w3);
}

template <Numbers kind, class R, class S> HD void numbers(const Block<R, S>& block, R* v) {
  if constexpr (kind == Numbers::kBits) words(block, v);
  if constexpr (kind == Numbers::kUniform) block.uniforms(v);
  if constexpr (kind == Numbers::kNormal) block.normals(v);
  if constexpr (kind == Numbers::kLogUniform) block.log_uniforms(v);
}

// One block of one row; out is (rows, n), number i of a row is number first + i of the stream.
template <class S, Numbers kind> struct FillBlock {
  Counter at;
  S* out;
  int64_t n, first, first_block, blocks;
  HD void operator()(int64_t q) const {
    constexpr int K = Block<S>::kSize;
    const int64_t row = q / blocks, b = first_block + q % blocks;
    const auto words =
        philox(at.key, uint32_t(b), at.first_chain + uint32_t(row), at.step, at.stream);
    S v[K];
    numbers<kind>(make_block(words, S()), v);
    for (int j = 0; j < K; ++j) {
      const int64_t i = b * K + j - first;
      if (i >= 0 && i < n) out[row * n + i] = v[j];
    }
  }
};

#ifndef __CUDACC__
// Lanes over the blocks of a row. Lane K q + r of a vector takes block (W/K) r + q, so that the
// transposition to memory order stays within 128-bit lanes: unpack instructions alone.
HD Block<F32> blocks_of_row(const Counter& at, uint64_t b, uint32_t chain, float) {
  U64 even = broadcast(b), odd = broadcast(b);
  constexpr int W = kLanes<float>;
  for (int l = 0; l < W / 2; ++l) {  // constants after unrolling
    even[l] += uint64_t((W / 4) * ((2 * l) % 4) + (2 * l) / 4);
    odd[l] += uint64_t((W / 4) * ((2 * l + 1) % 4) + (2 * l + 1) / 4);
  }
  const U64 c1 = broadcast(chain), c2 = broadcast(at.step), c3 = broadcast(at.stream);
  return make_block(philox(at.key, even, c1, c2, c3), philox(at.key, odd, c1, c2, c3));
}
HD Block<F64> blocks_of_row(const Counter& at, uint64_t b, uint32_t chain, double) {
  U64 index = broadcast(b);
  constexpr int W = kLanes<double>;
  for (int l = 0; l < W; ++l) index[l] += uint64_t((W / 2) * (l % 2) + l / 2);
  return make_block(
      philox(at.key, index, broadcast(chain), broadcast(at.step), broadcast(at.stream)));
}

HD void store_blocks(float* to, const F32* v) {
  constexpr int W = kLanes<float>;
#if defined(__AVX512F__)
  const __m512 a = _mm512_unpacklo_ps((__m512)v[0], (__m512)v[1]),
               b = _mm512_unpackhi_ps((__m512)v[0], (__m512)v[1]),
               c = _mm512_unpacklo_ps((__m512)v[2], (__m512)v[3]),
               d = _mm512_unpackhi_ps((__m512)v[2], (__m512)v[3]);
  const auto low = [](__m512 x, __m512 y) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  const auto high = [](__m512 x, __m512 y) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  _mm512_storeu_ps(to, low(a, c));
  _mm512_storeu_ps(to + W, high(a, c));
  _mm512_storeu_ps(to + 2 * W, low(b, d));
  _mm512_storeu_ps(to + 3 * W, high(b, d));
#elif defined(__AVX2__)
  const __m256 a = _mm256_unpacklo_ps((__m256)v[0], (__m256)v[1]),
               b = _mm256_unpackhi_ps((__m256)v[0], (__m256)v[1]),
               c = _mm256_unpacklo_ps((__m256)v[2], (__m256)v[3]),
               d = _mm256_unpackhi_ps((__m256)v[2], (__m256)v[3]);
  _mm256_storeu_ps(to, _mm256_shuffle_ps(a, c, 0x44));
  _mm256_storeu_ps(to + W, _mm256_shuffle_ps(a, c, 0xee));
  _mm256_storeu_ps(to + 2 * W, _mm256_shuffle_ps(b, d, 0x44));
  _mm256_storeu_ps(to + 3 * W, _mm256_shuffle_ps(b, d, 0xee));
#else
  for (int l = 0; l < W; ++l)
    for (int j = 0; j < 4; ++j) to[((W / 4) * (l % 4) + l / 4) * 4 + j] = v[j][l];
#endif
}
HD void store_blocks(double* to, const F64* v) {
  constexpr int W = kLanes<double>;
#if defined(__AVX512F__)
  _mm512_storeu_pd(to, _mm512_unpacklo_pd((__m512d)v[0], (__m512d)v[1]));
  _mm512_storeu_pd(to + W, _mm512_unpackhi_pd((__m512d)v[0], (__m512d)v[1]));
#elif defined(__AVX2__)
  _mm256_storeu_pd(to, _mm256_unpacklo_pd((__m256d)v[0], (__m256d)v[1]));
  _mm256_storeu_pd(to + W, _mm256_unpackhi_pd((__m256d)v[0], (__m256d)v[1]));
#else
  for (int l = 0; l < W; ++l)
    for (int j = 0; j < 2; ++j) to[((W / 2) * (l % 2) + l / 2) * 2 + j] = v[j][l];
#endif
}

// Part of a row: numbers of W blocks at a time, the ragged ends through a buffer.
template <class S, Numbers kind>
void fill_part(const Counter& at, S* out, int64_t row, int64_t first, int64_t begin, int64_t end) {
  constexpr int K = Block<S>::kSize, W = kLanes<S>;
  const int64_t last_block = (first + end + K - 1) / K;
  for (int64_t b = (first + begin) / K; b < last_block; b += W) {
    Lanes<S> v[K];
    numbers<kind>(blocks_of_row(at, uint64_t(b), at.first_chain + uint32_t(row), S()), v);
    const int64_t i = b * K - first;
    if (i >= begin && i + W * K <= end) {
      store_blocks(out + i, v);
    } else {
      S buffer[W * K];
      store_blocks(buffer, v);
      for (int64_t j = i < begin ? begin - i : 0; j < W * K && i + j < end; ++j)
        out[i + j] = buffer[j];
    }
  }
}

// Lanes over rows, for rows too short to fill a vector of blocks.
template <class S, Numbers kind> struct FillRows {
  Counter at;
  S* out;
  int64_t n, first;
  void operator()(const LaneGroup<S>& g, Lanes<S>*) const {
    constexpr int K = Block<S>::kSize;
    for (int64_t b = first / K; b * K < first + n; ++b) {
      Lanes<S> v[K];
      numbers<kind>(g.block(at.key, uint32_t(b), at.step, at.stream), v);
      for (int j = 0; j < K; ++j) {
        const int64_t i = b * K + j - first;
        if (i < 0 || i >= n) continue;
        for (int l = 0; l < g.lanes(); ++l) out[(g.row + l) * n + i] = v[j][l];
      }
    }
  }
};
#endif

template <class S, Numbers kind> void fill(View<S, 2> out, const Address& a) {
  const int64_t rows = out.size[0], n = out.size[1];
  if (rows == 0 || n == 0) return;
  const Counter at(a);
  constexpr int K = Block<S>::kSize;
  const int64_t first_block = a.first / K, blocks = (a.first + n + K - 1) / K - first_block;
#ifdef __CUDACC__
  for_each(out.device, rows * blocks,
           FillBlock<S, kind>{at, out.data, n, a.first, first_block, blocks});
#else
  if (blocks < kLanes<S>) {
    run_chains<S, Groups::few>(out.device, rows, a.first_chain, n, 1, 4,
                               FillRows<S, kind>{at, out.data, n, a.first});
    return;
  }
  const int64_t piece = 4096, pieces = (n + piece - 1) / piece;
  for_each(
      out.device, rows * pieces,
      [=](int64_t q) {
        const int64_t row = q / pieces, begin = q % pieces * piece;
        fill_part<S, kind>(at, out.data + row * n, row, a.first, begin,
                           begin + piece < n ? begin + piece : n);
      },
      n < piece ? n : piece);
#endif
}

#ifdef __CUDACC__
template <class S> struct SumRow {
  const S* x;
  S* out;
  int64_t m;
  __device__ void operator()(const ThreadGroup<S, 32>& g, S*) const {
    const S* row = x + g.row * m;
    g.store(out, g.sum(m, [&](int64_t j) { return row[j]; }));
  }
};
#else
template <class S> S sum_chunk(const S* x, int64_t m) {
  constexpr int W = kLanes<S>;
  Lanes<S> total[32 / W] = {};
  int64_t j = 0;
  for (; j + 32 <= m; j += 32)
    UNROLL for (int k = 0; k < 32 / W; ++k) total[k] = total[k] + load_lanes(x + j + k * W);
  S part[32];
  std::memcpy(part, total, sizeof(part));
  for (int l = 0; j + l < m; ++l) part[l] += x[j + l];
  for (int half = 16; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) part[l] += part[l + half];
  return part[0];
}
#endif

}  // namespace

void random_bits(View<int32_t, 2> out, const Address& at) {
  View<float, 2> words;
  words.data = reinterpret_cast<float*>(out.data);
  words.size[0] = out.size[0], words.size[1] = out.size[1];
  words.device = out.device;
  fill<float, Numbers::kBits>(words, at);
}

template <class S> void random_numbers(View<S, 2> out, const Address& at, Numbers kind) {
  if (kind == Numbers::kUniform) fill<S, Numbers::kUniform>(out, at);
  if (kind == Numbers::kNormal) fill<S, Numbers::kNormal>(out, at);
  if (kind == Numbers::kLogUniform) fill<S, Numbers::kLogUniform>(out, at);
}
template void random_numbers(View<float, 2>, const Address&, Numbers);
template void random_numbers(View<double, 2>, const Address&, Numbers);

template <class S> void sum_rows(View<S, 2> x, View<S, 1> out) {
  const int64_t rows = x.size[0], m = x.size[1];
  check(out.size[0] == rows, "out: one number a row");
  if (rows == 0) return;
#ifdef __CUDACC__
  DeviceGuard guard(x.device);
  launch_chains<S, 32>(x.device, rows, 0, 4, SumRow<S>{x.data, out.data, m});
#else
  for_each(
      x.device, rows,
      [=](int64_t i) {
        const S* row = x.data + i * m;
        if (m <= kChunk) {
          out.data[i] = sum_chunk(row, m);
          return;
        }
        S part[32] = {};
        int64_t k = 0;
        for (int64_t begin = 0; begin < m; begin += kChunk, ++k)
          part[k % 32] += sum_chunk(row + begin, begin + kChunk < m ? kChunk : m - begin);
        for (int half = 16; half > 0; half /= 2)
          for (int l = 0; l < half; ++l) part[l] += part[l + half];
        out.data[i] = part[0];
      },
      m);
#endif
}
template void sum_rows(View<float, 2>, View<float, 1>);
template void sum_rows(View<double, 2>, View<double, 1>);

}  // namespace PYSAMP_NS
