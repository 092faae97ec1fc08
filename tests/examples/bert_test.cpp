// The comparison with transformers needs the model that the oracle was made with: the environment
// variable DROPPEFT_MODEL_DIR names its folder (config.json, model.safetensors).
#include "models/bert.hpp"

#include <algorithm>
#include <cstdlib>
#include <droppeft/core/module.hpp>
#include <droppeft/core/state.hpp>
#include <droppeft/dropout/gate.hpp>
#include <droppeft/io/safetensors.hpp>
#include <droppeft/peft/add_lora.hpp>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "models/bert_files.hpp"
#include "support.hpp"

namespace {

const BertConfig small{.vocabulary = 50,
                       .width = 32,
                       .layers = 4,
                       .heads = 4,
                       .inner = 64,
                       .positions = 20,
                       .token_types = 2,
                       .norm_epsilon = 1e-12};

/// A batch of 5 texts of 6 to 10 tokens.
struct Batch {
  at::Tensor ids, mask, labels;
};
Batch some_batch() {
  Batch batch{torch::randint(small.vocabulary, {5, 10}, torch::kLong), torch::zeros({5, 10}),
              torch::randint(3, {5}, torch::kLong)};
  for (std::int64_t i = 0; i < 5; ++i) batch.mask[i].slice(0, 0, 6 + i).fill_(1);
  return batch;
}

/// A classifier with LoRA on query and value and no zero in it.
TextClassifier adapted(const BertConfig& config) {
  TextClassifier model(config, 3);
  droppeft::add_lora(*model, {"query", "value"}, droppeft::LoraOptions(2));
  droppeft::freeze(*model->head, false);
  torch::NoGradGuard no_grad;
  for (auto& parameter : model->parameters()) parameter.normal_(0, 0.2);
  return model;
}

struct Step {
  at::Tensor loss, hidden;
  torch::OrderedDict<std::string, at::Tensor> gradients;  // of what got one
};
Step step(TextClassifier& model, const Batch& batch) {
  model->zero_grad();
  Step result;
  result.hidden = model->bert->forward(batch.ids, batch.mask);
  result.loss = at::cross_entropy_loss(model->head->forward(mean_pool(result.hidden, batch.mask)),
                                       batch.labels);
  result.loss.backward();
  for (const auto& entry : model->named_parameters())
    if (entry.value().grad().defined()) result.gradients.insert(entry.key(), entry.value().grad());
  return result;
}

double relative_error(const at::Tensor& got, const at::Tensor& expected) {
  const at::Tensor exact = expected.to(torch::kDouble);
  return ((got.to(torch::kDouble) - exact).norm() / exact.norm()).item<double>();
}

double largest_error(const at::Tensor& got, const at::Tensor& expected) {
  const at::Tensor exact = expected.to(torch::kDouble);
  return ((got.to(torch::kDouble) - exact).abs().max() / exact.abs().max()).item<double>();
}

}  // namespace

TEST_CASE("hidden states and sentence vectors are those of transformers") {
  const char* folder = std::getenv("DROPPEFT_MODEL_DIR");
  if (folder == nullptr) {
    MESSAGE("skipped: DROPPEFT_MODEL_DIR does not name a model folder");
    return;
  }
  const auto here = std::filesystem::path(__FILE__).parent_path();
  const auto oracle = droppeft::load_safetensors(here / "../oracles/data/bert.safetensors");
  const at::Tensor lengths = oracle.at("lengths").to(torch::kLong);
  const at::Tensor directions = oracle.at("directions"), expected = oracle.at("projected");
  const std::vector<at::Tensor> texts =
      oracle.at("ids")
          .to(torch::kLong)
          .split_with_sizes(
              {lengths.data_ptr<std::int64_t>(), static_cast<std::size_t>(lengths.numel())});
  REQUIRE(texts.size() == 1000);

  Bert bert(read_bert_config(folder));
  load_bert_weights(bert, folder);
  bert->eval();
  torch::NoGradGuard no_grad;
  const at::Tensor none;

  for (std::int64_t i = 0; i < 3; ++i) {
    const auto hidden = bert->forward(texts[static_cast<std::size_t>(i)].unsqueeze(0), none)[0];
    const auto& whole = oracle.at("hidden." + std::to_string(i));
    CHECK(relative_error(hidden, whole) < 1e-5);  // Euclidean norm of all hidden states of a text
    CHECK(largest_error(hidden, whole) < 1e-5);   // greatest difference over greatest value
  }

  // In batches of like length, padded, and a few texts alone, without a mask.
  std::vector<std::size_t> order(texts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return texts[a].size(0) < texts[b].size(0);
  });
  double worst = 0, worst_element = 0, worst_alone = 0;
  for (std::size_t first = 0; first < order.size(); first += 40) {
    std::vector<at::Tensor> rows, ones;
    for (std::size_t i = first; i < first + 40; ++i) {
      rows.push_back(texts[order[i]]);
      ones.push_back(torch::ones({texts[order[i]].size(0)}));
    }
    const at::Tensor ids = at::pad_sequence(rows, true), mask = at::pad_sequence(ones, true);
    const at::Tensor got =
        at::mm(mean_pool(bert->forward(ids, mask), mask).to(torch::kDouble), directions);
    for (std::size_t i = first; i < first + 40; ++i) {
      const auto row = got[static_cast<std::int64_t>(i - first)];
      const auto exact = expected[static_cast<std::int64_t>(order[i])];
      worst = std::max(worst, relative_error(row, exact));
      worst_element = std::max(worst_element, largest_error(row, exact));
    }
    const at::Tensor alone = mean_pool(bert->forward(rows[0].unsqueeze(0), none), none);
    worst_alone =
        std::max(worst_alone, relative_error(at::mm(alone.to(torch::kDouble), directions)[0],
                                             expected[static_cast<std::int64_t>(order[first])]));
  }
  CHECK(worst < 1e-5);  // Euclidean norm of a text's mean hidden state on eight directions
  CHECK(worst_element < 1e-5);
  CHECK(worst_alone < 1e-5);
}

