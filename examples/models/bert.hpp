#pragma once

#include <ATen/ATen.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <droppeft/core/attention.hpp>
#include <droppeft/core/rows.hpp>
#include <droppeft/dropout/dropout_add_norm.hpp>
#include <droppeft/dropout/layer_stack.hpp>
#include <droppeft/peft/linear.hpp>
#include <vector>

/// A BERT encoder made of droppeft's parts: every linear map can carry an adapter, every layer can
/// be dropped. Module paths are those of Hugging Face, so that its files load name by name.

/// Shape of a BERT encoder; the defaults are those of MiniLM-L6.
struct BertConfig {
  std::int64_t vocabulary = 30522;
  std::int64_t width = 384;
  std::int64_t layers = 6;
  std::int64_t heads = 12;
  std::int64_t inner = 1536;
  std::int64_t positions = 512;
  std::int64_t token_types = 2;
  double norm_epsilon = 1e-12;
};

/// Where the rows of the hidden states belong: [N, d], a row for each of the N tokens of B
/// sequences of at most S. Linear maps, norms and gelu cost nothing for padding, which only
/// attention sees.
struct BertBatch {
  /// mask [B, S], 1 for a token and 0 for padding, in the dtype of the hidden states, or undefined
  /// when there is no padding.
  BertBatch(const at::Tensor& ids, const at::Tensor& mask)
      : sequences(ids.size(0)), length(ids.size(1)) {
    if (!mask.defined()) return;
    places = mask.view(-1).nonzero().squeeze(1);
    bias = (mask - 1).mul_(1e9).unsqueeze(1).unsqueeze(1);
  }

  /// [N, d] -> [B S, d], zero where there is padding.
  at::Tensor pad(const at::Tensor& x) const {
    return places.defined() ? droppeft::scatter_rows(x, places, sequences * length) : x;
  }

  /// [B S, d] -> [N, d].
  at::Tensor unpad(const at::Tensor& x) const {
    return places.defined() ? droppeft::gather_rows(x, places) : x;
  }

  std::int64_t sequences, length;
  at::Tensor places;  // [N], each token's row among B S; undefined when there is no padding
  at::Tensor bias;    // [B, 1, 1, S], added to the attention scores: 0, or -1e9 for padding
};

/// query, key and value projections and scaled dot-product attention: [N, d] -> [N, d].
struct BertSelfAttentionImpl : torch::nn::Cloneable<BertSelfAttentionImpl> {
  explicit BertSelfAttentionImpl(const BertConfig& settings) : config(settings) { reset(); }

  void reset() override {
    query = register_module("query", droppeft::Linear(config.width, config.width));
    key = register_module("key", droppeft::Linear(config.width, config.width));
    value = register_module("value", droppeft::Linear(config.width, config.width));
  }

  at::Tensor forward(const at::Tensor& x, const BertBatch& batch) {
    const auto by_head = [&](const at::Tensor& y) {
      return batch.pad(y)
          .view({batch.sequences, batch.length, config.heads, config.width / config.heads})
          .transpose(1, 2);
    };
    const at::Tensor y = droppeft::attention(by_head(query->forward(x)), by_head(key->forward(x)),
                                             by_head(value->forward(x)), batch.bias);
    return batch.unpad(y.transpose(1, 2).reshape({-1, config.width}));
  }

  BertConfig config;
  droppeft::Linear query{nullptr}, key{nullptr}, value{nullptr};
};
TORCH_MODULE(BertSelfAttention);

/// LayerNorm(dense(x) + residual).
struct BertOutputImpl : torch::nn::Cloneable<BertOutputImpl> {
  BertOutputImpl(const BertConfig& settings, std::int64_t features)
      : config(settings), in_features(features) {
    reset();
  }

  void reset() override {
    dense = register_module("dense", droppeft::Linear(in_features, config.width));
    norm = register_module(
        "LayerNorm", droppeft::DropoutAddNorm(
                         droppeft::DropoutAddNormOptions(config.width).eps(config.norm_epsilon)));
  }

  at::Tensor forward(const at::Tensor& x, const at::Tensor& residual) {
    return norm->forward(dense->forward(x), residual);
  }

  BertConfig config;
  std::int64_t in_features;
  droppeft::Linear dense{nullptr};
  droppeft::DropoutAddNorm norm{nullptr};
};
TORCH_MODULE(BertOutput);

struct BertAttentionImpl : torch::nn::Cloneable<BertAttentionImpl> {
  explicit BertAttentionImpl(const BertConfig& settings) : config(settings) { reset(); }

  void reset() override {
    self = register_module("self", BertSelfAttention(config));
    output = register_module("output", BertOutput(config, config.width));
  }

  at::Tensor forward(const at::Tensor& x, const BertBatch& batch) {
    return output->forward(self->forward(x, batch), x);
  }

  BertConfig config;
  BertSelfAttention self{nullptr};
  BertOutput output{nullptr};
};
TORCH_MODULE(BertAttention);

/// gelu(dense(x)).
struct BertIntermediateImpl : torch::nn::Cloneable<BertIntermediateImpl> {
  explicit BertIntermediateImpl(const BertConfig& settings) : config(settings) { reset(); }

  void reset() override {
    dense = register_module("dense", droppeft::Linear(config.width, config.inner));
  }

  at::Tensor forward(const at::Tensor& x) { return at::gelu(dense->forward(x)); }

  BertConfig config;
  droppeft::Linear dense{nullptr};
};
TORCH_MODULE(BertIntermediate);

