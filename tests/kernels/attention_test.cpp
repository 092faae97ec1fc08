#include "droppeft/kernels/cpu/attention.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "droppeft/random/stream.hpp"
#include "kernels/isas.hpp"

using droppeft::Stream;
using droppeft::cpu::AttentionHead;
using droppeft::cpu::Isa;

namespace {

using Numbers = std::vector<float>;

/// A head whose rows lie `gap` numbers apart, and what doubles say of it.
struct Problem {
  Problem(std::int64_t queries, std::int64_t keys, std::int64_t width, std::int64_t gap,
          bool masked)
      : stride(width + gap) {
    Stream stream(static_cast<std::uint64_t>(queries * 101 + keys * 7 + width));
    const auto numbers = [&](std::int64_t count) {
      Numbers all(static_cast<std::size_t>(count));
      for (float& number : all) number = static_cast<float>(4 * stream.uniform() - 2);
      return all;
    };
    q = numbers(queries * stride), k = numbers(keys * stride), v = numbers(keys * stride);
    gy = numbers(queries * stride), bias = numbers(keys);
    if (masked)
      for (std::size_t j = 1; j < bias.size(); j += 3)
        bias[j] = j % 2 == 1 ? -1e9F : -std::numeric_limits<float>::infinity();
    head = {.queries = queries,
            .keys = keys,
            .width = width,
            .scale = 0.4F,
            .q = {q.data(), stride},
            .k = {k.data(), stride},
            .v = {v.data(), stride},
            .bias = bias.data()};
    y.resize(q.size()), gq.resize(q.size()), gk.resize(k.size()), gv.resize(v.size());
  }

  void run(Isa isa) {
    Numbers scratch(static_cast<std::size_t>(head.backward_scratch()), std::nanf(""));
    droppeft::cpu::attention(head, {y.data(), stride}, scratch.data(), isa);
    std::fill(scratch.begin(), scratch.end(), std::nanf(""));
    droppeft::cpu::attention_backward(head, {gy.data(), stride}, {gq.data(), stride},
                                      {gk.data(), stride}, {gv.data(), stride}, scratch.data(),
                                      isa);
  }

  /// The largest error of y and the gradients, beside the largest number of each.
  double worst() const {
    const auto at = [&](const Numbers& all, std::int64_t row, std::int64_t column) {
      return static_cast<double>(all[static_cast<std::size_t>(row * stride + column)]);
    };
    const auto n = static_cast<std::size_t>(head.width);
    using Rows = std::vector<std::vector<double>>;
    const auto zeros = [&](std::int64_t rows) {
      return Rows(static_cast<std::size_t>(rows), std::vector<double>(n));
    };
    Rows its_y = zeros(head.queries), its_gq = its_y, its_gk = zeros(head.keys), its_gv = its_gk;
    for (std::int64_t i = 0; i < head.queries; ++i) {
      const auto row = static_cast<std::size_t>(i);
      std::vector<double> weights, gradients;
      double total = 0, mean = 0;
      for (std::int64_t j = 0; j < head.keys; ++j) {
        double score = 0;
        for (std::int64_t c = 0; c < head.width; ++c) score += at(q, i, c) * at(k, j, c);
        weights.push_back(std::exp(static_cast<double>(head.scale) * score +
                                   static_cast<double>(bias[static_cast<std::size_t>(j)])));
        total += weights.back();
      }
      for (std::int64_t j = 0; j < head.keys; ++j) {
        const auto key = static_cast<std::size_t>(j);
        weights[key] /= total;
        gradients.push_back(0);
        for (std::int64_t c = 0; c < head.width; ++c) {
          const auto column = static_cast<std::size_t>(c);
          its_y[row][column] += weights[key] * at(v, j, c);
          its_gv[key][column] += weights[key] * at(gy, i, c);
          gradients[key] += at(gy, i, c) * at(v, j, c);
        }
        mean += weights[key] * gradients[key];
      }
      for (std::int64_t j = 0; j < head.keys; ++j) {
        const auto key = static_cast<std::size_t>(j);
        const double g = static_cast<double>(head.scale) * weights[key] * (gradients[key] - mean);
        for (std::int64_t c = 0; c < head.width; ++c) {
          its_gq[row][static_cast<std::size_t>(c)] += g * at(k, j, c);
          its_gk[key][static_cast<std::size_t>(c)] += g * at(q, i, c);
        }
      }
    }
    double most = 0;
    const auto compare = [&](const Numbers& got, const Rows& expected) {
      double largest = 1, error = 0;
      for (std::size_t i = 0; i < expected.size(); ++i)
        for (std::size_t c = 0; c < n; ++c) {
          double number = at(got, static_cast<std::int64_t>(i), static_cast<std::int64_t>(c));
          if (!std::isfinite(number)) error = number = std::numeric_limits<double>::infinity();
          largest = std::max(largest, std::abs(expected[i][c]));
          error = std::max(error, std::abs(number - expected[i][c]));
        }
      most = std::max(most, error / largest);
    };
    compare(y, its_y), compare(gq, its_gq), compare(gk, its_gk), compare(gv, its_gv);
    return most;
  }

  std::int64_t stride;
  Numbers q, k, v, gy, bias, y, gq, gk, gv;
  AttentionHead head;
};

}  // namespace

TEST_CASE("a head and its gradients are those of double arithmetic") {
  // Scores are below 0.4 * 4 * width + 2: their rounding, 2^-24 of that for each of width terms at
  // the worst, and rarely more than its root, is what the weights are off by, relatively.
  for (const Isa isa : isas())
    for (const std::int64_t width : {1, 8, 24, 32, 64})
      for (const auto& [queries, keys] : {std::pair<std::int64_t, std::int64_t>{1, 1},
                                          {1, 2},
                                          {5, 5},
                                          {3, 33},
                                          {37, 16},
                                          {64, 64},
                                          {70, 129}})
        for (const bool masked : {false, true}) {
          CAPTURE(static_cast<int>(isa));
          CAPTURE(width);
          CAPTURE(queries);
          CAPTURE(keys);
          CAPTURE(masked);
          Problem problem(queries, keys, width, width % 3, masked);
          problem.run(isa);
          const double score = 0.4 * 4 * static_cast<double>(width) + 2;
          CHECK(problem.worst() < 4 * score * 0x1p-24);
        }
}

TEST_CASE("all keys masked: zeros, with gradients of zero; any NaN stays one") {
  for (const Isa isa : isas()) {
    Problem problem(9, 21, 16, 0, false);
    std::fill(problem.bias.begin(), problem.bias.end(), -std::numeric_limits<float>::infinity());
    problem.run(isa);
    for (const Numbers* out : {&problem.y, &problem.gq, &problem.gk, &problem.gv})
      CHECK(*out == Numbers(out->size(), 0.0F));
    Problem broken(9, 21, 16, 0, false);
    broken.k[20] = std::bit_cast<float>(0xFFFFFFFFU);
    broken.run(isa);
    for (const float number : broken.y) CHECK(std::isnan(number));
  }
}

TEST_CASE("nothing beside the rows is written") {
  for (const Isa isa : isas()) {
    Problem problem(7, 9, 20, 5, false);
    for (Numbers* out : {&problem.y, &problem.gq, &problem.gk, &problem.gv})
      std::fill(out->begin(), out->end(), 77.0F);
    problem.run(isa);
    for (const Numbers* out : {&problem.y, &problem.gq, &problem.gk, &problem.gv})
      for (std::size_t i = 0; i < out->size(); ++i)
        if (i % 25 >= 20) CHECK((*out)[i] == 77.0F);
  }
}
