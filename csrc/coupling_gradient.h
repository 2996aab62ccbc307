// The gradient of a stack of affine couplings, on the CPU: from the images and the gradients of images and of
// ln det to those of the points and of the weights. Couplings are inverted one by one, so that nothing has to
// be kept of the way there; a tile of samples again goes through all of them before the next one.
//
// Cost: three matrix products where the image takes one, and one more for the weights' gradient, whose
// products run over samples: lanes are outputs then, which takes a transposition of the gradients.
#pragma once
#include "coupling.h"

#ifndef __CUDACC__

namespace PYSAMP_NS {

template <class S> struct CouplingGradient {
  CouplingCall<S> call;  // `in` are the images, `out` the gradient of the points; no ln det
  const S *grad_out, *grad_log_det;
  S* grad_weights;  // null where it is not asked for

  // Sums of a thread: matrices (in, out) with rows of whole vectors, then a vector for each bias.
  static int64_t padded(int64_t out) { return (out + kLanes<S> - 1) / kLanes<S> * kLanes<S>; }
  static int64_t numbers(int64_t in, int64_t out) { return in * padded(out) + out * kLanes<S>; }
  int64_t of_net(int64_t c) const {
    const CouplingLayout& l = call.l;
    return numbers(l.dim - l.moved(c), l.hidden) + (l.n_hidden - 1) * numbers(l.hidden, l.hidden) +
           numbers(l.hidden, l.outputs(c));
  }
  int64_t offset(int64_t c, int64_t net, int64_t layer) const {
    const CouplingLayout& l = call.l;
    int64_t at = (c + 1) / 2 * l.nets * of_net(0) + c / 2 * l.nets * of_net(1) + net * of_net(c);
    if (layer > 0)
      at += numbers(l.dim - l.moved(c), l.hidden) + (layer - 1) * numbers(l.hidden, l.hidden);
    return at;
  }
  int64_t total() const { return offset(call.l.n_couplings, 0, 0); }
};

// One coordinate backwards: v becomes what it was, g the gradient with respect to it; the raw outputs of S and
// T become the gradients with respect to them.
template <class R>
HD void uncouple(R& v, R& g, R& raw_scale, R& raw_shift, R g_log_det, Scalar<R> a, bool inverse) {
  const R tanh = tanh_portable(raw_scale), s = a * tanh, t = a * raw_shift;
  R of_scale, of_shift;
  if (inverse) {  // v' = v e^{−s} − t
    of_scale = -(g * (v + t)) - g_log_det;
    of_shift = -g;
    v = (v + t) * exp_bounded(s);
    g = g * exp_bounded(-s);
  } else {  // v' = (v + t) e^s
    of_scale = g * v + g_log_det;
    v = v * exp_bounded(-s) - t;
    g = g * exp_bounded(s);
    of_shift = g;
  }
  raw_scale = of_scale * (a * (Scalar<R>(1) - tanh * tanh));
  raw_shift = a * of_shift;
}

// (out, V vectors of samples) -> (samples, out): rows of `padded` vectors, zero behind the outputs.
template <class S, int V>
void turn(const Lanes<S>* y, int64_t out, int64_t padded, Lanes<S>* turned) {
  constexpr int W = kLanes<S>;
  for (int64_t block = 0; block < padded; ++block)
    for (int v = 0; v < V; ++v) {
      Lanes<S> square[W];
      for (int i = 0; i < W; ++i) {
        const int64_t row = block * W + i;
        square[i] = row < out ? y[row * V + v] : Lanes<S>{};
      }
      transpose<S>(square);
      for (int j = 0; j < W; ++j) turned[(v * W + j) * padded + block] = square[j];
    }
}

// Gradients through one layer y = W^T x + b: of x, added to gx or behind a rectifier; of W and b, if asked.
template <class S, int V>
void pull_layer(const LayerOf<S>& l, const Lanes<S>* x, const Lanes<S>* gy, Lanes<S>* gx,
                bool first, Lanes<S>* turned, S* sums) {
  using R = Lanes<S>;
  product<S, V, false>(l.in, l.weight, 1, l.stride, l.out, gy, V,
                       [&](int64_t row, int v, R sum) INLINE {
                         R& to = gx[row * V + v];
                         to = first ? to + sum : select(x[row * V + v] > S(0), sum, R{});
                       });
  if (!sums) return;
  constexpr int64_t W = kLanes<S>, M = V * W;
  const int64_t width = CouplingGradient<S>::padded(l.out), vectors = width / W;
  R* biases = reinterpret_cast<R*>(sums + l.in * width);
  for (int64_t row = 0; row < l.out; ++row)
    UNROLL for (int v = 0; v < V; ++v) biases[row] = biases[row] + gy[row * V + v];
  turn<S, V>(gy, l.out, vectors, turned);
  const S* points = reinterpret_cast<const S*>(x);
  int64_t at = 0;
  const auto block = [&](auto size) INLINE {
    constexpr int B = decltype(size)::value;
    for (; at + B <= vectors; at += B)
      product<S, B, false>(l.in, points, 1, M, M, turned + at, vectors,
                           [&](int64_t row, int v, R sum) INLINE {
                             R* to = reinterpret_cast<R*>(sums + row * width) + at + v;
                             *to = *to + sum;
                           });
  };
  block(Count<3>());
  block(Count<2>());
  block(Count<1>());
}

template <class S, int V>
void pull_tile(const CouplingGradient<S>& g, int64_t first, Lanes<S>* memory, S* sums) {
  using R = Lanes<S>;
  const CouplingCall<S>& call = g.call;
  const CouplingLayout& l = call.l;
  const TileOf<S, V> tile(l, first, call.n);
  R* values = memory;
  R* grads = values + l.dim * V;
  R* hidden = grads + l.dim * V;
  R* outputs = hidden + call.hidden_rows() * V;
  R* back[2] = {outputs + (l.dim + 1) * V, outputs + (l.dim + 1 + l.hidden) * V};
  R* turned = back[1] + l.hidden * V;
  tile.load(call.in, values);
  tile.load(g.grad_out, grads);
  R of_log_det[V];
  for (int j = 0; j < tile.kSamples; ++j)
    reinterpret_cast<S*>(of_log_det)[j] = j < tile.count ? g.grad_log_det[first + j] : S(0);

  for (int64_t step = l.n_couplings - 1; step >= 0; --step) {
    const int64_t c = call.coupling(step), moved = l.moved(c);
    const R* u = tile.set(values, 1 - c % 2);
    conditioner_of_tile<S, V>(l, call.weights, c, u, hidden, outputs);
    R *v = tile.set(values, c % 2), *gv = tile.set(grads, c % 2);
    for (int64_t k = 0; k < moved * V; ++k)
      uncouple(v[k], gv[k], outputs[k], outputs[moved * V + k], of_log_det[k % V], call.scale,
               call.inverse);
    for (int64_t net = 0; net < l.nets; ++net) {
      const R* gy = outputs + net * moved * V;
      for (int64_t layer = l.n_hidden; layer >= 0; --layer) {
        const R* x = layer ? hidden + (net * l.n_hidden + layer - 1) * l.hidden * V : u;
        R* gx = layer ? back[layer % 2] : tile.set(grads, 1 - c % 2);
        pull_layer<S, V>(coupling_layer(l, call.weights, c, net, layer), x, gy, gx, layer == 0,
                         turned, sums ? sums + g.offset(c, net, layer) : nullptr);
        gy = gx;
      }
    }
  }
  tile.store(grads, call.out);
}

// The sums of all threads, without their padding, in the order of the weights.
template <class S>
void gather_weights(const CouplingGradient<S>& g, const S* sums, int threads, int64_t stride) {
  const CouplingLayout& l = g.call.l;
  constexpr int W = kLanes<S>;
  for (int64_t c = 0; c < l.n_couplings; ++c)
    for (int64_t net = 0; net < l.nets; ++net)
      for (int64_t layer = 0; layer <= l.n_hidden; ++layer) {
        const LayerOf<S> to = coupling_layer<S>(l, g.grad_weights, c, net, layer);
        S* weight = const_cast<S*>(to.weight);
        S* bias = const_cast<S*>(to.bias);
        const S* from = sums + g.offset(c, net, layer);
        const int64_t width = g.padded(to.out);
        for (int64_t k = 0; k < to.in; ++k)
          for (int64_t j = 0; j < to.out; ++j) {
            S sum = S(0);
            for (int t = 0; t < threads; ++t) sum += from[t * stride + k * width + j];
            weight[k * to.stride + j] = sum;
          }
        for (int64_t j = 0; j < to.out; ++j) {
          S sum = S(0);
          for (int t = 0; t < threads; ++t)
            for (int i = 0; i < W; ++i) sum += from[t * stride + to.in * width + j * W + i];
          bias[j] = sum;
        }
      }
}

template <class S> void pull_couplings(const CouplingGradient<S>& g) {
  const CouplingLayout& l = g.call.l;
  constexpr int64_t W = kLanes<S>;
  const int64_t widest = 2 * ((l.dim + 1) / 2) / l.nets;
  const int64_t out = l.hidden > widest ? l.hidden : widest;
  const int64_t rows =
      3 * l.dim + 1 + g.call.hidden_rows() + 2 * l.hidden + W * (g.padded(out) / W);
  int threads = 1;
#ifdef _OPENMP
  threads = omp_get_max_threads();
#endif
  const int64_t stride = g.total();
  S* sums = nullptr;
  void* memory = nullptr;
  if (g.grad_weights) {
    memory = __builtin_malloc(size_t(threads) * size_t(stride) * sizeof(S) + kVectorBytes);
    if (!memory) throw std::bad_alloc();
    sums = reinterpret_cast<S*>((reinterpret_cast<uintptr_t>(memory) + kVectorBytes - 1) /
                                kVectorBytes * kVectorBytes);
    std::memset(sums, 0, size_t(threads) * size_t(stride) * sizeof(S));
  }
  for_tiles<S>(
      g.call.n, 4 * l.total(), rows, [&](auto size, int64_t first, int me, Lanes<S>* mine) {
        pull_tile<S, decltype(size)::value>(g, first, mine, sums ? sums + me * stride : nullptr);
      });
  if (sums) gather_weights(g, sums, threads, stride);
  __builtin_free(memory);
}

}  // namespace PYSAMP_NS
#endif
