#pragma once

#include <csv.h>

#include <algorithm>
#include <boost/crc.hpp>
#include <cstdint>
#include <droppeft/core/check.hpp>
#include <droppeft/io/wordpiece.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

inline bool is_utf8(const std::string& text) {
  try {
    return !nlohmann::json(text).dump().empty();
  } catch (const nlohmann::json::type_error&) {
    return false;
  }
}

/// Rows of an RFC 4180 CSV text with a header and the columns label and text, in any order and
/// beside others. Throws std::runtime_error naming `source` and the row.
inline std::vector<std::pair<std::string, std::string>> read_labelled(std::string_view csv,
                                                                      const std::string& source) {
  struct Rows {
    std::vector<std::string> row;
    std::vector<std::vector<std::string>> all;
  } rows;
  if (csv.starts_with("\xEF\xBB\xBF")) csv.remove_prefix(3);  // a byte order mark
  csv_parser parser;
  droppeft::require(csv_init(&parser, CSV_STRICT | CSV_STRICT_FINI) == 0, "libcsv: no memory");
  csv_set_space_func(&parser, [](unsigned char) { return 0; });  // spaces belong to their field
  const auto field = [](void* text, std::size_t size, void* data) {
    static_cast<Rows*>(data)->row.emplace_back(static_cast<const char*>(text), size);
  };
  const auto end = [](int, void* data) {
    auto& state = *static_cast<Rows*>(data);
    state.all.push_back(std::exchange(state.row, {}));
  };
  const bool whole = csv_parse(&parser, csv.data(), csv.size(), field, end, &rows) == csv.size() &&
                     csv_fini(&parser, field, end, &rows) == 0;
  csv_free(&parser);
  droppeft::require(whole, source, ": row ", rows.all.size(),
                    " is not RFC 4180 CSV (the header is row 0)");
  droppeft::require(!rows.all.empty(), source, " is empty");

  const auto& header = rows.all.front();
  const auto column = [&](const char* name) {
    const auto found = std::find(header.begin(), header.end(), name);
    droppeft::require(found != header.end(), source, " must have a header with the columns label ",
                      "and text, but has no column '", name, "'");
    return static_cast<std::size_t>(found - header.begin());
  };
  const auto label = column("label");
  const auto text = column("text");
  std::vector<std::pair<std::string, std::string>> labelled;
  for (std::size_t row = 1; row < rows.all.size(); ++row) {
    auto& fields = rows.all[row];
    droppeft::require(fields.size() == header.size(), source, ": row ", row, " has ", fields.size(),
                      " fields, the header has ", header.size());
    droppeft::require(is_utf8(fields[label]), source, ": row ", row,
                      " has a label that is not UTF-8");
    labelled.emplace_back(std::move(fields[label]), std::move(fields[text]));
  }
  droppeft::require(!labelled.empty(), source, " has a header but no rows");
  return labelled;
}

inline std::vector<std::pair<std::string, std::string>> read_labelled_file(
    const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  droppeft::require(file.good() && std::filesystem::is_regular_file(path), "cannot read ",
                    path.string(), ": a data folder holds train.csv and test.csv");
  const std::string csv(std::istreambuf_iterator<char>(file), {});
  return read_labelled(csv, path.string());
}

/// A text as token ids, with the number of its class.
struct Example {
  std::vector<std::int64_t> ids;
  std::int64_t label;
};

struct TextData {
  std::vector<std::string> labels;  // sorted; the class of a label is its place
  std::vector<Example> train, test;
};

/// The messages that ship with the program (messages.csv, turned into a source file by the build):
/// the first of them are for training.
extern const char* const embedded_messages;
inline constexpr std::size_t embedded_train_rows = 1360;

/// Reads and tokenises `folder`, or the embedded messages when it is empty; of each part the first
/// `train_rows` and `test_rows` rows, 0 for all. Throws std::runtime_error.
inline TextData load_text_data(const std::filesystem::path& folder,
                               const droppeft::WordPiece& tokenizer, std::size_t train_rows,
                               std::size_t test_rows) {
  std::vector<std::pair<std::string, std::string>> train, test;
  if (folder.empty()) {
    train = read_labelled(embedded_messages, "the embedded messages");
    test.assign(train.begin() + embedded_train_rows, train.end());
    train.resize(embedded_train_rows);
  } else {
    droppeft::require(std::filesystem::is_directory(folder), "--data: ", folder.string(),
                      " is not a folder");
    train = read_labelled_file(folder / "train.csv");
    test = read_labelled_file(folder / "test.csv");
  }
  if (train_rows > 0 && train_rows < train.size()) train.resize(train_rows);
  if (test_rows > 0 && test_rows < test.size()) test.resize(test_rows);

  std::set<std::string> labels;
  for (const auto& [label, text] : train) labels.insert(label);
  droppeft::require(labels.size() >= 2, "the training data must have at least 2 classes, but has ",
                    "only '", *labels.begin(), "'");
  TextData data;
  data.labels.assign(labels.begin(), labels.end());
  const auto tokenised = [&](const auto& rows) {
    std::vector<Example> examples;
    for (const auto& [label, text] : rows) {
      const auto place = labels.find(label);
      droppeft::require(place != labels.end(), "the test data has the label '", label,
                        "', which the training data lacks");
      examples.push_back({tokenizer.encode(text), std::distance(labels.begin(), place)});
    }
    return examples;
  };
  data.train = tokenised(train);
  data.test = tokenised(test);
  return data;
}

/// A number that tells one set of data from another: CRC-32 of labels, classes and ids.
inline std::string fingerprint(const TextData& data) {
  boost::crc_32_type crc;
  for (const auto& label : data.labels) crc.process_bytes(label.c_str(), label.size() + 1);
  for (const auto* part : {&data.train, &data.test})
    for (const Example& example : *part) {
      crc.process_bytes(&example.label, sizeof example.label);
      crc.process_bytes(example.ids.data(), example.ids.size() * sizeof(std::int64_t));
    }
  return std::to_string(crc.checksum());
}
