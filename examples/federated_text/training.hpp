#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <droppeft/random/shuffle.hpp>
#include <droppeft/random/stream.hpp>
#include <span>
#include <vector>

#include "models/bert.hpp"
#include "text_data.hpp"

/// Texts of about one length, padded to the longest. `mask` is undefined when nothing is padded.
struct Batch {
  at::Tensor ids, mask, labels;
  std::int64_t tokens = 0;  // without padding
};

inline Batch make_batch(const std::vector<Example>& examples, std::span<const std::size_t> rows) {
  std::size_t longest = 0, shortest = examples[rows[0]].ids.size();
  for (const auto row : rows) {
    longest = std::max(longest, examples[row].ids.size());
    shortest = std::min(shortest, examples[row].ids.size());
  }
  const auto count = static_cast<std::int64_t>(rows.size());
  const auto length = static_cast<std::int64_t>(longest);
  Batch batch{at::zeros({count, length}, at::kLong), {}, at::empty({count}, at::kLong), 0};
  if (shortest < longest) batch.mask = at::zeros({count, length});
  for (std::int64_t i = 0; i < count; ++i) {
    const auto& example = examples[rows[static_cast<std::size_t>(i)]];
    std::copy(example.ids.begin(), example.ids.end(),
              batch.ids.data_ptr<std::int64_t>() + i * length);
    if (batch.mask.defined())
      std::fill_n(batch.mask.data_ptr<float>() + i * length, example.ids.size(), 1.0F);
    batch.labels.data_ptr<std::int64_t>()[i] = example.label;
    batch.tokens += static_cast<std::int64_t>(example.ids.size());
  }
  return batch;
}

/// `rows` by length, in batches of `size`.
inline std::vector<std::vector<std::size_t>> batches_by_length(const std::vector<Example>& examples,
                                                               std::vector<std::size_t> rows,
                                                               std::size_t size) {
  std::stable_sort(rows.begin(), rows.end(), [&](std::size_t a, std::size_t b) {
    return examples[a].ids.size() < examples[b].ids.size();
  });
  std::vector<std::vector<std::size_t>> batches;
  for (std::size_t first = 0; first < rows.size(); first += size)
    batches.emplace_back(
        rows.begin() + static_cast<std::ptrdiff_t>(first),
        rows.begin() + static_cast<std::ptrdiff_t>(std::min(first + size, rows.size())));
  return batches;
}

/// `steps` batches of `size` rows: passes over `rows`, each freshly shuffled and cut into stretches
/// of four batches within which texts of like length go together. The rows that would not fill a
/// batch sit out that pass; there are fewer than `size` in a batch only when there are fewer rows.
inline std::vector<std::vector<std::size_t>> training_batches(const std::vector<Example>& examples,
                                                              std::vector<std::size_t> rows,
                                                              std::size_t size, std::size_t steps,
                                                              droppeft::Stream stream) {
  const std::size_t used = rows.size() < size ? rows.size() : rows.size() / size * size;
  std::vector<std::vector<std::size_t>> batches;
  while (batches.size() < steps) {
    droppeft::shuffle(std::span(rows), stream);
    std::vector<std::vector<std::size_t>> pass;
    for (std::size_t first = 0; first < used; first += 4 * size) {
      const auto end = std::min(first + 4 * size, used);
      auto stretch = batches_by_length(examples,
                                       {rows.begin() + static_cast<std::ptrdiff_t>(first),
                                        rows.begin() + static_cast<std::ptrdiff_t>(end)},
                                       size);
      pass.insert(pass.end(), stretch.begin(), stretch.end());
    }
    droppeft::shuffle(std::span(pass), stream);
    batches.insert(batches.end(), pass.begin(), pass.end());
  }
  batches.resize(steps);
  return batches;
}

/// What a model makes of some rows, in eval mode: the class it gives each, and the mean loss.
struct Evaluation {
  std::vector<bool> right;  // one a row, in the order of the rows
  double loss = 0;

  double accuracy() const {
    return right.empty() ? 0
                         : static_cast<double>(std::count(right.begin(), right.end(), true)) /
                               static_cast<double>(right.size());
  }
};

inline Evaluation evaluate(TextClassifier& model, const std::vector<Example>& examples,
                           const std::vector<std::size_t>& rows) {
  at::NoGradGuard no_grad;
  const bool training = model->is_training();
  model->eval();
  Evaluation result;
  result.right.resize(rows.size());
  std::vector<std::size_t> place(examples.size());
  for (std::size_t i = 0; i < rows.size(); ++i) place[rows[i]] = i;
  for (const auto& part : batches_by_length(examples, rows, 32)) {
    const Batch batch = make_batch(examples, part);
    const at::Tensor logits = model->forward(batch.ids, batch.mask);
    const at::Tensor right = logits.argmax(1).eq(batch.labels);
    for (std::size_t i = 0; i < part.size(); ++i)
      result.right[place[part[i]]] = right[static_cast<std::int64_t>(i)].item<bool>();
    result.loss += at::cross_entropy_loss(logits, batch.labels).item<double>() *
                   static_cast<double>(part.size()) / static_cast<double>(rows.size());
  }
  model->train(training);
  return result;
}
