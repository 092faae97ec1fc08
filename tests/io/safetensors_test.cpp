#include "droppeft/io/safetensors.hpp"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "support.hpp"

namespace {

using droppeft::load_safetensors;
using droppeft::SafetensorsFile;
using droppeft::save_safetensors;
using droppeft::State;
using Metadata = std::map<std::string, std::string>;

std::filesystem::path oracle(const std::string& name) {
  return std::filesystem::path(__FILE__).parent_path() / "../oracles/data" / name;
}

std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file.is_open());
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A folder of its own for a test, gone at its end.
class Folder {
 public:
  Folder()
      : path_(std::filesystem::temp_directory_path() /
              ("droppeft-test-" + std::to_string(std::random_device()()))) {
    std::filesystem::create_directory(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

  std::set<std::string> names() const {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_))
      names.insert(entry.path().filename());
    return names;
  }

 private:
  std::filesystem::path path_;
};

void write(const std::filesystem::path& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

/// A whole file: the header behind its length, then bytes 0, 1, 2, ...
std::string file_of(const std::string& header, std::size_t data) {
  std::uint64_t length = header.size();
  std::string content(reinterpret_cast<const char*>(&length), sizeof length);
  content += header;
  for (std::size_t i = 0; i < data; ++i) content.push_back(static_cast<char>(i));
  return content;
}

/// What is said when that file is opened, without the path.
std::string complaint(const std::string& content) {
  const Folder folder;
  const auto path = folder / "bad.safetensors";
  write(path, content);
  try {
    SafetensorsFile file(path);
  } catch (const std::runtime_error& error) {
    const std::string prefix = "safetensors file " + path.string() + ": ";
    const std::string message = error.what();
    CHECK(message.starts_with(prefix));
    CHECK(message.size() < prefix.size() + 600);
    return message.substr(prefix.size());
  }
  return "read";
}

std::string complaint(const std::string& header, std::size_t data) {
  return complaint(file_of(header, data));
}

/// Bits, types and shapes alike; NaN equals itself.
bool identical(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  const at::Tensor x = a.contiguous();
  const at::Tensor y = b.contiguous();
  return x.nbytes() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

/// Six numbers made of the bytes 0, 1, 2, ..., as the oracle script makes them.
at::Tensor six(at::ScalarType type, at::IntArrayRef shape) {
  const auto size = static_cast<std::int64_t>(c10::elementSize(type));
  const at::Tensor bytes = at::arange(6 * size, at::kByte);
  return (type == at::kBool ? bytes.remainder(2).to(type) : bytes.view(type)).view(shape).clone();
}

State six_of_each_type() {
  State state;
  for (const auto& [name, type] : std::vector<std::pair<std::string, at::ScalarType>>{
           {"bool", at::kBool},
           {"f4", at::ScalarType::Float4_e2m1fn_x2},
           {"u8", at::kByte},
           {"i8", at::kChar},
           {"f8_e5m2", at::kFloat8_e5m2},
           {"f8_e4m3", at::kFloat8_e4m3fn},
           {"f8_e8m0", at::ScalarType::Float8_e8m0fnu},
           {"f8_e4m3fnuz", at::kFloat8_e4m3fnuz},
           {"f8_e5m2fnuz", at::kFloat8_e5m2fnuz},
           {"i16", at::kShort},
           {"u16", at::kUInt16},
           {"f16", at::kHalf},
           {"bf16", at::kBFloat16},
           {"i32", at::kInt},
           {"u32", at::kUInt32},
           {"f32", at::kFloat},
           {"c64", at::kComplexFloat},
           {"f64", at::kDouble},
           {"i64", at::kLong},
           {"u64", at::kUInt64}}) {
    state.insert("a." + name, six(type, {3, 2}));
    state.insert("z." + name, six(type, {2, 3}));
  }
  return state;
}

State shapes() {
  State state;
  state.insert("scalar", at::scalar_tensor(1.5F));
  state.insert("empty", at::zeros({0}));
  state.insert("empty.matrix", at::zeros({2, 0, 3}, at::kLong));
  state.insert("deep", at::arange(4, at::kInt).view({1, 2, 1, 2, 1}));
  state.insert("odd", at::arange(3, at::kByte));
  state.insert("quote \" back \\ slash / tab \t line \n return \r feed \f bell \b",
               at::ones({1}, at::kLong));
  state.insert("control \x01 \x1f delete \x7f", at::full({1}, 2, at::kLong));
  state.insert("слой é 層 😀", at::full({1}, 3, at::kLong));
  state.insert("", at::full({1}, 4, at::kLong));
  return state;
}

void check_identical(const State& a, const State& b) {
  CHECK(a.size() == b.size());
  for (const auto& named : a) {
    CAPTURE(named.first);
    CHECK(identical(named.second, b.at(named.first)));
  }
}

const std::string two_bytes = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";

std::string entry(const std::string& fields) { return R"({"a":{)" + fields + "}}"; }

}  // namespace

TEST_CASE("a file of every type is read, and written byte for byte, as by the reference") {
  const Folder folder;
  Metadata metadata;
  const State read = load_safetensors(oracle("safetensors_dtypes.safetensors"), &metadata);
  check_identical(six_of_each_type(), read);
  CHECK(metadata == Metadata{{"format", "pt"}});
  save_safetensors(folder / "file", six_of_each_type(), metadata);
  CHECK(bytes_of(folder / "file") == bytes_of(oracle("safetensors_dtypes.safetensors")));
}

TEST_CASE("scalars, empty tensors and odd names are read and written as by the reference") {
  const Folder folder;
  Metadata metadata{{"left", "over"}};
  const State read = load_safetensors(oracle("safetensors_shapes.safetensors"), &metadata);
  check_identical(shapes(), read);
  CHECK(metadata.empty());
  save_safetensors(folder / "file", shapes());
  CHECK(bytes_of(folder / "file") == bytes_of(oracle("safetensors_shapes.safetensors")));
}

TEST_CASE("a file that is not laid out as the reference's is read, unaligned data by copying") {
  const SafetensorsFile file(oracle("safetensors_foreign.safetensors"));
  CHECK(file.metadata() == Metadata{{"a", "1 😀"}, {"b", "2"}});
  CHECK(file.entries().size() == 6);
  CHECK(file.entries().at("f6").dtype == "F6_E3M2");
  CHECK(file.entries().at("f4").shape == std::vector<std::int64_t>{2, 4});

  const at::Tensor bytes = at::arange(17, at::kByte);
  CHECK(identical(file.tensor("first"), bytes.slice(0, 0, 1)));
  CHECK(identical(file.tensor("last"), bytes.slice(0, 9, 17).clone().view(at::kFloat)));
  CHECK(file.tensor("last").data_ptr() != file.tensor("last").data_ptr());
  CHECK(file.tensor("empty").sizes() == at::IntArrayRef{0, 7});
  CHECK(
      identical(file.tensor("f4"),
                bytes.slice(0, 1, 5).clone().view(at::ScalarType::Float4_e2m1fn_x2).view({2, 2})));
}

TEST_CASE("a type that LibTorch lacks is refused when its tensor is asked for") {
  const auto path = oracle("safetensors_foreign.safetensors");
  const SafetensorsFile file(path);
  const std::string where = "safetensors file " + path.string() + ": ";
  CHECK_THROWS_WITH_AS(file.tensor("f6"),
                       (where + "tensor 'f6': LibTorch has no type for F6_E3M2").c_str(),
                       std::runtime_error);
  CHECK_THROWS_WITH_AS(file.tensor("odd"),
                       (where + "tensor 'odd': LibTorch has F4 in pairs, so that the last size "
                                "must be even, got shape [2, 1]")
                           .c_str(),
                       std::runtime_error);
  CHECK_THROWS_WITH_AS(file.tensor("none"), (where + "no tensor is named 'none'").c_str(),
                       std::invalid_argument);
  CHECK_THROWS_AS(load_safetensors(path), std::runtime_error);
}

TEST_CASE("aligned tensors use the mapped file, outlive it, and never write to it") {
  const Folder folder;
  State state;
  state.insert("x", at::arange(5, at::kDouble));
  save_safetensors(folder / "file", state);
  at::Tensor first;
  {
    const SafetensorsFile file(folder / "file");
    first = file.tensor("x");
    CHECK(first.data_ptr() == file.tensor("x").data_ptr());
  }
  first.mul_(2);
  CHECK(at::equal(load_safetensors(folder / "file").at("x"), state.at("x")));
  std::filesystem::remove(folder / "file");
  CHECK(at::equal(first, state.at("x") * 2));
}

TEST_CASE("a file may be replaced while its tensors are in use, even by them") {
  const Folder folder;
  State state;
  state.insert("x", at::arange(100000, at::kFloat));
  save_safetensors(folder / "file", state);
  const State mapped = load_safetensors(folder / "file");
  save_safetensors(folder / "file", 2 * mapped);
  save_safetensors(folder / "copy", mapped);
  CHECK(at::equal(mapped.at("x"), state.at("x")));
  CHECK(at::equal(load_safetensors(folder / "copy").at("x"), state.at("x")));
  CHECK(at::equal(load_safetensors(folder / "file").at("x"), state.at("x") * 2));
  CHECK(folder.names() == std::set<std::string>{"copy", "file"});
}

TEST_CASE("views are written as what they show") {
  const Folder folder;
  const at::Tensor base = at::arange(24, at::kFloat).view({4, 6});
  const at::Tensor complex = at::complex(base, base + 100);
  State state;
  state.insert("whole", base);
  state.insert("alias", base);
  state.insert("transposed", base.t());
  state.insert("sliced", base.slice(1, 1, 5, 2));
  state.insert("offset", base.slice(0, 2));
  state.insert("expanded", at::tensor({1.F, 2.F}).expand({3, 2}));
  state.insert("conjugated", complex.conj());
  state.insert("negated", at::imag(complex.conj()));
  state.insert("trained", base.clone().requires_grad_());
  state.insert("half", base.to(at::kHalf).t());
  state.insert("eighth", base.to(at::kFloat8_e4m3fn).t());
  save_safetensors(folder / "file", state);
  const State read = load_safetensors(folder / "file");
  for (const auto& named : state) {
    CAPTURE(named.first);
    const at::Tensor& tensor = read.at(named.first);
    CHECK(tensor.is_contiguous());
    CHECK(identical(named.second.detach().resolve_conj().resolve_neg(), tensor));
  }
  CHECK(read.at("whole").data_ptr() != read.at("alias").data_ptr());
  CHECK_FALSE(read.at("trained").requires_grad());
  CHECK(at::equal(read.at("negated"), -(base + 100)));
}

TEST_CASE("an empty state and metadata alone can be kept") {
  const Folder folder;
  save_safetensors(folder / "file", {});
  CHECK(bytes_of(folder / "file") == file_of("{}      ", 0));
  CHECK(load_safetensors(folder / "file").empty());
  const Metadata metadata{{"key \" é", "value \n"}, {"", ""}};
  save_safetensors(folder / "file", {}, metadata);
  CHECK(SafetensorsFile(folder / "file").metadata() == metadata);
}

TEST_CASE("what the reference refuses is refused, and the rest is read but for what is stricter") {
  // The format's description does not allow the first four, and LibTorch has no such shapes.
  const std::set<std::string> stricter{
      "leading space",      "name twice",         "metadata null",        "more keys",
      "shape 2^62 times 0", "shape 2^63 times 0", "shape wraps, times 0", "65 dimensions",
  };
  std::ifstream file(oracle("safetensors_headers.json"));
  const auto cases = nlohmann::json::parse(file).at("files");
  CHECK(cases.size() > 80);
  for (const auto& row : cases) {
    const auto name = row.at("name").get<std::string>();
    const auto hex = row.at("file").get<std::string>();
    std::string content;
    for (std::size_t i = 0; i < hex.size(); i += 2)
      content.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    CAPTURE(name);
    const std::string said = complaint(content);
    CAPTURE(said);
    CHECK((said == "read") == (row.at("accepted").get<bool>() && !stricter.contains(name)));
  }
}

TEST_CASE("each broken rule has its own message, with range and value") {
  CHECK(complaint("") == "at least 8 bytes are needed, there are 0");
  CHECK(complaint("1234567") == "at least 8 bytes are needed, there are 7");
  CHECK(complaint(file_of(two_bytes, 2).substr(0, 40)) ==
        "the header must take at most 32 bytes, got 53");
  CHECK(complaint(std::string(8, '\xff')) ==
        "the header must take at most 0 bytes, got 18446744073709551615");
  CHECK(complaint("[]", 0) == "the header must begin with '{'");
  CHECK(complaint(two_bytes + '\0', 2) == "the header is not JSON, its byte 53 is 0");
  CHECK(
      complaint("{\"a\xff\":1}", 0).starts_with("the header is not JSON in UTF-8, at its byte 4"));
  CHECK(complaint("{\"a\":", 0).starts_with("the header is not JSON in UTF-8, at its byte 6"));
  CHECK(complaint(R"({"a":[]})", 0) == "'a' must be an object, got a list");
  CHECK(complaint(R"({"a":null})", 0) == "'a' must be an object, got null");
  CHECK(complaint(R"({"a":{},"a":{}})", 0) == "tensor 'a': no dtype is given");
  CHECK(complaint(two_bytes.substr(0, 52) + "," + two_bytes.substr(1), 2) ==
        "the name 'a' is there twice");
  CHECK(complaint(R"({"__metadata__":{},"__metadata__":{}})", 0) ==
        "the name '__metadata__' is there twice");
  CHECK(complaint(R"({"__metadata__":{"k":"1","k":"2"}})", 0) ==
        "the metadata key 'k' is there twice");
  CHECK(complaint(R"({"__metadata__":{"k":1}})", 0) == "'k' must be a string, got 1");
  CHECK(complaint(R"({"__metadata__":{"k":{}}})", 0) == "'k' must be a string, got an object");
  CHECK(complaint(R"({"__metadata__":"k"})", 0) == "'__metadata__' must be an object, got 'k'");
  CHECK(complaint(entry(R"("dtype":"U8","shape":[2])"), 2) ==
        "tensor 'a': no data_offsets is given");
  CHECK(complaint(entry(R"("dtype":"U8","dtype":"U8")"), 2) ==
        "tensor 'a': 'dtype' is there twice");
  CHECK(complaint(entry(R"("extra":1)"), 2) ==
        "tensor 'a': a key must be dtype, shape or data_offsets, got 'extra'");
  CHECK(complaint(entry(R"("dtype":8)"), 2) == "tensor 'a': 'dtype' must be a string, got 8");
  CHECK(complaint(entry(R"("dtype":[])"), 2) == "tensor 'a': 'dtype' must be a string, got a list");
  CHECK(complaint(entry(R"("shape":2)"), 2) == "tensor 'a': 'shape' must be a list, got 2");
  CHECK(complaint(entry(R"("shape":[-2])"), 2) ==
        "tensor 'a': 'shape' must be integers in [0, 2^63), got -2");
  CHECK(complaint(entry(R"("shape":[2.5])"), 2) ==
        "tensor 'a': 'shape' must be integers in [0, 2^63), got '2.5'");
  CHECK(complaint(entry(R"("shape":[9223372036854775808])"), 2) ==
        "tensor 'a': 'shape' must be integers in [0, 2^63), got 9223372036854775808");
  CHECK(complaint(entry(R"("shape":[[1]])"), 2) ==
        "tensor 'a': 'shape' must be integers in [0, 2^63), got a list");
  CHECK(complaint(entry(R"("data_offsets":[0,1,2])"), 2) ==
        "tensor 'a': 'data_offsets' must be two integers in [0, 2^64), got 2");
  CHECK(complaint(entry(R"("data_offsets":[0])"), 2) ==
        "tensor 'a': 'data_offsets' must be two integers in [0, 2^64), got 1 of them");
  CHECK(complaint(entry(R"("data_offsets":[0,-1])"), 2) ==
        "tensor 'a': 'data_offsets' must be two integers in [0, 2^64), got -1");
  CHECK(complaint(entry(R"("dtype":"U9","shape":[2],"data_offsets":[0,2])"), 2) ==
        "tensor 'a': the format has no dtype 'U9'");
  CHECK(complaint(entry(R"("dtype":"U8","shape":[2],"data_offsets":[2,0])"), 2) ==
        "tensor 'a': data_offsets must be [0, n] with n in [0, 2], got [2, 0]");
  CHECK(complaint(entry(R"("dtype":"U8","shape":[4],"data_offsets":[0,4])"), 2) ==
        "tensor 'a': data_offsets must be [0, n] with n in [0, 2], got [0, 4]");
  CHECK(complaint(entry(R"("dtype":"U16","shape":[2,1],"data_offsets":[0,2])"), 2) ==
        "tensor 'a': U16 of shape [2, 1] takes 4 bytes, but data_offsets give 2");
  CHECK(complaint(entry(R"("dtype":"F4","shape":[3],"data_offsets":[0,2])"), 2) ==
        "tensor 'a': F4 must fill whole bytes, got shape [3]");
  CHECK(
      complaint(entry(R"("dtype":"U8","shape":[4294967296,4294967297],"data_offsets":[0,2])"), 2) ==
      "tensor 'a': the sizes other than 0 of shape [4294967296, 4294967297] must multiply to "
      "fewer than 2^63 bits");
  CHECK(complaint(two_bytes, 3) == "the tensors take 2 bytes, but the file has 3 after the header");
  CHECK(complaint("{}", 1) == "the tensors take 0 bytes, but the file has 1 after the header");
  CHECK(complaint(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                  R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                  3) == "tensor 'b': data_offsets must be [2, n] with n in [2, 3], got [1, 3]");
}

TEST_CASE("deep, long and rude headers cost little and say little") {
  const std::string deep = std::string(1000000, '[');
  CHECK(complaint("{\"a\":" + deep, 0) == "'a' must be an object, got a list");
  CHECK(complaint(entry("\"shape\":" + deep), 0) ==
        "tensor 'a': 'shape' must be integers in [0, 2^63), got a list");
  std::string ones = "1";
  for (int i = 0; i < 100000; ++i) ones += ",1";
  CHECK(complaint(entry("\"shape\":[" + ones + "]"), 0) ==
        "tensor 'a': shape must have at most 64 dimensions");
  const std::string said = complaint("{\"\\u001b[31m" + std::string(100000, 'x') + "\":1}", 0);
  CHECK(said.starts_with("'?[31mxxx"));
  CHECK(said.size() < 250);
  CHECK(complaint("{\"" + std::string(100000, 'x'), 0).size() < 300);
}

TEST_CASE("a header of more than 100 MB is refused unread") {
  const Folder folder;
  const auto path = folder / "long";
  std::uint64_t length = 100'000'001;
  write(path, std::string(reinterpret_cast<const char*>(&length), sizeof length));
  std::filesystem::resize_file(path, 200'000'000);  // sparse
  CHECK_THROWS_WITH_AS(SafetensorsFile{path},
                       ("safetensors file " + path.string() +
                        ": the header must take at most 100000000 bytes, got 100000001")
                           .c_str(),
                       std::runtime_error);
}

TEST_CASE("a torn file is refused wherever it was torn") {
  const std::string whole = bytes_of(oracle("safetensors_shapes.safetensors"));
  for (std::size_t size = 0; size < whole.size(); ++size)
    CHECK(complaint(whole.substr(0, size)) != "read");
}

TEST_CASE("what is not a readable file is refused by name") {
  const Folder folder;
  const auto said = [](const std::filesystem::path& path) {
    try {
      SafetensorsFile file(path);
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string("read");
  };
  const std::string where = "safetensors file " + folder.path().string();
  CHECK(said(folder / "none") == where + "/none: there is no such file");
  CHECK(said(folder.path()) == where + ": this is a folder");
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK(said(folder / "pipe") == where + "/pipe: cannot be read: not a regular file");

  write(folder / "secret", file_of(two_bytes, 2));
  std::filesystem::permissions(folder / "secret", std::filesystem::perms::none);
  // The superuser may read anything: be somebody else for a moment.
  const bool superuser = ::geteuid() == 0;
  if (superuser) std::filesystem::permissions(folder.path(), std::filesystem::perms::all);
  if (superuser && ::seteuid(65534) != 0) {
    MESSAGE("cannot give up the superuser's rights: reading without permission is not tested");
    return;
  }
  const std::string denied = said(folder / "secret");
  if (superuser) REQUIRE(::seteuid(0) == 0);
  CHECK(denied == where + "/secret: cannot be read: Permission denied");
}

TEST_CASE("what the format cannot hold is refused before anything is written") {
  const Folder folder;
  const auto refused = [&folder](const std::string& name, const at::Tensor& tensor) {
    State state;
    state.insert("fine", at::ones({2}));
    state.insert(name, tensor);
    try {
      save_safetensors(folder / "file", state);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string("written");
  };
  CHECK(refused("x", at::ones({2}, at::kComplexDouble)) ==
        "save_safetensors: tensor 'x': the format has no dtype for ComplexDouble");
  CHECK(refused("x", at::eye(2).to_sparse()) ==
        "save_safetensors: tensor 'x' must be strided and hold data, got layout Sparse on cpu");
  CHECK(refused("x", at::empty({2}, at::TensorOptions().device(at::kMeta))) ==
        "save_safetensors: tensor 'x' must be strided and hold data, got layout Strided on meta");
  CHECK(refused("__metadata__", at::ones({2})) ==
        "save_safetensors: a tensor must not be named __metadata__");
  CHECK(refused("\xff", at::ones({2}))
            .starts_with("save_safetensors: names and metadata must be UTF-8, got '"));
  CHECK_THROWS_AS(save_safetensors(folder / "file", {}, {{"k", "\xff"}}), std::invalid_argument);
  CHECK(folder.names().empty());
}

TEST_CASE("when writing fails the old file stays and nothing else is left") {
  const Folder folder;
  State state;
  state.insert("x", at::ones({100}));
  save_safetensors(folder / "file", state);
  const std::string before = bytes_of(folder / "file");

  // As if the disk were full after 64 KiB.
  State large;
  large.insert("x", at::ones({100000}));
  ::rlimit limit{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &limit) == 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const ::rlimit small{65536, limit.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  CHECK_THROWS_WITH_AS(save_safetensors(folder / "file", large),
                       ("cannot write " + (folder / "file").string() + ": File too large").c_str(),
                       std::runtime_error);
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  std::signal(SIGXFSZ, handler);
  CHECK(bytes_of(folder / "file") == before);
  CHECK(folder.names() == std::set<std::string>{"file"});

  std::filesystem::create_directory(folder / "folder");
  CHECK_THROWS_WITH_AS(
      save_safetensors(folder / "folder", state),
      ("cannot replace " + (folder / "folder").string() + ": Is a directory").c_str(),
      std::runtime_error);
  CHECK_THROWS_WITH_AS(save_safetensors(folder / "none/file", state),
                       ("cannot open the folder of " + (folder / "none/file").string() +
                        ": No such file or directory")
                           .c_str(),
                       std::runtime_error);
  CHECK(folder.names() == std::set<std::string>{"file", "folder"});
}

TEST_CASE("several threads may write to one folder, and even to one file") {
  const Folder folder;
  std::vector<std::jthread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&folder, i] {
      State state;
      state.insert("x", at::full({1000}, i));
      for (int repeat = 0; repeat < 5; ++repeat) {
        save_safetensors(folder / std::to_string(i), state);
        save_safetensors(folder / "shared", state);
      }
    });
  threads.clear();
  CHECK(folder.names() == std::set<std::string>{"0", "1", "2", "3", "shared"});
  for (int i = 0; i < 4; ++i)
    CHECK(at::equal(load_safetensors(folder / std::to_string(i)).at("x"), at::full({1000}, i)));
  const at::Tensor shared = load_safetensors(folder / "shared").at("x");
  CHECK(at::equal(shared, shared[0].expand({1000})));
}
