#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <droppeft/core/state.hpp>
#include <droppeft/io/safetensors.hpp>
#include <droppeft/random/stream.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "models/bert.hpp"

namespace fs = std::filesystem;

inline std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_text(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// A folder that is gone at the end of its scope.
struct TemporaryFolder {
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "droppeft_XXXXXX").string();
    path = mkdtemp(name.data());
  }
  ~TemporaryFolder() { fs::remove_all(path); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  fs::path path;
};

/// A program that was started, with its standard streams in files.
class Program {
 public:
  Program(const fs::path& folder, std::vector<std::string> arguments, const std::string& input = "")
      : out_(folder / "stdout"), error_(folder / "stderr") {
    const fs::path in = folder / "stdin";
    write_text(in, input);
    std::vector<char*> argv;
    for (auto& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    process_ = fork();
    if (process_ == 0) {
      dup2(open(in.c_str(), O_RDONLY), 0);
      dup2(open(out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
      dup2(open(error_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
      execv(argv[0], argv.data());
      _exit(127);
    }
  }

  /// Exit code, or -1 when a signal ended it.
  int wait() {
    int status = 0;
    waitpid(process_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  void kill() { ::kill(process_, SIGKILL); }

  std::string output() const { return read_text(out_); }
  std::string errors() const { return read_text(error_); }

 private:
  fs::path out_, error_;
  pid_t process_;
};

/// Writes the folder of a two-layer BERT of width 16 with random weights, whose vocabulary is the
/// letters a to z.
inline void write_tiny_model(const fs::path& folder, std::uint64_t seed) {
  fs::create_directories(folder);
  std::string vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n";
  for (char letter = 'a'; letter <= 'z'; ++letter) vocabulary += std::string{letter, '\n'};
  write_text(folder / "vocab.txt", vocabulary);
  write_text(folder / "config.json",
             R"({"model_type": "bert", "hidden_act": "gelu", "vocab_size": 31, "hidden_size": 16,
                 "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
                 "max_position_embeddings": 32, "type_vocab_size": 2, "layer_norm_eps": 1e-12})");
  torch::manual_seed(seed);
  Bert bert(BertConfig{31, 16, 2, 2, 32, 32, 2, 1e-12});
  for (auto& parameter : bert->parameters())
    if (parameter.dim() == 1) {
      at::NoGradGuard no_grad;
      parameter.add_(at::randn_like(parameter), 0.05);
    }
  droppeft::save_safetensors(folder / "model.safetensors", droppeft::full_state(*bert));
}

/// Writes train.csv (120 rows) and test.csv (40) of three classes, each with letters of its own.
inline void write_tiny_data(const fs::path& folder) {
  fs::create_directories(folder);
  droppeft::Stream stream(1);
  const auto rows = [&](int count) {
    std::string text = "label,text\n";
    for (int row = 0; row < count; ++row) {
      text += "class" + std::to_string(row % 3) + ",\"";
      const auto length = 3 + stream() % 8;
      for (std::uint32_t i = 0; i < length; ++i)
        text += std::string{
            static_cast<char>('a' + (stream() % 12) + 5 * (static_cast<unsigned>(row) % 3)), ' '};
      text += "\"\n";
    }
    return text;
  };
  write_text(folder / "train.csv", rows(120));
  write_text(folder / "test.csv", rows(40));
}

inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}
