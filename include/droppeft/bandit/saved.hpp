#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "droppeft/core/check.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// Reads a saved state and believes nothing: a part that is missing, of another type or out of
/// range throws std::runtime_error with the path to it. Refers to the JSON value, which must
/// outlive it.
///
/// For those who write a `load`: read everything into a new object first, so that a refused state
/// leaves the old one as it was.
class Saved {
 public:
  Saved(const nlohmann::json& value, std::string path) : value_(value), path_(std::move(path)) {}

  /// The member `key` of an object.
  Saved operator[](const char* key) const {
    require(value_.is_object() && value_.contains(key), path_, ": '", key, "' is missing");
    return {value_[key], path_ + "." + key};
  }

  /// The element `index` of an array.
  Saved at(std::size_t index) const {
    require(index < size(), path_, " must have more than ", index, " elements, got ", size());
    return {value_[index], path_ + "[" + std::to_string(index) + "]"};
  }

  /// The number of elements of an array.
  std::size_t size() const {
    require(value_.is_array(), path_, " must be an array, got ", value_.type_name());
    return value_.size();
  }

  /// A whole number in [0, limit], all 64 bits of it.
  std::uint64_t integer(std::uint64_t limit = std::numeric_limits<std::uint64_t>::max()) const {
    const bool whole = value_.is_number_unsigned() ||
                       (value_.is_number_integer() && value_.get<std::int64_t>() >= 0);
    if (!whole || value_.get<std::uint64_t>() > limit)
      refuse(" must be a whole number in [0, ", limit, "]");
    return value_.get<std::uint64_t>();
  }

  /// A number in [low, high].
  double number(double low, double high) const {
    const double number = value_.is_number() ? value_.get<double>() : std::nan("");
    if (!(number >= low && number <= high)) refuse(" must be a number in [", low, ", ", high, "]");
    return number;
  }

  /// A string.
  const std::string& text() const {
    if (!value_.is_string()) refuse(" must be a string");
    return value_.get_ref<const std::string&>();
  }

  /// The value itself, unchecked.
  const nlohmann::json& json() const { return value_; }

  /// Throws unless the value is `wanted`: for what must agree with the object that loads.
  void expect(const nlohmann::json& wanted) const {
    if (value_ != wanted) refuse(" must be ", wanted.dump());
  }

  /// A stream saved as its `state()`.
  Stream stream() const {
    require(size() == 3, path_, " must have 3 elements, got ", size());
    return Stream({at(0).integer(), at(1).integer(), at(2).integer()});
  }

 private:
  template <class... Expected>
  [[noreturn]] void refuse(const Expected&... expected) const {
    throw std::runtime_error(
        detail::concatenate(path_, expected..., ", got ",
                            value_.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)));
  }

  const nlohmann::json& value_;
  std::string path_;
};

}  // namespace droppeft
