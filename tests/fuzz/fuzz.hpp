#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>

// What the fuzz targets of states and calls share.

inline void require_that(bool holds) {
  if (!holds) std::abort();
}

/// The bytes of the fuzzer, one after the other, and zeros when they are used up.
struct Bytes {
  const std::uint8_t* data;
  std::size_t size;

  std::uint8_t next() {
    if (size == 0) return 0;
    --size;
    return *data++;
  }
};

/// Numbers in [0, 1], and at and beyond the ends of what selectors take.
inline double number(Bytes& bytes) {
  constexpr double ends[] = {
      -1,     1e50,    -1e50, 1e-50, 1e-25, 1e25,  1e-320,
      1.1e50, 0.9e-50, 1e100, 2,     1e300, 1e-10, std::numeric_limits<double>::infinity(),
      NAN};
  const std::uint8_t byte = bytes.next();
  return byte < std::size(ends) ? ends[byte] : (byte - std::size(ends)) / 240.0;
}

/// Changes a part of a state: another value for it, or it is missing, or there twice.
inline void corrupt(nlohmann::json& state, Bytes& bytes) {
  nlohmann::json* part = &state;
  while (part->is_structured() && !part->empty()) {
    const auto child = std::next(part->begin(), bytes.next() % static_cast<int>(part->size()));
    const std::uint8_t what = bytes.next();
    if (what == 0) {
      part->erase(child);
      return;
    }
    if (what == 1 && part->is_array()) {
      part->push_back(nlohmann::json(*child));
      return;
    }
    part = &*child;
  }
  const nlohmann::json others[] = {nullptr,
                                   "text",
                                   true,
                                   -1,
                                   0,
                                   1,
                                   0.5,
                                   3.0,
                                   NAN,
                                   1e-320,
                                   1e-50,
                                   1e-25,
                                   -1e50,
                                   1e50,
                                   1e60,
                                   -1e60,
                                   1e100,
                                   1e300,
                                   std::uint64_t{1} << 53,
                                   std::uint64_t{1} << 63,
                                   ~std::uint64_t{0},
                                   nlohmann::json::array(),
                                   nlohmann::json::array({0, 1}),
                                   nlohmann::json::object()};
  *part = others[bytes.next() % std::size(others)];
}
