#include "droppeft/io/wordpiece.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <boost/crc.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

// Reads MODEL/vocab.txt, MODEL being the environment variable DROPPEFT_MODEL_DIR (the MiniLM
// package's `model` folder), and the file that the environment variable DROPPEFT_WORDPIECE_TEXTS
// names (written by tests/oracles/compare_wordpiece.py). Without them it says what it left out.

namespace {

using droppeft::WordPiece;
using droppeft::WordPieceOptions;
using droppeft::detail::unicode::WordReader;
using Ids = std::vector<std::int64_t>;

const nlohmann::json& oracle() {
  static const auto json = [] {
    const auto here = std::filesystem::path(__FILE__).parent_path();
    std::ifstream file(here / "../oracles/data/wordpiece.json");
    return nlohmann::json::parse(file);
  }();
  return json;
}

std::optional<std::filesystem::path> model_vocabulary() {
  const char* folder = std::getenv("DROPPEFT_MODEL_DIR");
  if (folder != nullptr) return std::filesystem::path(folder) / "vocab.txt";
  MESSAGE("DROPPEFT_MODEL_DIR is not set: ids are not compared, words are");
  return std::nullopt;
}

/// A vocabulary file that is gone at the end of the test.
class Vocabulary {
 public:
  explicit Vocabulary(const std::string& lines)
      : path_(std::filesystem::temp_directory_path() /
              ("droppeft-vocab-" + std::to_string(std::random_device()()) + ".txt")) {
    std::ofstream(path_, std::ios::binary) << lines;
  }
  ~Vocabulary() { std::filesystem::remove(path_); }
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Ids in the order of the lines.
const std::string small_vocabulary =
    "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nun\n##aff\n##able\n##a\naff\n,\n[\n]\nmask\n";

std::vector<std::string> words_of(std::string_view text, bool lower_case, bool strip_accents) {
  WordPieceOptions options;
  options.lower_case = lower_case;
  options.strip_accents = strip_accents;
  WordReader reader(text, options);
  std::vector<std::string> words;
  while (reader.next()) words.emplace_back(reader.word());
  return words;
}

/// CRC-32s of the words of texts in each mode, and of their ids, as the oracle script makes them.
class Sums {
 public:
  explicit Sums(const WordPiece* tokenizer) : tokenizer_(tokenizer) {}

  void add(std::string_view text) {
    for (std::size_t mode = 0; mode < words_.size(); ++mode) {
      const auto& flags = oracle().at("modes").at(mode);
      for (const auto& word : words_of(text, flags.at(0), flags.at(1)))
        words_[mode].process_bytes(word.c_str(), word.size() + 1);
      words_[mode].process_byte(1);
    }
    if (tokenizer_ == nullptr) return;
    for (const std::int64_t id : tokenizer_->encode(text)) add_word(static_cast<std::uint32_t>(id));
    add_word(0xFFFFFFFF);
  }

  /// Whether these are the sums of `row`; those of the ids only where there is a tokenizer.
  bool equal(const nlohmann::json& row) const {
    for (std::size_t mode = 0; mode < words_.size(); ++mode)
      if (words_[mode].checksum() != row.at(mode)) return false;
    return tokenizer_ == nullptr || ids_.checksum() == row.at(words_.size());
  }

 private:
  void add_word(std::uint32_t value) {
    for (int shift = 0; shift < 32; shift += 8)
      ids_.process_byte(static_cast<unsigned char>(value >> shift));
  }

  const WordPiece* tokenizer_;
  std::array<boost::crc_32_type, 4> words_;
  boost::crc_32_type ids_;
};

/// SplitMix64 (Steele, Lea and Flood 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t below(std::uint64_t bound) {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return (z ^ (z >> 31)) % bound;
  }

 private:
  std::uint64_t state_;
};

std::string random_text(Random& random, const nlohmann::json& pool) {
  std::string text;
  const auto length = 1 + random.below(24);
  for (std::uint64_t i = 0; i < length; ++i) {
    if (random.below(8) == 0) {
      const auto& inserts = pool.at("inserts");
      text += inserts.at(random.below(inserts.size())).get<std::string>();
    } else {
      const auto& ranges = pool.at("ranges");
      const auto& range = ranges.at(random.below(ranges.size()));
      const auto first = range.at(0).get<std::uint32_t>();
      const auto last = range.at(1).get<std::uint32_t>();
      const auto offset = static_cast<std::uint32_t>(random.below(last - first + 1));
      droppeft::detail::unicode::append(text, first + offset);
    }
  }
  return text;
}

