#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/core/state.hpp"

namespace droppeft {

/// What each client's update adds to where the other clients are going:
///
///   agreement_i = <u_i, v_i> / |v_i|,  v_i = sum over j != i of weights[j] u_j; 0 where v_i = 0,
///
/// the length of update u_i along the direction of the others. u_i is what the client sends minus
/// what it was given, zero where it sent nothing; so the result has the unit of the parameters.
/// Clients with independent data agree on the way down that their losses share and on nothing else:
/// E<u_i, u_j> = |E u|^2, however large the noise of each. So this is a measure of a client's gain
/// that needs no evaluation, no rows held back and no byte more, and a sum over thousands of
/// coordinates, hence far less noisy than a loss on a few rows.
///
/// Cosines with the aggregate measure contributions in CGSV (Xu et al., NeurIPS 2021); the length
/// instead of the cosine (a client that does less gains less), leaving a client out of its own
/// yardstick, and the use as a bandit's reward are ours. Not for clients that share no task (there
/// is no common direction), nor as a defence against those that lie. Devices that drop layers agree
/// on the way down of their thinned models, so between drop rates it flatters the higher ones; for
/// the way of the whole model see length_along.hpp. LibTorch's products make the last bits depend
/// on the number of threads.
///
/// Two clients at least; tensors of one name of one shape; finite numbers; weights positive and
/// finite, one a client; else std::invalid_argument.
inline std::vector<double> agreement(std::span<const State> updates,
                                     std::span<const double> weights) {
  const std::size_t clients = updates.size();
  check(clients >= 2, "agreement: updates must hold at least 2 clients, got ", clients);
  check(weights.size() == clients, "agreement: weights must hold one number a client, ", clients,
        ", got ", weights.size());
  at::NoGradGuard no_grad;
  State zeros;
  for (std::size_t i = 0; i < clients; ++i) {
    check(std::isfinite(weights[i]) && weights[i] > 0, "agreement: weights[", i,
          "] must be positive and finite, got ", weights[i]);
    for (const auto& [name, tensor] : updates[i]) {
      if (!zeros.contains(name)) zeros.insert(name, at::zeros_like(tensor));
      check(zeros.at(name).sizes() == tensor.sizes(), "agreement: the tensor '", name,
            "' has shape ", zeros.at(name).sizes(), " in one update and ", tensor.sizes(),
            " in another");
    }
  }

  // products[i][j] = <u_i, u_j>, of which everything asked for is a sum.
  const auto count = static_cast<std::int64_t>(clients);
  at::Tensor products = at::zeros({count, count}, at::kDouble);
  for (const auto& [name, zero] : zeros) {
    std::vector<at::Tensor> rows;
    for (const State& update : updates)
      rows.push_back((update.contains(name) ? update.at(name) : zero).reshape(-1).to(at::kDouble));
    const at::Tensor all = at::stack(rows);
    products += at::mm(all, all.t()).cpu();
  }
  const auto product = products.accessor<double, 2>();
  for (std::int64_t i = 0; i < count; ++i)
    check(std::isfinite(product[i][i]), "agreement: updates[", i, "] must hold finite numbers");
  std::vector<double> agreements(clients, 0);
  for (std::int64_t i = 0; i < count; ++i) {
    double along = 0, square = 0;
    for (std::int64_t j = 0; j < count; ++j) {
      if (j == i) continue;
      const double weight = weights[static_cast<std::size_t>(j)];
      along += weight * product[i][j];
      for (std::int64_t k = 0; k < count; ++k)
        if (k != i) square += weight * weights[static_cast<std::size_t>(k)] * product[j][k];
    }
    if (square > 0) agreements[static_cast<std::size_t>(i)] = along / std::sqrt(square);
  }
  return agreements;
}

}  // namespace droppeft
