#pragma once

#include <ATen/ATen.h>

#include <cmath>

#include "droppeft/core/check.hpp"
#include "droppeft/core/state.hpp"

namespace droppeft {

/// How far an update goes the way of a direction, <u, d> / |d| over the tensors of d: those that u
/// lacks count as zero, what u has beside them is left out; 0 where d = 0. Has the unit of the
/// parameters.
///
/// A device's gain, as a bandit's reward, with d the last step of the server (its parameters minus
/// those of a round before): needs no evaluation, no row held back, no byte more, and varies far
/// less than a loss on a few rows. Mind what d holds: of a fine-tuned model the adapters alone,
/// since a head learns the way of a thinned model's features, too. Of what costs nothing it orders
/// drop rates the most surely by what they gain within a round, where agreement (agreement.hpp)
/// flatters dropping; over whole runs it was not the better reward (docs/bench.md). Nothing is
/// known in a first round; where all devices drop much, d itself is the way of thinned models.
///
/// Projection on a server's step: as in CGSV (Xu et al., NeurIPS 2021), who take the cosine; the
/// length, and the step of the round before, are ours. LibTorch's products make the last bits
/// depend on the number of threads.
///
/// Tensors of one name of one shape, finite numbers, else std::invalid_argument.
inline double length_along(const State& update, const State& direction) {
  at::NoGradGuard no_grad;
  double product = 0, square = 0;
  for (const auto& [name, tensor] : direction) {
    const at::Tensor d = tensor.reshape(-1).to(at::kDouble);
    square += d.dot(d).item<double>();
    if (!update.contains(name)) continue;
    check(update.at(name).sizes() == tensor.sizes(), "length_along: the tensor '", name,
          "' has shape ", update.at(name).sizes(), " in the update and ", tensor.sizes(),
          " in the direction");
    product += d.dot(update.at(name).reshape(-1).to(at::kDouble)).item<double>();
  }
  check(std::isfinite(product) && std::isfinite(square),
        "length_along: update and direction must hold finite numbers");
  return square > 0 ? product / std::sqrt(square) : 0;
}

}  // namespace droppeft
