#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <array>
#include <bit>
#include <boost/interprocess/file_mapping.hpp>
#include <boost/interprocess/mapped_region.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/core/state.hpp"
#include "droppeft/io/replacing_file.hpp"

namespace droppeft {

static_assert(std::endian::native == std::endian::little,
              "droppeft/io/safetensors.hpp: the format is little endian and nothing is swapped");

namespace detail::safetensors {

/// A number type of the format.
struct Dtype {
  std::string_view name;
  int bits;
  /// Undefined where LibTorch has no such type.
  at::ScalarType type;
};

/// All of them (safetensors 0.8), in the order of alignment by which the reference sorts a file.
inline constexpr Dtype dtypes[] = {
    {"BOOL", 8, at::kBool},
    {"F4", 4, at::ScalarType::Float4_e2m1fn_x2},
    {"F6_E2M3", 6, at::ScalarType::Undefined},
    {"F6_E3M2", 6, at::ScalarType::Undefined},
    {"U8", 8, at::kByte},
    {"I8", 8, at::kChar},
    {"F8_E5M2", 8, at::ScalarType::Float8_e5m2},
    {"F8_E4M3", 8, at::ScalarType::Float8_e4m3fn},
    {"F8_E8M0", 8, at::ScalarType::Float8_e8m0fnu},
    {"F8_E4M3FNUZ", 8, at::ScalarType::Float8_e4m3fnuz},
    {"F8_E5M2FNUZ", 8, at::ScalarType::Float8_e5m2fnuz},
    {"I16", 16, at::kShort},
    {"U16", 16, at::ScalarType::UInt16},
    {"F16", 16, at::kHalf},
    {"BF16", 16, at::kBFloat16},
    {"I32", 32, at::kInt},
    {"U32", 32, at::ScalarType::UInt32},
    {"F32", 32, at::kFloat},
    {"C64", 64, at::kComplexFloat},
    {"F64", 64, at::kDouble},
    {"I64", 64, at::kLong},
    {"U64", 64, at::ScalarType::UInt64},
};

inline constexpr std::uint64_t longest_header = 100'000'000;
inline constexpr std::size_t most_dimensions = 64;
inline constexpr const char* metadata_key = "__metadata__";

/// Text from a file for a message: short, and ASCII without what a terminal would obey.
inline std::string shown(std::string_view text) {
  constexpr std::size_t most = 160;
  std::string result(text.substr(0, most));
  for (char& c : result)
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7F) c = '?';
  return "'" + result + (text.size() > most ? "...'" : "'");
}

}  // namespace detail::safetensors

/// What the header of a safetensors file says of one tensor.
struct SafetensorsEntry {
  /// The format's name of the number type, such as "F32".
  std::string dtype;
  /// In numbers, even where several share a byte (F4).
  std::vector<std::int64_t> shape;
  /// The bytes begin .. end - 1 of the data that follow the header.
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

namespace detail::safetensors {

/// Takes the header's JSON as it is parsed, so that a hostile one costs no memory.
class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(std::string file, std::map<std::string, SafetensorsEntry>& entries,
               std::map<std::string, std::string>& metadata)
      : file_(std::move(file)), entries_(entries), metadata_(metadata) {}

  bool start_object(std::size_t) override {
    if (place_ == Place::outside) {
      place_ = Place::file;
    } else if (place_ == Place::file && key_ == metadata_key) {
      place_ = Place::metadata;
    } else if (place_ == Place::file) {
      place_ = Place::tensor;
      name_ = key_;
      has_ = {};
    } else {
      refuse("an object");
    }
    return true;
  }

  bool key(string_t& key) override {
    key_ = key;
    if (place_ == Place::file) {
      const bool repeated = key == metadata_key ? std::exchange(metadata_seen_, true)
                                                : !entries_.try_emplace(key).second;
      require(!repeated, file_, ": the name ", shown(key), " is there twice");
    } else if (place_ == Place::metadata) {
      require(metadata_.try_emplace(key).second, file_, ": the metadata key ", shown(key),
              " is there twice");
    } else {
      const auto field = std::find(fields.begin(), fields.end(), key);
      require(field != fields.end(), tensor(), "a key must be dtype, shape or data_offsets, got ",
              shown(key));
      const auto index = static_cast<std::size_t>(field - fields.begin());
      require(!std::exchange(has_[index], true), tensor(), shown(key), " is there twice");
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor)
      for (std::size_t i = 0; i < fields.size(); ++i)
        require(has_[i], tensor(), "no ", fields[i], " is given");
    place_ = place_ == Place::file ? Place::outside : Place::file;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::tensor || key_ == "dtype") refuse("a list");
    place_ = key_ == "shape" ? Place::shape : Place::offsets;
    offsets_ = 0;
    return true;
  }

