#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/dropout/gate.hpp"
#include "droppeft/dropout/rate_schedule.hpp"
#include "droppeft/random/shuffle.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// A few plans that stand for all that a gate could draw, for what must be prepared for each plan:
/// a captured graph (see StepGraphs), a memory plan.
///
///     const PlanCodebook codebook(drop_rates(*model), 64, stream.fold(0));
///     const Plan& plan = codebook.draw(step_stream);   // instead of gate(rates, step_stream)
///
/// Of M plans layer l, with drop rate P_l, is in n_l = round(M (1 - P_l)), at least one and
/// whatever the others are; so a uniform draw drops it at rate 1 - n_l / M, within 1 / (2 M) of P_l
/// (but for the layers whose keep rate is below 1 / (2 M)). All plans have floor or ceil of
/// sum_l n_l / M layers. Apart from that they are random: from layers dealt out in turn, pairs of
/// plans trade those that only one of them has (Strona et al., Nature Communications 5, 2014).
///
/// With a DropScaling the scale is that of the model's own rates: set them to marginal_rates(). A
/// plan without a layer is possible where sum_l n_l < M.
///
/// Which layers run together is limited to the plans there are: k of L layers have L! / (k! (L -
/// k)!) plans. Where nothing is prepared, take a gate.
///
/// The constructor throws std::invalid_argument for rates outside [0, 1), none, or size < 1.
class PlanCodebook {
 public:
  PlanCodebook(std::span<const double> drop_rates, std::size_t size, Stream stream) {
    check_drop_rates(drop_rates, "PlanCodebook");
    check(size >= 1, "PlanCodebook: the number of plans must be at least 1, got ", size);
    const std::size_t layers = drop_rates.size();
    Plan none(layers);
    for (std::size_t layer = 0; layer < layers; ++layer) none.set(layer, false);
    plans_.assign(size, none);

    std::vector<std::size_t> order(layers);
    std::iota(order.begin(), order.end(), std::size_t{0});
    shuffle(std::span(order), stream);
    std::size_t next = 0;
    for (const std::size_t layer : order) {
      const double wanted = std::round(static_cast<double>(size) * (1 - drop_rates[layer]));
      for (auto left = std::max<std::size_t>(1, static_cast<std::size_t>(wanted)); left > 0; --left)
        plans_[next++ % size].set(layer, true);
    }
    if (size == 1) return;
    for (std::size_t trade = 0; trade < 16 * size; ++trade) {
      const std::size_t a = trade % size, b = (a + 1 + index(stream, size - 1)) % size;
      trade_layers(plans_[a], plans_[b], stream);
    }
  }

  const std::vector<Plan>& plans() const { return plans_; }

  /// One of the plans, each as likely as the others.
  const Plan& draw(Stream& stream) const { return plans_[index(stream, plans_.size())]; }

  /// The rates at which draw() drops each layer.
  std::vector<double> marginal_rates() const {
    std::vector<double> rates(plans_[0].layers());
    for (std::size_t layer = 0; layer < rates.size(); ++layer)
      rates[layer] = static_cast<double>(std::ranges::count_if(
                         plans_, [&](const Plan& plan) { return !plan.active(layer); })) /
                     static_cast<double>(plans_.size());
    return rates;
  }

 private:
  static std::size_t index(Stream& stream, std::size_t count) {
    return static_cast<std::size_t>(stream.uniform() * static_cast<double>(count));
  }

  /// Shares those layers out anew that only one of the two has; each keeps their number.
  static void trade_layers(Plan& a, Plan& b, Stream& stream) {
    std::vector<std::size_t> of_one;
    std::size_t of_a = 0;
    for (std::size_t layer = 0; layer < a.layers(); ++layer)
      if (a.active(layer) != b.active(layer)) {
        of_one.push_back(layer);
        of_a += static_cast<std::size_t>(a.active(layer));
      }
    shuffle(std::span(of_one), stream);
    for (std::size_t i = 0; i < of_one.size(); ++i) {
      a.set(of_one[i], i < of_a);
      b.set(of_one[i], i >= of_a);
    }
  }

  std::vector<Plan> plans_;
};

}  // namespace droppeft
