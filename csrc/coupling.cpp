// Stacks of affine couplings: checks of sizes, and the instantiations.
#include "coupling_gradient.h"

#include "ops.h"

namespace PYSAMP_NS {

template <class S>
static CouplingLayout checked(const View<S, 2>& x, const View<S, 1>& params,
                              const std::vector<int64_t>& layout) {
  check(layout.size() == 6, "layout must hold 6 numbers, got " + std::to_string(layout.size()));
  const CouplingLayout l{layout[0], layout[1], layout[2], layout[3], layout[4], layout[5]};
  check(l.dim >= 2 && l.n_couplings >= 1 && l.hidden >= 1 && l.n_hidden >= 1 &&
            (l.nets == 1 || l.nets == 2),
        "layout must have dim > 1, couplings, hidden and layers > 0, and 1 or 2 networks, got " +
            std::to_string(l.dim) + ", " + std::to_string(l.n_couplings) + ", " +
            std::to_string(l.hidden) + ", " + std::to_string(l.n_hidden) + " and " +
            std::to_string(l.nets));
  check(x.size[1] == l.dim, "expected events of " + std::to_string(l.dim) + " numbers, got " +
                                std::to_string(x.size[1]));
  check(params.size[0] == l.total(), "expected " + std::to_string(l.total()) + " weights, got " +
                                         std::to_string(params.size[0]));
  return l;
}

template <class S>
static void check_images(const View<S, 2>& x, const View<S, 2>& out, const View<S, 1>& log_det) {
  check(out.size[0] == x.size[0] && out.size[1] == x.size[1] && log_det.size[0] == x.size[0],
        "images and ln det must have the sizes of x, (" + std::to_string(x.size[0]) + ", " +
            std::to_string(x.size[1]) + "), got (" + std::to_string(out.size[0]) + ", " +
            std::to_string(out.size[1]) + ") and (" + std::to_string(log_det.size[0]) + ",)");
}

template <class S>
void affine_couplings(View<S, 2> x, View<S, 1> params, S scale, const std::vector<int64_t>& layout,
                      bool inverse, View<S, 2> out, View<S, 1> log_det) {
  const CouplingLayout l = checked(x, params, layout);
  check_images(x, out, log_det);
  run_couplings(x.device, CouplingCall<S>{l, params.data, scale, inverse, x.data, out.data,
                                          log_det.data, x.size[0]});
}

#ifndef __CUDACC__
template <class S>
void affine_couplings_vjp(View<S, 2> image, View<S, 1> params, S scale,
                          const std::vector<int64_t>& layout, bool inverse, View<S, 2> grad_image,
                          View<S, 1> grad_log_det, View<S, 2> grad_x, View<S, 1> grad_params) {
  const CouplingLayout l = checked(image, params, layout);
  check_images(image, grad_image, grad_log_det);
  check_images(image, grad_x, grad_log_det);
  check(grad_params.size[0] == params.size[0] || grad_params.size[0] == 0,
        "the gradient of the weights must have their size, or none");
  pull_couplings(CouplingGradient<S>{
      {l, params.data, scale, inverse, image.data, grad_x.data, nullptr, image.size[0]},
      grad_image.data,
      grad_log_det.data,
      grad_params.size[0] ? grad_params.data : nullptr});
}

template void affine_couplings_vjp<float>(View<float, 2>, View<float, 1>, float,
                                          const std::vector<int64_t>&, bool, View<float, 2>,
                                          View<float, 1>, View<float, 2>, View<float, 1>);
template void affine_couplings_vjp<double>(View<double, 2>, View<double, 1>, double,
                                           const std::vector<int64_t>&, bool, View<double, 2>,
                                           View<double, 1>, View<double, 2>, View<double, 1>);
#endif

template void affine_couplings<float>(View<float, 2>, View<float, 1>, float,
                                      const std::vector<int64_t>&, bool, View<float, 2>,
                                      View<float, 1>);
template void affine_couplings<double>(View<double, 2>, View<double, 1>, double,
                                       const std::vector<int64_t>&, bool, View<double, 2>,
                                       View<double, 1>);

}  // namespace PYSAMP_NS
