// Labels texts, one a line on standard input, with a model and an adapter that federated_text
// wrote; answers each with one line of JSON: {"label": ..., "probability": ..., "text": ...}.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdlib>
#include <droppeft/io/safetensors.hpp>
#include <droppeft/peft/add_lora.hpp>
#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "models/bert.hpp"
#include "models/bert_files.hpp"

namespace {

using droppeft::require;

/// What federated_text says of an adapter, in the file's metadata.
struct About {
  std::vector<std::string> labels;
  std::int64_t rank, max_length;
  std::string base;
};

About about_of(const std::map<std::string, std::string>& metadata, const BertConfig& config) {
  const auto found = metadata.find("federated_text");
  require(found != metadata.end(), "not an adapter of federated_text");
  const auto json = nlohmann::json::parse(found->second);
  const auto range = [&](const char* name, std::int64_t least, std::int64_t most) {
    const std::int64_t value = json.at(name);
    require(value >= least && value <= most, name, " must be in [", least, ", ", most, "], got ",
            value);
    return value;
  };
  return {.labels = json.at("labels"),
          .rank = range("rank", 0, config.width),
          .max_length = range("max_length", 3, config.positions),
          .base = json.at("base")};
}

/// Puts an adapter into a model of its own, or throws what is wrong with the file.
TextClassifier adapted(const std::filesystem::path& folder, const BertConfig& config,
                       const About& about, const droppeft::State& state) {
  TextClassifier model(config, static_cast<std::int64_t>(about.labels.size()));
  load_bert_weights(model->bert, folder);
  require(base_fingerprint(model) == about.base, "trained on another model than ", folder.string());
  if (about.rank > 0)
    droppeft::add_lora(
        *model, {"query", "value"},
        droppeft::LoraOptions(about.rank).alpha(2.0 * static_cast<double>(about.rank)));
  for (const auto& [name, tensor] : state)
    require(at::isfinite(tensor).all().item<bool>(), "'", name, "' holds NaN or infinity");
  droppeft::load_state(*model, state);
  droppeft::merge_lora(*model);
  model->eval();
  return model;
}

void predict(const std::filesystem::path& folder, const std::filesystem::path& adapter) {
  const BertConfig config = read_bert_config(folder);
  std::map<std::string, std::string> metadata;
  const droppeft::State state = droppeft::load_safetensors(adapter, &metadata);
  About about;
  TextClassifier model(nullptr);
  try {
    about = about_of(metadata, config);
    model = adapted(folder, config, about, state);
  } catch (const std::exception& error) {
    throw std::runtime_error(adapter.string() + ": " + error.what());
  }

  const auto tokenizer = read_tokenizer(folder, config, static_cast<std::size_t>(about.max_length));
  at::NoGradGuard no_grad;
  for (std::string line; std::getline(std::cin, line);) {
    const auto ids = tokenizer.encode(line);
    const at::Tensor probability = model->forward(at::tensor(ids).unsqueeze(0), {}).softmax(1)[0];
    const auto best = probability.argmax().item<std::int64_t>();
    const nlohmann::json answer{{"label", about.labels[static_cast<std::size_t>(best)]},
                                {"probability", probability[best].item<float>()},
                                {"text", line}};
    std::cout << answer.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << std::endl;
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Labels the lines of standard input with an adapter that federated_text wrote.",
               "predict");
  std::filesystem::path model, adapter;
  auto* option = app.add_option("--model", model, "folder of a Hugging Face BERT");
  option->envname("DROPPEFT_MODEL_DIR")->required();
  app.add_option("--adapter", adapter, "adapter.safetensors")->required();
  try {
    app.parse(argc, argv);
    predict(model, adapter);
    return 0;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const std::exception& error) {
    const std::string message = error.what();
    std::cerr << "predict: " << message.substr(0, message.find('\n')) << "\n";
    return 2;
  }
}
