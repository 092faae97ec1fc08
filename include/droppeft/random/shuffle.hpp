#pragma once

#include <boost/random/uniform_int_distribution.hpp>
#include <cstddef>
#include <span>
#include <utility>

#include "droppeft/random/stream.hpp"

namespace droppeft {

/// Puts `items` in uniformly random order (Fisher and Yates), the same for a given stream on every
/// standard library; std::shuffle is not.
template <class T>
void shuffle(std::span<T> items, Stream& stream) {
  for (std::size_t left = items.size(); left > 1; --left) {
    boost::random::uniform_int_distribution<std::size_t> position(0, left - 1);
    std::swap(items[left - 1], items[position(stream)]);
  }
}

}  // namespace droppeft
