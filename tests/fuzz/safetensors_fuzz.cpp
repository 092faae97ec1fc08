// Any file must be read or refused with a standard exception; what is read can be written, and is
// then read again the same. How to run it: README.md.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "droppeft/io/safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto folder = std::filesystem::temp_directory_path();
  static const auto path = folder / ("droppeft-fuzz-" + std::to_string(::getpid()));
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    std::map<std::string, std::string> metadata;
    const droppeft::State state = droppeft::load_safetensors(path, &metadata);
    droppeft::save_safetensors(path, state, metadata);
    const droppeft::State again = droppeft::load_safetensors(path);
    if (again.size() != state.size()) std::abort();
    for (const auto& [name, tensor] : state) {
      const at::Tensor& other = again.at(name);
      if (other.sizes() != tensor.sizes() || other.dtype() != tensor.dtype() ||
          (tensor.nbytes() > 0 &&
           std::memcmp(other.const_data_ptr(), tensor.const_data_ptr(), tensor.nbytes()) != 0))
        std::abort();
    }
  } catch (const std::runtime_error&) {
  }
  return 0;
}
