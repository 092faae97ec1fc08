#pragma once

#include <charconv>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace droppeft {

namespace detail {

/// Numbers in the fewest digits that read back as the same number; the rest as a stream prints it.
template <class Part>
void append(std::ostringstream& text, const Part& part) {
  if constexpr (std::is_floating_point_v<Part>) {
    char digits[64];
    text.write(digits, std::to_chars(digits, digits + sizeof digits, part).ptr - digits);
  } else {
    text << part;
  }
}

template <class... Parts>
std::string concatenate(const Parts&... parts) {
  std::ostringstream text;
  (append(text, parts), ...);
  return text.str();
}

}  // namespace detail

/// Throws std::invalid_argument with the concatenated `message` unless `condition` holds.
///
/// For values and shapes that a caller passed. A message names class or function, argument, allowed
/// range and the value given: check(rate >= 0 && rate < 1, "LayerDropoutOptions: rate must be in
/// [0, 1), got ", rate). Write the condition so that NaN fails it.
template <class... Message>
void check(bool condition, const Message&... message) {
  if (!condition) [[unlikely]]
    throw std::invalid_argument(detail::concatenate(message...));
}

/// Throws std::runtime_error with the concatenated `message` unless `condition` holds: for files
/// and the world, where the caller did nothing wrong.
template <class... Message>
void require(bool condition, const Message&... message) {
  if (!condition) [[unlikely]]
    throw std::runtime_error(detail::concatenate(message...));
}

}  // namespace droppeft
