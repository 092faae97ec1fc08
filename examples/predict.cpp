// Labels texts, one a line on standard input, with a model and an adapter that federated_text
// wrote; answers each with one line of JSON: {"label": ..., "probability": ..., "text": ...}.

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <droppeft/io/safetensors.hpp>
#include <droppeft/peft/add_lora.hpp>
#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/bert.hpp"
#include "models/bert_files.hpp"

namespace {

void predict(const std::filesystem::path& folder, const std::filesystem::path& adapter) {
  using droppeft::require;
  std::map<std::string, std::string> metadata;
  const droppeft::State state = droppeft::load_safetensors(adapter, &metadata);
  const auto about = nlohmann::json::parse(metadata["federated_text"], nullptr, false);
  require(about.contains("labels"), adapter.string(), " is not an adapter of federated_text");
  const auto labels = about.at("labels").get<std::vector<std::string>>();

  const BertConfig config = read_bert_config(folder);
  TextClassifier model(config, static_cast<std::int64_t>(labels.size()));
  load_bert_weights(model->bert, folder);
  require(base_fingerprint(model) == about.at("base"), adapter.string(),
          " was trained on another model than ", folder.string());
  if (const std::int64_t rank = about.at("rank"); rank > 0)
    droppeft::add_lora(*model, {"query", "value"},
                       droppeft::LoraOptions(rank).alpha(2.0 * static_cast<double>(rank)));
  droppeft::load_state(*model, state);
  droppeft::merge_lora(*model);
  model->eval();

  const auto tokenizer = read_tokenizer(folder, config, about.at("max_length"));
  at::NoGradGuard no_grad;
  for (std::string line; std::getline(std::cin, line);) {
    const auto ids = tokenizer.encode(line);
    const at::Tensor probability = model->forward(at::tensor(ids).unsqueeze(0), {}).softmax(1)[0];
    const auto best = probability.argmax().item<std::int64_t>();
    const nlohmann::json answer{{"label", labels[static_cast<std::size_t>(best)]},
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
