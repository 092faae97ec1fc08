#pragma once

#include <concepts>
#include <cstddef>
#include <span>

#include "droppeft/core/state.hpp"

namespace droppeft {

/// What a server makes of its clients' states. add(state, weight) takes part of one client, in any
/// order, add(states, weights) of many, all or none; value() is asked at any time, and holds every
/// tensor that somebody sent; clients() says how many were added. What does not fit is refused with
/// std::invalid_argument, and the aggregator stays as it was. Laws: docs/federated.md.
template <class A>
concept Aggregator = requires(A aggregator, const A& settled, const State& state, double weight,
                              std::span<const State> states, std::span<const double> weights) {
  aggregator.add(state, weight);
  aggregator.add(states, weights);
  { settled.value() } -> std::same_as<State>;
  { settled.clients() } -> std::convertible_to<std::size_t>;
};

}  // namespace droppeft
