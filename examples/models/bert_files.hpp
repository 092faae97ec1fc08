#pragma once

#include <boost/crc.hpp>
#include <droppeft/core/check.hpp>
#include <droppeft/io/safetensors.hpp>
#include <droppeft/io/wordpiece.hpp>
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
    const auto size = [&](const char* key, std::int64_t most) {
      const auto& value = json.at(key);
      require(value.is_number_integer() && value >= 1 && value <= most, path.string(), ": ", key,
              " must be a whole number in [1, ", most, "], got ", value.dump());
      return value.get<std::int64_t>();
    };
    config.vocabulary = size("vocab_size", 10'000'000);
    config.width = size("hidden_size", 100'000);
    config.layers = size("num_hidden_layers", 1'000);
    config.heads = size("num_attention_heads", 1'000);
    config.inner = size("intermediate_size", 1'000'000);
    config.positions = size("max_position_embeddings", 1'000'000);
    config.token_types = size("type_vocab_size", 1'000);
    config.norm_epsilon = json.at("layer_norm_eps");
  } catch (const nlohmann::json::exception& error) {
    require(false, path.string(), " is not the config.json of a BERT model: ", error.what());
  }
  require(config.width % config.heads == 0, path.string(),
          ": hidden_size must be a multiple of num_attention_heads, got ", config.width, " and ",
          config.heads);
  return config;
}

/// The tokeniser of a model folder: vocab.txt, lower-casing and stripping accents as
/// tokenizer_config.json says, or as the uncased models do where there is none. Throws
/// std::runtime_error when a file is torn, or the vocabulary is larger than the model's.
inline droppeft::WordPiece read_tokenizer(const std::filesystem::path& folder,
                                          const BertConfig& config, std::size_t max_length) {
  droppeft::WordPieceOptions options{.max_length = max_length};
  const auto path = folder / "tokenizer_config.json";
  if (std::filesystem::exists(path)) try {
      const auto json = nlohmann::json::parse(std::ifstream(path));
      options.lower_case = json.value("do_lower_case", true);
      const auto strip = json.value("strip_accents", nlohmann::json());
      options.strip_accents = strip.is_null() ? options.lower_case : strip.get<bool>();
    } catch (const nlohmann::json::exception& error) {
      droppeft::require(false, path.string(), " is not a tokenizer_config.json: ", error.what());
    }
  droppeft::WordPiece tokenizer(folder / "vocab.txt", options);
  droppeft::require(tokenizer.size() <= config.vocabulary, (folder / "vocab.txt").string(), " has ",
                    tokenizer.size(), " tokens, but config.json says ", config.vocabulary);
  return tokenizer;
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
    if (tensor.dim() != 1) continue;
    crc.process_bytes(entry.key().data(), entry.key().size());
    crc.process_bytes(tensor.data_ptr<float>(), static_cast<std::size_t>(tensor.nbytes()));
  }
  return std::to_string(crc.checksum());
}
