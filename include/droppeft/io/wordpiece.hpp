#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <ios>
#include <iterator>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/io/unicode_tables.hpp"

namespace droppeft {

struct WordPieceOptions {
  /// Whether capitals become small letters: true for the uncased models.
  bool lower_case = true;
  /// Whether text is decomposed (NFD) and its non-spacing marks go: true for the uncased models.
  bool strip_accents = true;
  /// The most ids that encode() gives, [CLS] and [SEP] among them. At least 2.
  std::size_t max_length = 512;
};

namespace detail::unicode {

inline constexpr char32_t replacement_character = 0xFFFD;

/// One character read from UTF-8, and how many bytes it took.
struct Decoded {
  char32_t code;
  std::size_t bytes;
};

/// The first character of `text`, which must not be empty. As in Python's errors="replace", the
/// longest start of a well-formed sequence, or else one byte, is read as U+FFFD.
inline Decoded decode(std::string_view text) {
  const auto byte = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xC2 || lead > 0xF4) return {replacement_character, 1};
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte excludes overlong forms, surrogates and what lies above U+10FFFF.
  unsigned lowest = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned highest = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t code = lead & (0xFFU >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size() || byte(i) < lowest || byte(i) > highest)
      return {replacement_character, i};
    code = code << 6 | (byte(i) & 0x3FU);
    lowest = 0x80;
    highest = 0xBF;
  }
  return {code, length};
}

