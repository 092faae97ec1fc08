// Any bytes must give ids within max_length, in every mode. How to run it: README.md.

#include <array>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "droppeft/io/wordpiece.hpp"

namespace {

constexpr std::size_t max_length = 40;

droppeft::WordPiece tokenizer(bool lower_case, bool strip_accents) {
  const auto path = std::filesystem::temp_directory_path() / "droppeft-fuzz-vocab.txt";
  std::ofstream(path) << "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##a\nab\n##bc\n.\ne\n##\u0301\n";
  return droppeft::WordPiece(path, {lower_case, strip_accents, max_length});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::array<droppeft::WordPiece, 4> tokenizers{
      tokenizer(true, true), tokenizer(true, false), tokenizer(false, true),
      tokenizer(false, false)};
  for (const auto& each : tokenizers) {
    const auto ids = each.encode({reinterpret_cast<const char*>(data), size});
    if (ids.size() < 2 || ids.size() > max_length || ids.front() != 2 || ids.back() != 3)
      std::abort();
    for (const std::int64_t id : ids)
      if (id < 0 || id >= each.size()) std::abort();
  }
  return 0;
}