  bool end_array() override {
    if (place_ == Place::offsets && offsets_ != 2) refuse(std::to_string(offsets_) + " of them");
    place_ = Place::tensor;
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::metadata) {
      metadata_[key_] = value;
    } else if (place_ == Place::tensor && key_ == "dtype") {
      entries_[name_].dtype = value;
    } else {
      refuse(shown(value));
    }
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    SafetensorsEntry& entry = entries_[name_];
    if (place_ == Place::shape) {
      if (value > std::numeric_limits<std::int64_t>::max()) refuse(std::to_string(value));
      require(entry.shape.size() < most_dimensions, tensor(), "shape must have at most ",
              most_dimensions, " dimensions");
      entry.shape.push_back(static_cast<std::int64_t>(value));
    } else if (place_ == Place::offsets && offsets_ < 2) {
      (offsets_++ == 0 ? entry.begin : entry.end) = value;
    } else {
      refuse(std::to_string(value));
    }
    return true;
  }

  bool null() override { return refuse("null"); }
  bool boolean(bool value) override { return refuse(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override { return refuse(std::to_string(value)); }
  bool number_float(number_float_t, const string_t& text) override { return refuse(shown(text)); }
  bool binary(binary_t&) override { return refuse("bytes"); }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception& error) override {
    require(false, file_, ": the header is not JSON in UTF-8, at its byte ", position, ": ",
            shown(error.what()));
    return false;
  }

 private:
  enum class Place { outside, file, metadata, tensor, shape, offsets };

  static constexpr std::array<std::string_view, 3> fields{"dtype", "shape", "data_offsets"};

  std::string tensor() const { return file_ + ": tensor " + shown(name_) + ": "; }

  /// Throws, saying what should have been where `found` was.
  bool refuse(const std::string& found) const {
    const char* expected = "an object";
    if (place_ == Place::metadata) expected = "a string";
    if (place_ == Place::tensor) expected = key_ == "dtype" ? "a string" : "a list";
    if (place_ == Place::shape) expected = "integers in [0, 2^63)";
    if (place_ == Place::offsets) expected = "two integers in [0, 2^64)";
    require(false, place_ < Place::tensor ? file_ + ": " : tensor(),
            place_ == Place::outside ? "the header" : shown(key_), " must be ", expected, ", got ",
            found);
    return false;
  }

  std::string file_;
  std::map<std::string, SafetensorsEntry>& entries_;
  std::map<std::string, std::string>& metadata_;
  Place place_ = Place::outside;
  bool metadata_seen_ = false;
  std::string key_;
  std::string name_;
  std::array<bool, fields.size()> has_{};
  int offsets_ = 0;
};

inline std::string json_text(const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::type_error&) {
    throw std::invalid_argument("save_safetensors: names and metadata must be UTF-8, got " +
                                shown(text));
  }
}

}  // namespace detail::safetensors

