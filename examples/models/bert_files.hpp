#pragma once

#include <boost/crc.hpp>
#include <droppeft/core/check.hpp>
#include <droppeft/io/safetensors.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "models/bert.hpp"

/// Reads the shape of a BERT encoder from Hugging Face's config.json. Throws std::runtime_error
/// naming the file and the entry when it is missing, torn, or of a model that Bert is not.
inline BertConfig read_bert_config(const std::filesystem::path& folder) {
  using droppeft::require;
  const auto path = folder / "config.json";
  std::ifstream file(path);
  require(file.good(), "cannot read ", path.string(),
          ": a model folder holds config.json, model.safetensors and vocab.txt");
  BertConfig config;
  try {
    const auto json = nlohmann::json::parse(file);
    const auto expect = [&](const char* key, const char* wanted) {
      const std::string value = json.value(key, wanted);
      require(value == wanted, path.string(), ": ", key, " must be ", wanted, ", got ", value);
    };
    expect("model_type", "bert");
    expect("hidden_act", "gelu");
    expect("position_embedding_type", "absolute");
    config.vocabulary = json.at("vocab_size");
    config.width = json.at("hidden_size");
    config.layers = json.at("num_hidden_layers");
    config.heads = json.at("num_attention_heads");
    config.inner = json.at("intermediate_size");
    config.positions = json.at("max_position_embeddings");
    config.token_types = json.at("type_vocab_size");
    config.norm_epsilon = json.at("layer_norm_eps");
  } catch (const nlohmann::json::exception& error) {
    require(false, path.string(), " is not the config.json of a BERT model: ", error.what());
  }
  require(config.heads > 0 && config.width > 0 && config.width % config.heads == 0, path.string(),
          ": hidden_size must be a positive multiple of num_attention_heads, got ", config.width,
          " and ", config.heads);
  return config;
}

/// Gives `bert` the weights of `folder`/model.safetensors, mapped rather than copied where the file
/// allows. Names may begin with "bert."; tensors that the encoder has no use for are left out.
/// Throws std::runtime_error when one is missing or has another shape.
inline void load_bert_weights(Bert& bert, const std::filesystem::path& folder) {
  const auto path = folder / "model.safetensors";
  const droppeft::State weights = droppeft::load_safetensors(path);
  for (auto& entry : bert->named_parameters()) {
    const std::string& name = entry.key();
    const std::string prefixed = "bert." + name;
    const std::string& key = weights.contains(prefixed) ? prefixed : name;
    droppeft::require(weights.contains(key), path.string(), " has no tensor '", name, "'");
    const at::Tensor& weight = weights.at(key);
    droppeft::require(weight.sizes() == entry.value().sizes(), path.string(), ": '", name,
                      "' has shape ", weight.sizes(), ", but config.json says ",
                      entry.value().sizes());
    entry.value().set_data(weight.to(at::kFloat));
  }
}

/// A number that tells one base model from another: CRC-32 of its vectors (biases and norms).
inline std::string base_fingerprint(const TextClassifier& model) {
  boost::crc_32_type crc;
  for (const auto& entry : model->bert->named_parameters()) {
    const at::Tensor& tensor = entry.value();
    if (tensor.dim() != 1 || entry.key().find("lora") != std::string::npos) continue;
    crc.process_bytes(entry.key().data(), entry.key().size());
    crc.process_bytes(tensor.data_ptr<float>(), static_cast<std::size_t>(tensor.nbytes()));
  }
  return std::to_string(crc.checksum());
}
