// n rounds of fused multiply-adds on accumulators that stay in registers: what a core can do at most.
// As many accumulators as fill its two units for the five or so cycles that one takes, and no spills.
#if defined(__AVX512F__)
constexpr int kBytes = 64, kSums = 24;
#elif defined(__FMA__)
constexpr int kBytes = 32, kSums = 12;
#else
constexpr int kBytes = 16, kSums = 12;
#endif
typedef float V __attribute__((vector_size(kBytes)));

extern "C" int flops_of_a_round() { return 2 * kSums * kBytes / int(sizeof(float)); }

extern "C" float multiply_adds(long n, float x, float y) {
  const V a = V{} + x, b = V{} + y;
  V sum[kSums];
  for (int k = 0; k < kSums; ++k) sum[k] = V{} + float(k);
  for (long i = 0; i < n; ++i) {
#pragma GCC unroll 32
    for (int k = 0; k < kSums; ++k) sum[k] = sum[k] * a + b;
  }
  float total = 0;
  for (int k = 0; k < kSums; ++k)
    for (unsigned j = 0; j < sizeof(V) / sizeof(float); ++j) total += sum[k][j];
  return total;
}