/// Appends the UTF-8 of `code`.
inline void append(std::string& text, char32_t code) {
  const auto put = [&text](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

/// The last row of a sorted table whose `first` is not above `code`, or nullptr.
template <class Row, std::size_t rows>
constexpr const Row* row_of(const Row (&table)[rows], char32_t code) {
  const Row* after =
      std::upper_bound(std::begin(table), std::end(table), code,
                       [](char32_t value, const Row& row) { return value < row.first; });
  return after == std::begin(table) ? nullptr : after - 1;
}

inline constexpr auto ascii_kinds = [] {
  std::array<std::uint8_t, 128> kinds{};
  for (char32_t code = 0; code < kinds.size(); ++code)
    kinds[code] = row_of(kind_starts, code)->kind;
  return kinds;
}();

inline std::uint8_t kind_of(char32_t code) {
  return code < ascii_kinds.size() ? ascii_kinds[code] : row_of(kind_starts, code)->kind;
}

/// The small letter of `code`, except that of U+0130, which is two characters.
inline char32_t lower(char32_t code) {
  if (code < 0x80) return code >= 'A' && code <= 'Z' ? code + ('a' - 'A') : code;
  const CaseRun* run = row_of(case_runs, code);
  if (code > run->last || (code - run->first) % run->step != 0) return code;
  return static_cast<char32_t>(static_cast<std::int32_t>(code) + run->offset);
}

/// What is left of a character when it is decomposed and its non-spacing marks are removed: one to
/// three characters, then zeros.
inline std::array<char32_t, 3> without_accents(char32_t code) {
  if (code < 0x80) return {code};
  if (code >= 0xAC00 && code <= 0xD7A3) {
    // Hangul syllables are computed (The Unicode Standard, section 3.12).
    const char32_t index = code - 0xAC00;
    const char32_t tail = index % 28;
    return {0x1100 + index / 588, 0x1161 + index / 28 % 21, tail == 0 ? 0 : 0x11A7 + tail};
  }
  const DecompositionRun* run = row_of(decomposition_runs, code);
  if (run != nullptr && code <= run->last)
    return {decomposition_targets[run->index + (code - run->first)]};
  const auto* longer = std::lower_bound(
      std::begin(long_decompositions), std::end(long_decompositions), code,
      [](const LongDecomposition& row, char32_t value) { return row.code < value; });
  if (longer != std::end(long_decompositions) && longer->code == code) return longer->parts;
  return {code};
}

/// Cuts a text into the words of BERT's basic tokeniser, one at a time.
class WordReader {
 public:
  WordReader(std::string_view text, const WordPieceOptions& options)
      : text_(text), lower_case_(options.lower_case), strip_accents_(options.strip_accents) {}

  /// Goes to the next word; false at the end.
  bool next() {
    word_.clear();
    characters_ = 0;
    while (!text_.empty()) {
      const auto [code, bytes] = decode(text_);
      std::array<char32_t, 3> parts{code};
      std::uint8_t kind = kind_of(code);
      if (strip_accents_ && code >= 0x80) {
        parts = without_accents(code);
        kind = kind_of(parts[0]);
      }
      if (kind == space || kind == ideograph || kind == punctuation) {
        put_marks();
        if (!word_.empty()) return true;
        text_.remove_prefix(bytes);
        if (kind == space) continue;
        put(parts[0]);
        return true;
      }
      text_.remove_prefix(bytes);
      if (kind == removed) continue;
      if (!strip_accents_) {
        put(code);
      } else if (kind == blocking_mark) {
        put_marks();
      } else if (kind != mark) {
        for (std::size_t i = 0; i < parts.size() && parts[i] != 0; ++i) add(parts[i]);
      }
    }
    put_marks();
    return !word_.empty();
  }

  /// The word, in UTF-8.
  std::string_view word() const { return word_; }
  std::size_t characters() const { return characters_; }

 private:
  struct Mark {
    char32_t code;
    std::uint8_t combining_class;
  };

  /// Takes a character in the order of the text: combining marks wait, to be put in canonical
  /// order.
  void add(char32_t code) {
    const std::uint8_t kind = kind_of(code);
    if (kind > blocking_mark) {
      marks_.push_back({code, kind});
    } else {
      put_marks();
      put(code);
    }
  }

  void put_marks() {
    if (marks_.empty()) [[likely]]
      return;
    std::stable_sort(marks_.begin(), marks_.end(), [](const Mark& a, const Mark& b) {
      return a.combining_class < b.combining_class;
    });
    for (const Mark& waiting : marks_) put(waiting.code);
    marks_.clear();
  }

  void put(char32_t code) {
    constexpr char32_t dotted_capital_i = 0x130;
    if (lower_case_ && code == dotted_capital_i) {
      word_ += "i\u0307";
      characters_ += 2;
      return;
    }
    append(word_, lower_case_ ? lower(code) : code);
    ++characters_;
  }

  std::string_view text_;
  bool lower_case_;
  bool strip_accents_;
  std::string word_;
  std::size_t characters_ = 0;
  std::vector<Mark> marks_;
};

}  // namespace detail::unicode

/// BERT's tokeniser: text to the ids of word pieces.
///
/// The basic tokeniser of Devlin et al. (2019) removes control characters, makes Chinese characters
/// and punctuation words of their own, and lowers and strips accents as the options say; then each
/// word is cut into the longest pieces of the vocabulary from left to right (Wu et al. 2016), later
/// pieces being those that begin with `##`. A word of more than 100 characters, or one that cannot
/// be cut, is [UNK]. The ids are those of the Python package `tokenizers`, whose Unicode tables are
/// used; the literal texts [PAD], [UNK], [CLS], [SEP] and [MASK] stand for those tokens, as there.
///
/// Not for vocabularies of other kinds (BPE, SentencePiece), and not a trainer of vocabularies.
/// Const member functions may be called from several threads at once.
class WordPiece {
 public:
  /// Reads a `vocab.txt`: one token a line, its id being the number of the line from 0.
  ///
  /// Throws std::invalid_argument for a max_length below 2, std::runtime_error when the file cannot
  /// be read or has no [UNK], [CLS] or [SEP].
  explicit WordPiece(const std::filesystem::path& vocabulary, const WordPieceOptions& options = {})
      : options_(options) {
    check(options.max_length >= 2, "WordPieceOptions: max_length must be at least 2, got ",
          options.max_length);
    std::ifstream file(vocabulary, std::ios::binary);
    require(file.is_open(), "WordPiece: cannot open the vocabulary ", vocabulary);
    std::string line;
    for (; std::getline(file, line); ++size_) {
      if (line.ends_with('\r')) line.pop_back();
      const bool continues = line.size() > 2 && line.starts_with("##");
      if (continues) line.erase(0, 2);
      longest_ = std::max(longest_, line.size());
      (continues ? continuations_ : starts_).insert_or_assign(line, size_);
    }
    require(file.eof() && size_ > 0, "WordPiece: cannot read the vocabulary ", vocabulary);
    for (std::size_t i = 0; i < special_tokens.size(); ++i) {
      const auto found = starts_.find(special_tokens[i]);
      if (found != starts_.end()) special_ids_[i] = found->second;
      require(found != starts_.end() || i > sep, "WordPiece: the vocabulary ", vocabulary,
              " has no line ", special_tokens[i]);
    }
  }

  /// [CLS], the pieces of `text`, [SEP]: at most max_length ids, the end of the text being left
  /// out.
  ///
  /// A sequence of bytes that is not UTF-8 is left out too.
  std::vector<std::int64_t> encode(std::string_view text) const {
    std::vector<std::int64_t> ids{special_ids_[cls]};
    const std::size_t limit = options_.max_length - 1;
    while (ids.size() < limit && !text.empty()) {
      const auto [start, token] = next_special(text);
      detail::unicode::WordReader words(text.substr(0, start), options_);
      while (ids.size() < limit && words.next()) append_pieces(words, ids);
      if (token == special_tokens.size()) break;
      ids.push_back(special_ids_[token]);
      text.remove_prefix(start + special_tokens[token].size());
    }
    ids.resize(std::min(ids.size(), limit));
    ids.push_back(special_ids_[sep]);
    return ids;
  }

  /// The id of a token as it stands in the vocabulary, such as "[PAD]" or "##ing". Throws
  /// std::invalid_argument when it is not there.
  std::int64_t id(std::string_view token) const {
    const bool continues = token.size() > 2 && token.starts_with("##");
    const Pieces& pieces = continues ? continuations_ : starts_;
    const auto found = pieces.find(continues ? token.substr(2) : token);
    check(found != pieces.end(), "WordPiece::id: '", token, "' is not in the vocabulary");
    return found->second;
  }

  /// Lines in the vocabulary.
  std::int64_t size() const { return size_; }

  const WordPieceOptions& options() const { return options_; }

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const {
      return std::hash<std::string_view>()(text);
    }
  };
  using Pieces = std::unordered_map<std::string, std::int64_t, Hash, std::equal_to<>>;

  static constexpr std::array<std::string_view, 5> special_tokens{"[UNK]", "[CLS]", "[SEP]",
                                                                  "[PAD]", "[MASK]"};
  static constexpr std::size_t unk = 0;
  static constexpr std::size_t cls = 1;
  static constexpr std::size_t sep = 2;
  static constexpr std::int64_t absent = -1;

  /// Where the first special token of `text` begins, and which it is; or the end and their number.
  std::pair<std::size_t, std::size_t> next_special(std::string_view text) const {
    for (auto at = text.find('['); at != text.npos; at = text.find('[', at + 1))
      for (std::size_t i = 0; i < special_tokens.size(); ++i)
        if (special_ids_[i] != absent && text.substr(at).starts_with(special_tokens[i]))
          return {at, i};
    return {text.size(), special_tokens.size()};
  }

  void append_pieces(const detail::unicode::WordReader& words,
                     std::vector<std::int64_t>& ids) const {
    constexpr std::size_t most_characters = 100;
    const std::size_t before = ids.size();
    std::string_view rest = words.word();
    const Pieces* pieces = &starts_;
    while (!rest.empty() && words.characters() <= most_characters) {
      std::size_t length = std::min(rest.size(), longest_);
      auto found = pieces->end();
      for (; length > 0; --length) {
        found = pieces->find(rest.substr(0, length));
        if (found != pieces->end()) break;
      }
      if (length == 0) break;
      ids.push_back(found->second);
      rest.remove_prefix(length);
      pieces = &continuations_;
    }
    if (rest.empty()) return;
    ids.resize(before);
    ids.push_back(special_ids_[unk]);
  }

  Pieces starts_;
  /// The pieces that begin with ##, without it.
  Pieces continuations_;
  std::array<std::int64_t, special_tokens.size()> special_ids_{absent, absent, absent, absent,
                                                               absent};
  WordPieceOptions options_;
  std::size_t longest_ = 0;
  std::int64_t size_ = 0;
};

}  // namespace droppeft