std::string random_bytes(Random& random) {
  std::string text;
  const auto length = 1 + random.below(40);
  for (std::uint64_t i = 0; i < length; ++i) {
    const std::array<std::uint64_t, 4> choices{0x61 + random.below(8), 0x80 + random.below(128),
                                               0xE0 + random.below(24), 0x20};
    text.push_back(static_cast<char>(choices[random.below(4)]));
  }
  return text;
}

std::optional<WordPiece> model_tokenizer(std::size_t max_length) {
  const auto path = model_vocabulary();
  if (!path) return std::nullopt;
  WordPieceOptions options;
  options.max_length = max_length;
  return WordPiece(*path, options);
}

template <class Text>
void compare_chunks(const nlohmann::json& rows, const WordPiece* tokenizer, const Text& text) {
  for (std::size_t row = 0; row < rows.size(); ++row) {
    Sums sums(tokenizer);
    for (int i = 0; i < oracle().at("chunk"); ++i) sums.add(text());
    CAPTURE(row);
    CHECK(sums.equal(rows[row]));
  }
}

}  // namespace

TEST_CASE("WordPiece gives the ids of the reference for the stored texts") {
  const auto path = model_vocabulary();
  if (!path) return;
  for (const auto& expected : oracle().at("cases")) {
    WordPieceOptions options;
    options.lower_case = expected.value("lower", true);
    options.strip_accents = expected.value("strip", true);
    options.max_length = expected.value("max_length", std::size_t{512});
    const WordPiece tokenizer(*path, options);
    CAPTURE(expected.dump());
    CHECK(tokenizer.encode(expected.at("text").get<std::string>()) ==
          expected.at("ids").get<Ids>());
  }
}

TEST_CASE("every code point becomes the words and ids of the reference, in every mode") {
  const auto tokenizer = model_tokenizer(oracle().at("max_length"));
  const auto& blocks = oracle().at("code_points");
  CHECK(blocks.size() == 0x110);
  for (std::uint32_t block = 0; block < blocks.size(); ++block) {
    Sums sums(tokenizer ? &*tokenizer : nullptr);
    for (std::uint32_t code = block * 0x1000; code < (block + 1) * 0x1000; ++code) {
      if (code >= 0xD800 && code <= 0xDFFF) continue;
      std::string c;
      droppeft::detail::unicode::append(c, code);
      sums.add("a" + c + "b " + c + " E\u0301" + c + c);
    }
    CAPTURE(block);
    CHECK(sums.equal(blocks[block]));
  }
}

TEST_CASE("random strings of mixed scripts, marks and planes become those of the reference") {
  const auto tokenizer = model_tokenizer(oracle().at("max_length"));
  for (const auto& pool : oracle().at("pools")) {
    Random random(pool.at("seed"));
    compare_chunks(pool.at("sums"), tokenizer ? &*tokenizer : nullptr,
                   [&] { return random_text(random, pool); });
  }
}

TEST_CASE("bytes that are not UTF-8 are read as Python reads them with errors='replace'") {
  const auto tokenizer = model_tokenizer(oracle().at("max_length"));
  Random random(oracle().at("bytes").at("seed"));
  compare_chunks(oracle().at("bytes").at("sums"), tokenizer ? &*tokenizer : nullptr,
                 [&] { return random_bytes(random); });
}

TEST_CASE("every text of a folder gets the ids of the reference") {
  const char* texts = std::getenv("DROPPEFT_WORDPIECE_TEXTS");
  const auto tokenizer = model_tokenizer(std::size_t{1} << 30);
  if (texts == nullptr || !tokenizer) {
    MESSAGE("DROPPEFT_WORDPIECE_TEXTS or DROPPEFT_MODEL_DIR is not set: nothing is compared");
    return;
  }
  std::ifstream file(texts);
  REQUIRE(file.is_open());
  std::size_t count = 0;
  std::size_t different = 0;
  for (std::string line; std::getline(file, line); ++count) {
    const auto expected = nlohmann::json::parse(line);
    const auto ids = tokenizer->encode(expected.at("text").get<std::string>());
    if (ids != expected.at("ids").get<Ids>()) ++different;
  }
  MESSAGE(count << " texts compared");
  CHECK(count > 0);
  CHECK(different == 0);
}

TEST_CASE("the longest piece wins, and a word that cannot be cut is [UNK] as a whole") {
  const Vocabulary file(small_vocabulary);
  const WordPiece tokenizer(file.path());
  CHECK(tokenizer.size() == 14);
  CHECK(tokenizer.encode("unaffable") == Ids{2, 5, 6, 7, 3});
  CHECK(tokenizer.encode("UNAFFABLE, una") == Ids{2, 5, 6, 7, 10, 5, 8, 3});
  CHECK(tokenizer.encode("unaffablex un") == Ids{2, 1, 5, 3});
  CHECK(tokenizer.encode("able") == Ids{2, 1, 3});
  CHECK(tokenizer.encode("") == Ids{2, 3});
}