/// One encoder layer: [N, d] -> [N, d].
///
/// With adapters on query and value only, fp32, T = N = B S tokens, width d, a heads, it keeps for
/// backward: x, q, k, v, the first norm's output (d each) and gelu's input (4 d): 9 d floats, 36 d
/// T bytes; beside them 4 T bytes a norm, the low-rank products and, where there is padding, the
/// mask. Its own output, which the second norm keeps, is the next layer's x. Sequences of more than
/// 256 tokens keep attention's output and log-sum-exps too: (40 d + 4 a) T bytes.
struct BertLayerImpl : torch::nn::Cloneable<BertLayerImpl> {
  explicit BertLayerImpl(const BertConfig& settings) : config(settings) { reset(); }

  void reset() override {
    attention = register_module("attention", BertAttention(config));
    intermediate = register_module("intermediate", BertIntermediate(config));
    output = register_module("output", BertOutput(config, config.inner));
  }

  at::Tensor forward(const at::Tensor& x, const BertBatch& batch) {
    const at::Tensor y = attention->forward(x, batch);
    return output->forward(intermediate->forward(y), y);
  }

  BertConfig config;
  BertAttention attention{nullptr};
  BertIntermediate intermediate{nullptr};
  BertOutput output{nullptr};
};
TORCH_MODULE(BertLayer);

/// Words, positions and the first token type, normalised: ids [B, S] -> [N, d].
struct BertEmbeddingsImpl : torch::nn::Cloneable<BertEmbeddingsImpl> {
  explicit BertEmbeddingsImpl(const BertConfig& settings) : config(settings) { reset(); }

  void reset() override {
    const auto table = [&](const char* name, std::int64_t rows) {
      return register_module(name, torch::nn::Embedding(rows, config.width));
    };
    words = table("word_embeddings", config.vocabulary);
    places = table("position_embeddings", config.positions);
    types = table("token_type_embeddings", config.token_types);
    norm = register_module(
        "LayerNorm",
        torch::nn::LayerNorm(torch::nn::LayerNormOptions({config.width}).eps(config.norm_epsilon)));
  }

  at::Tensor forward(const at::Tensor& ids, const BertBatch& batch) {
    const at::Tensor position = places->weight.narrow(0, 0, ids.size(1)) + types->weight[0];
    const at::Tensor x = (words->forward(ids) + position).view({-1, config.width});
    return norm->forward(batch.unpad(x));
  }

  BertConfig config;
  torch::nn::Embedding words{nullptr}, places{nullptr}, types{nullptr};
  torch::nn::LayerNorm norm{nullptr};
};
TORCH_MODULE(BertEmbeddings);

struct BertEncoderImpl : torch::nn::Cloneable<BertEncoderImpl> {
  explicit BertEncoderImpl(const BertConfig& settings) : config(settings) { reset(); }

  void reset() override {
    std::vector<BertLayer> blocks;
    for (std::int64_t i = 0; i < config.layers; ++i) blocks.emplace_back(config);
    layer = register_module("layer", droppeft::LayerStack<BertLayer>(std::move(blocks)));
  }

  at::Tensor forward(const at::Tensor& x, const BertBatch& batch) {
    return layer->forward(x, batch);
  }

  BertConfig config;
  droppeft::LayerStack<BertLayer> layer{nullptr};
};
TORCH_MODULE(BertEncoder);

/// ids [B, S] int64; mask [B, S] float, 1 for a token and 0 for padding, or undefined when there is
/// no padding -> hidden states [B, S, d] in the weights' dtype, zero where there is padding. All
/// tokens are of type 0 and every layer is post-norm, without BERT's own dropout.
struct BertImpl : torch::nn::Cloneable<BertImpl> {
  explicit BertImpl(const BertConfig& settings) : config(settings) { reset(); }

  void reset() override {
    embeddings = register_module("embeddings", BertEmbeddings(config));
    encoder = register_module("encoder", BertEncoder(config));
  }

  at::Tensor forward(const at::Tensor& ids, const at::Tensor& mask) {
    const auto dtype = embeddings->words->weight.scalar_type();
    const BertBatch batch(ids, mask.defined() ? mask.to(dtype) : mask);
    const at::Tensor hidden = encoder->forward(embeddings->forward(ids, batch), batch);
    return batch.pad(hidden).view({ids.size(0), ids.size(1), config.width});
  }

  BertConfig config;
  BertEmbeddings embeddings{nullptr};
  BertEncoder encoder{nullptr};
};
TORCH_MODULE(Bert);

/// Mean of the hidden states over the tokens: [B, S, d], mask as for Bert -> [B, d].
inline at::Tensor mean_pool(const at::Tensor& hidden, const at::Tensor& mask) {
  if (!mask.defined()) return hidden.mean(1);
  const at::Tensor weights = mask / mask.sum(1, /*keepdim=*/true);
  return at::bmm(weights.unsqueeze(1), hidden).squeeze(1);
}

/// A BERT encoder, masked mean pooling and a linear head: ids, mask as for Bert -> logits [B, C].
/// Pooling and head are fp32, whatever the encoder is.
struct TextClassifierImpl : torch::nn::Cloneable<TextClassifierImpl> {
  TextClassifierImpl(const BertConfig& settings, std::int64_t class_count)
      : config(settings), classes(class_count) {
    reset();
  }

  void reset() override {
    bert = register_module("bert", Bert(config));
    head = register_module("classifier", droppeft::Linear(config.width, classes));
  }

  at::Tensor forward(const at::Tensor& ids, const at::Tensor& mask) {
    return head->forward(mean_pool(bert->forward(ids, mask).to(at::kFloat), mask));
  }

  BertConfig config;
  std::int64_t classes;
  Bert bert{nullptr};
  droppeft::Linear head{nullptr};
};
TORCH_MODULE(TextClassifier);