/// A safetensors file, open for reading.
///
/// The format is Hugging Face's: eight bytes with the length of a JSON header, the header, the
/// data. The header is checked as the reference does, and a little more: every byte of data belongs
/// to exactly one tensor, no name is given twice, nothing is unknown. The data are mapped and read
/// when they are used.
///
/// Throws std::runtime_error, naming file, tensor, range and value, for a file that cannot be read
/// or breaks a rule. Const member functions may be called from several threads at once.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path)
      : name_("safetensors file " + path.string()) {
    map(path);
    constexpr std::size_t prefix = 8;
    require(size_ >= prefix, name_, ": at least ", prefix, " bytes are needed, there are ", size_);
    std::uint64_t length = 0;
    std::memcpy(&length, region_->get_address(), prefix);
    const std::uint64_t most = std::min(detail::safetensors::longest_header, size_ - prefix);
    require(length <= most, name_, ": the header must take at most ", most, " bytes, got ", length);
    data_ = prefix + length;
    read_header({static_cast<const char*>(region_->get_address()) + prefix, length});
    check_entries();
  }

  /// The header's entries, by name.
  const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }

  /// The header's `__metadata__`; empty where there is none.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// The tensor of that name, on the CPU.
  ///
  /// It uses the mapped file itself where the data are aligned to the size of their numbers, and
  /// then keeps the mapping alive; else it is a copy. Writing to it never changes the file. The
  /// file must not be changed in place meanwhile; to replace it, as save_safetensors does, is safe.
  ///
  /// F4 comes as Float4_e2m1fn_x2, two numbers a byte, so that the last size is halved. Throws
  /// std::invalid_argument for an unknown name, std::runtime_error for a number type that LibTorch
  /// does not have (F6_E2M3, F6_E3M2).
  at::Tensor tensor(const std::string& name) const {
    const auto found = entries_.find(name);
    check(found != entries_.end(), name_, ": no tensor is named ",
          detail::safetensors::shown(name));
    const SafetensorsEntry& entry = found->second;
    const at::ScalarType type = dtype(name, entry).type;
    require(type != at::ScalarType::Undefined, describe(name), "LibTorch has no type for ",
            entry.dtype);
    std::vector<std::int64_t> shape = entry.shape;
    if (entry.dtype == "F4") {
      require(shape.back() % 2 == 0, describe(name),
              "LibTorch has F4 in pairs, so that the last size must be even, got shape ",
              at::IntArrayRef(shape));
      shape.back() /= 2;
    }
    const std::size_t bytes = entry.end - entry.begin;
    char* data = static_cast<char*>(region_->get_address()) + data_ + entry.begin;
    const auto options = at::TensorOptions().dtype(type);
    const bool aligned = reinterpret_cast<std::uintptr_t>(data) % c10::elementSize(type) == 0;
    if (aligned && bytes > 0)
      return at::from_blob(
          data, shape, [region = region_](void*) {}, options);
    at::Tensor copy = at::empty(shape, options);
    if (bytes > 0) std::memcpy(copy.mutable_data_ptr(), data, bytes);
    return copy;
  }

 private:
  using Entry = std::pair<const std::string, SafetensorsEntry>;

  void map(const std::filesystem::path& path) {
    namespace interprocess = boost::interprocess;
    std::error_code error;
    const auto type = std::filesystem::status(path, error).type();
    require(type != std::filesystem::file_type::not_found, name_, ": there is no such file");
    require(type != std::filesystem::file_type::directory, name_, ": this is a folder");
    require(!error && type == std::filesystem::file_type::regular, name_,
            ": cannot be read: ", error ? error.message() : "not a regular file");
    const auto bytes = std::filesystem::file_size(path, error);
    require(!error, name_, ": cannot be read: ", error.message());
    if (bytes == 0) return;
    try {
      const interprocess::file_mapping file(path.c_str(), interprocess::read_only);
      // As large as the file is now: it may have been replaced since.
      region_ = std::make_shared<interprocess::mapped_region>(file, interprocess::copy_on_write);
      size_ = region_->get_size();
    } catch (const interprocess::interprocess_exception& exception) {
      require(false, name_, ": cannot be read: ", exception.what());
    }
  }

  void read_header(std::string_view header) {
    require(header.starts_with('{'), name_, ": the header must begin with '{'");
    // nlohmann/json takes a NUL for the end of the text.
    const auto nul = header.find('\0');
    require(nul == header.npos, name_, ": the header is not JSON, its byte ", nul, " is 0");
    detail::safetensors::HeaderReader reader(name_, entries_, metadata_);
    nlohmann::json::sax_parse(header, &reader);
  }

  void check_entries() const {
    std::vector<const Entry*> in_file;
    for (const Entry& entry : entries_) in_file.push_back(&entry);
    std::sort(in_file.begin(), in_file.end(), [](const Entry* a, const Entry* b) {
      return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
    });
    std::uint64_t next = 0;
    const std::uint64_t bytes = size_ - data_;
    for (const Entry* item : in_file) {
      const auto& [name, entry] = *item;
      require(entry.begin == next && entry.begin <= entry.end && entry.end <= bytes, describe(name),
              "data_offsets must be [", next, ", n] with n in [", next, ", ", bytes, "], got [",
              entry.begin, ", ", entry.end, "]");
      const std::uint64_t needed = bytes_of(name, entry);
      require(entry.end - entry.begin == needed, describe(name), entry.dtype, " of shape ",
              at::IntArrayRef(entry.shape), " takes ", needed, " bytes, but data_offsets give ",
              entry.end - entry.begin);
      next = entry.end;
    }
    require(next == bytes, name_, ": the tensors take ", next, " bytes, but the file has ", bytes,
            " after the header");
  }

  std::uint64_t bytes_of(const std::string& name, const SafetensorsEntry& entry) const {
    constexpr std::uint64_t most = std::numeric_limits<std::int64_t>::max();
    auto bits = static_cast<std::uint64_t>(dtype(name, entry).bits);
    for (const std::int64_t size : entry.shape) {
      const auto factor = static_cast<std::uint64_t>(std::max<std::int64_t>(size, 1));
      require(bits <= most / factor, describe(name), "the sizes other than 0 of shape ",
              at::IntArrayRef(entry.shape), " must multiply to fewer than 2^63 bits");
      bits *= factor;
    }
    if (std::count(entry.shape.begin(), entry.shape.end(), 0) > 0) return 0;
    require(bits % 8 == 0, describe(name), entry.dtype, " must fill whole bytes, got shape ",
            at::IntArrayRef(entry.shape));
    return bits / 8;
  }

  const detail::safetensors::Dtype& dtype(const std::string& name,
                                          const SafetensorsEntry& entry) const {
    for (const auto& candidate : detail::safetensors::dtypes)
      if (candidate.name == entry.dtype) return candidate;
    throw std::runtime_error(describe(name) + "the format has no dtype " +
                             detail::safetensors::shown(entry.dtype));
  }

  std::string describe(const std::string& tensor) const {
    return name_ + ": tensor " + detail::safetensors::shown(tensor) + ": ";
  }

  std::string name_;
  std::shared_ptr<boost::interprocess::mapped_region> region_;
  std::uint64_t size_ = 0;
  std::uint64_t data_ = 0;
  std::map<std::string, SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// All tensors of a safetensors file, as SafetensorsFile::tensor gives them; its metadata go to