TEST_CASE("special tokens in a text stand for themselves, letter by letter") {
  const Vocabulary file(small_vocabulary);
  const WordPiece tokenizer(file.path());
  CHECK(tokenizer.encode("un[SEP]un [MASK]") == Ids{2, 5, 3, 5, 4, 3});
  CHECK(tokenizer.encode("[[MASK]]") == Ids{2, 11, 4, 12, 3});
  CHECK(tokenizer.encode("[mask]") == Ids{2, 11, 13, 12, 3});
  CHECK(tokenizer.encode("[MASK") == Ids{2, 11, 13, 3});

  const Vocabulary without("[UNK]\n[CLS]\n[SEP]\n[\n]\nmask\n");
  CHECK(WordPiece(without.path()).encode("[MASK]") == Ids{1, 3, 5, 4, 2});
}

TEST_CASE("truncation keeps [CLS], the first pieces and [SEP]") {
  const Vocabulary file(small_vocabulary);
  WordPieceOptions options;
  const Ids whole{2, 5, 6, 7, 4, 10, 3};
  for (std::size_t length = 2; length < 9; ++length) {
    options.max_length = length;
    Ids expected(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(
                                                    length - 1, whole.size() - 1)));
    expected.push_back(3);
    CHECK(WordPiece(file.path(), options).encode("unaffable[MASK],") == expected);
  }
}

TEST_CASE("a word of 100 characters is cut, one of 101 is [UNK]") {
  const Vocabulary file("[UNK]\n[CLS]\n[SEP]\na\n##a\n");
  const WordPiece tokenizer(file.path());
  Ids expected(100, 4);
  expected.insert(expected.begin(), {1, 3});
  expected.erase(expected.end() - 1);
  expected.push_back(2);
  CHECK(tokenizer.encode(std::string(100, 'a')) == expected);
  CHECK(tokenizer.encode(std::string(101, 'a')) == Ids{1, 0, 2});
  CHECK(tokenizer.encode(std::string(1000000, 'a') + " a") == Ids{1, 0, 3, 2});
}

TEST_CASE("lines of a vocabulary may end in CR LF, and the last need not end") {
  const Vocabulary file("[UNK]\r\n[CLS]\r\n[SEP]\r\n\r\n##ing\r\ngo");
  const WordPiece tokenizer(file.path());
  CHECK(tokenizer.size() == 6);
  CHECK(tokenizer.id("go") == 5);
  CHECK(tokenizer.id("##ing") == 4);
  CHECK(tokenizer.encode("going") == Ids{1, 5, 4, 2});
  CHECK_THROWS_WITH_AS(tokenizer.id("ing"), "WordPiece::id: 'ing' is not in the vocabulary",
                       std::invalid_argument);
}

TEST_CASE("a tokenizer can be copied and outlives what it was copied from") {
  const Vocabulary file(small_vocabulary);
  std::optional<WordPiece> original(file.path());
  const WordPiece copy = *original;
  original.reset();
  CHECK(copy.encode("unaffable[MASK]") == Ids{2, 5, 6, 7, 4, 3});
}

TEST_CASE("several threads may encode with one tokenizer") {
  const Vocabulary file(small_vocabulary);
  const WordPiece tokenizer(file.path());
  std::atomic<int> wrong = 0;
  std::vector<std::jthread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int repeat = 0; repeat < 1000; ++repeat)
        if (tokenizer.encode("\u00dcn\u00e4ff\u00e0ble, un") != Ids{2, 5, 6, 7, 10, 5, 3}) ++wrong;
    });
  threads.clear();
  CHECK(wrong == 0);
}

TEST_CASE("WordPiece refuses what is not a vocabulary, and a length without room for two ids") {
  const Vocabulary file(small_vocabulary);
  WordPieceOptions options;
  options.max_length = 1;
  CHECK_THROWS_WITH_AS(WordPiece(file.path(), options),
                       "WordPieceOptions: max_length must be at least 2, got 1",
                       std::invalid_argument);
  CHECK_THROWS_AS(WordPiece("/nowhere/vocab.txt"), std::runtime_error);
  CHECK_THROWS_AS(WordPiece{std::filesystem::temp_directory_path()}, std::runtime_error);
  CHECK_THROWS_AS(WordPiece(Vocabulary("").path()), std::runtime_error);
  CHECK_THROWS_AS(WordPiece(Vocabulary("[UNK]\n[CLS]\nword\n").path()), std::runtime_error);
}