TEST_CASE("what stands in the padding changes nothing, nor does its length") {
  torch::manual_seed(1);
  auto model = adapted(small);
  auto batch = some_batch();
  torch::NoGradGuard no_grad;
  const auto logits = model->forward(batch.ids, batch.mask);
  const auto real = batch.mask.to(torch::kLong);
  CHECK(torch::equal(model->forward(batch.ids * real + 7 * (1 - real), batch.mask), logits));

  const auto longer = [](const at::Tensor& x) { return at::constant_pad_nd(x, {0, 6}); };
  CHECK(torch::allclose(model->forward(longer(batch.ids), longer(batch.mask)), logits, 1e-5, 1e-6));
  for (std::int64_t i = 0; i < 5; ++i) {
    const auto alone = model->forward(batch.ids.slice(0, i, i + 1).slice(1, 0, 6 + i), {});
    CHECK(torch::allclose(alone[0], logits[i], 1e-5, 1e-6));
  }
}

TEST_CASE("with all gates open the encoder is its layers one after the other, bit for bit") {
  torch::manual_seed(2);
  auto model = adapted(small);
  const auto batch = some_batch();
  model->train();
  const Step gated = [&] {
    const droppeft::PlanScope scope(*model, droppeft::Plan(4));
    return step(model, batch);
  }();

  model->zero_grad();
  const BertBatch rows(batch.ids, batch.mask);
  at::Tensor hidden = model->bert->embeddings->forward(batch.ids, rows);
  for (auto& layer : model->bert->encoder->layer->layers) hidden = layer->forward(hidden, rows);
  hidden = rows.pad(hidden).view({5, 10, small.width});
  at::cross_entropy_loss(model->head->forward(mean_pool(hidden, batch.mask)), batch.labels)
      .backward();

  CHECK(torch::equal(hidden, gated.hidden));
  CHECK(gated.gradients.size() == 4 * 4 + 2);
  for (const auto& entry : gated.gradients) {
    CAPTURE(entry.key());
    CHECK(torch::equal(model->named_parameters()[entry.key()].grad(), entry.value()));
  }
}

TEST_CASE("a dropped layer is one that the model was built without, bit for bit") {
  torch::manual_seed(3);
  auto model = adapted(small);
  const auto batch = some_batch();
  model->train();
  const auto path = [](std::size_t layer) {
    return "bert.encoder.layer." + std::to_string(layer) + ".";
  };
  for (std::size_t dropped = 0; dropped < 4; ++dropped) {
    CAPTURE(dropped);
    droppeft::Plan plan(4);
    plan.set(dropped, false);
    const Step with = [&] {
      const droppeft::PlanScope scope(*model, plan);
      return step(model, batch);
    }();

    // The name in the shorter model of what has `name` in the whole one; empty for what it lacks.
    const auto renamed = [&](const std::string& name) {
      for (std::size_t layer = dropped; layer < 4; ++layer)
        if (name.starts_with(path(layer)))
          return layer == dropped ? std::string()
                                  : path(layer - 1) + name.substr(path(layer).size());
      return name;
    };
    BertConfig config = small;
    config.layers = 3;
    auto shorter = adapted(config);
    droppeft::State state;
    for (const auto& [name, tensor] : droppeft::full_state(*model))
      if (!renamed(name).empty()) state.insert(renamed(name), tensor);
    CHECK(state.size() == droppeft::full_state(*shorter).size());
    droppeft::load_state(*shorter, state);
    const Step without = step(shorter, batch);

    CHECK(torch::equal(with.hidden, without.hidden));
    CHECK(torch::equal(with.loss, without.loss));
    CHECK(with.gradients.size() == without.gradients.size());
    for (const auto& entry : with.gradients) {
      CAPTURE(entry.key());
      REQUIRE(without.gradients.contains(renamed(entry.key())));
      CHECK(torch::equal(entry.value(), without.gradients[renamed(entry.key())]));
    }
  }
}

TEST_CASE("LoRA on query and value of MiniLM's shape trains 73,728 numbers and starts at nothing") {
  torch::manual_seed(4);
  BertConfig config;
  config.vocabulary = 50;
  Bert bert(config);
  const auto ids = torch::randint(50, {2, 9}, torch::kLong);
  const auto before = bert->forward(ids, {}).detach();
  const auto paths =
      droppeft::add_lora(*bert, {"query", "value"}, droppeft::LoraOptions(8).alpha(16));
  CHECK(paths.size() == 12);
  CHECK(paths.front() == "encoder.layer.0.attention.self.query");
  CHECK(droppeft::trainable_parameter_count(*bert) == 73'728);
  CHECK(torch::allclose(bert->forward(ids, {}), before, 1e-5, 1e-6));
}

TEST_CASE("a folder that holds no model is named") {
  const std::filesystem::path folder = "no such folder";
  CHECK_THROWS_WITH_AS(read_bert_config(folder),
                       "cannot read no such folder/config.json: a model folder holds config.json, "
                       "model.safetensors and vocab.txt",
                       std::runtime_error);
}