/// `metadata` if that is given. Throws std::runtime_error as SafetensorsFile does.
inline State load_safetensors(const std::filesystem::path& path,
                              std::map<std::string, std::string>* metadata = nullptr) {
  const SafetensorsFile file(path);
  State state;
  for (const auto& [name, entry] : file.entries()) state.insert(name, file.tensor(name));
  if (metadata != nullptr) *metadata = file.metadata();
  return state;
}

/// Writes a safetensors file, byte for byte as the reference writes it (which leaves the order of
/// two metadata or more to chance; here they are sorted).
///
/// Views are written as what they show, tensors that share memory each for itself, tensors of other
/// devices from the CPU. `path` is the old file or the new one, whatever happens: see
/// ReplacingFile.
///
/// Throws std::invalid_argument for a type that the format does not have, a tensor that is not
/// strided, a name that is not UTF-8 or is `__metadata__`; std::runtime_error when the file cannot
/// be written.
inline void save_safetensors(const std::filesystem::path& path, const State& state,
                             const std::map<std::string, std::string>& metadata = {}) {
  using namespace detail::safetensors;
  struct Item {
    std::string name;
    const Dtype* dtype;
    at::Tensor tensor;
  };
  std::vector<Item> items;
  for (const auto& [name, tensor] : state) {
    check(name != metadata_key, "save_safetensors: a tensor must not be named ", metadata_key);
    check(tensor.layout() == at::kStrided && !tensor.is_meta(), "save_safetensors: tensor ",
          shown(name), " must be strided and hold data, got layout ", tensor.layout(), " on ",
          tensor.device());
    const Dtype* dtype = std::begin(dtypes);
    while (dtype != std::end(dtypes) && dtype->type != tensor.scalar_type()) ++dtype;
    check(dtype != std::end(dtypes), "save_safetensors: tensor ", shown(name),
          ": the format has no dtype for ", tensor.scalar_type());
    items.push_back({name, dtype, tensor});
  }
  std::stable_sort(items.begin(), items.end(),
                   [](const Item& a, const Item& b) { return a.dtype > b.dtype; });

  std::string header = "{";
  const auto add = [&header](const std::string& key, const std::string& value) {
    if (header.back() != '{') header += ',';
    header += json_text(key) + ':' + value;
  };
  if (!metadata.empty()) {
    std::string pairs;
    for (const auto& [key, value] : metadata)
      pairs += (pairs.empty() ? "" : ",") + json_text(key) + ':' + json_text(value);
    add(metadata_key, '{' + pairs + '}');
  }
  std::uint64_t offset = 0;
  for (const auto& [name, dtype, tensor] : items) {
    std::vector<std::int64_t> shape = tensor.sizes().vec();
    if (dtype->name == "F4" && !shape.empty()) shape.back() *= 2;
    const std::uint64_t end = offset + tensor.nbytes();
    add(name, detail::concatenate(R"({"dtype":")", dtype->name, R"(","shape":)",
                                  nlohmann::json(shape).dump(), R"(,"data_offsets":[)", offset, ',',
                                  end, "]}"));
    offset = end;
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');
  check(header.size() <= longest_header, "save_safetensors: the header must take at most ",
        longest_header, " bytes, got ", header.size());

  ReplacingFile file(path);
  const std::uint64_t length = header.size();
  file.write(&length, sizeof length);
  file.write(header.data(), header.size());
  for (const Item& item : items) {
    const at::Tensor plain = item.tensor.detach().cpu().resolve_conj().resolve_neg().contiguous();
    file.write(plain.const_data_ptr(), plain.nbytes());
  }
  file.commit();
}

}  // namespace droppeft
