#pragma once
// What the benches of regret share: their options, and the files that they write.

#include <cstdint>
#include <droppeft/core/check.hpp>
#include <fstream>
#include <map>
#include <string>

namespace bench {

/// Reads "--option value" pairs into texts and numbers; std::invalid_argument with the usage when
/// there is anything else.
inline void read_options(int count, char** arguments, const char* usage,
                         const std::map<std::string, std::string*>& texts,
                         const std::map<std::string, std::uint64_t*>& numbers) {
  for (int i = 1; i < count; i += 2) {
    const std::string option = arguments[i];
    droppeft::check(i + 1 < count && (texts.contains(option) || numbers.contains(option)), usage);
    if (texts.contains(option))
      *texts.at(option) = arguments[i + 1];
    else
      *numbers.at(option) = std::stoull(arguments[i + 1]);
  }
}

/// A new file that begins with the header; none, which swallows all, when it has no name.
inline std::ofstream create(const std::string& file, const std::string& header) {
  std::ofstream out;
  if (file.empty()) return out;
  out.open(file, std::ios::binary);
  droppeft::require(out.is_open(), "cannot write ", file);
  out.precision(12);
  out << header;
  return out;
}

}  // namespace bench
