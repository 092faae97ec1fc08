#include "droppeft/kernels/cpu/adamw.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "droppeft/kernels/cuda/slots.hpp"
#include "on_device.hpp"

using droppeft::Stream;
using droppeft::cuda::AdamWTensor;

namespace {

const droppeft::cpu::AdamWSettings settings{
    .lr = 1e-2, .beta1 = 0.8, .beta2 = 0.99, .eps = 1e-6, .weight_decay = 0.1};

/// A tensor in both memories.
struct Both {
  Both(Stream& stream, std::int64_t count, std::size_t shift, std::int64_t its_step)
      : step(its_step),
        param(random_numbers<float>(stream, count)),
        grad(random_numbers<float>(stream, count)),
        exp_avg(random_numbers<float>(stream, count)),
        exp_avg_sq(random_numbers<float>(stream, count)),
        device_param(param, shift),
        device_grad(grad, shift),
        device_exp_avg(exp_avg, shift),
        device_exp_avg_sq(squared(), shift) {}

  AdamWTensor on_device() const {
    return {device_param.data(),
            device_exp_avg.data(),
            device_exp_avg_sq.data(),
            device_grad.data(),
            static_cast<std::int64_t>(param.size()),
            step};
  }
  void step_on_cpu() {
    droppeft::cpu::adamw(param.data(), grad.data(), exp_avg.data(), exp_avg_sq.data(), settings,
                         step, 0, static_cast<std::int64_t>(param.size()));
  }
  double error() const {
    double most = 0;
    for (const double one : {worst_error(device_param.numbers(), param),
                             worst_error(device_exp_avg.numbers(), exp_avg),
                             worst_error(device_exp_avg_sq.numbers(), exp_avg_sq),
                             worst_error(device_grad.numbers(), grad)})
      if (!(one <= most)) most = one;
    return most;
  }

  std::int64_t step;
  std::vector<float> param, grad, exp_avg, exp_avg_sq;
  OnDevice<float> device_param, device_grad, device_exp_avg, device_exp_avg_sq;

 private:
  const std::vector<float>& squared() {
    for (float& number : exp_avg_sq) number *= number;
    return exp_avg_sq;
  }
};

}  // namespace

TEST_CASE("a step is the CPU's for tensors of all sizes, and touches no others") {
  Stream stream(3);
  std::vector<std::unique_ptr<Both>> all;
  std::vector<AdamWTensor> table;
  for (const std::int64_t count : {1, 0, 3, 4, 5, 1023, 1024, 1025, 4096, 8192, 5000})
    for (const std::size_t shift : {0U, 1U})
      for (const std::int64_t step : {1, 2, 1000})
        all.push_back(std::make_unique<Both>(stream, count, shift, step));
  for (std::size_t i = 0; i < all.size(); ++i)
    if (i % 3 != 2) {
      table.push_back(all[i]->on_device());
      all[i]->step_on_cpu();
    }
  droppeft::cuda::slots.adamw(table.data(), static_cast<std::int64_t>(table.size()), settings,
                              nullptr);
  for (const auto& each : all) {
    CAPTURE(each->param.size());
    CHECK(each->error() < 8 * 0x1p-24);
  }
}

TEST_CASE("more tensors than one launch takes, and none") {
  Stream stream(4);
  for (const int count : {0, 1, 255, 256, 257, 600}) {
    std::vector<std::unique_ptr<Both>> all;
    std::vector<AdamWTensor> table;
    for (int i = 0; i < count; ++i) {
      all.push_back(std::make_unique<Both>(stream, i % 7 == 3 ? 0 : 30 + i, 0, 1 + i));
      table.push_back(all.back()->on_device());
      all.back()->step_on_cpu();
    }
    droppeft::cuda::slots.adamw(table.data(), count, settings, nullptr);
    int wrong = 0;
    for (const auto& each : all) wrong += !(each->error() < 8 * 0x1p-24);
    CHECK(wrong == 0);
  }
}

TEST_CASE("sizes and steps out of range are refused before anything is stepped") {
  Stream stream(5);
  Both one(stream, 10, 0, 1);
  std::vector<AdamWTensor> table{one.on_device(), one.on_device()};
  const auto run = [&](std::int64_t count) {
    droppeft::cuda::slots.adamw(table.data(), count, settings, nullptr);
  };
  CHECK_THROWS_AS(run(-1), std::invalid_argument);
  table[1].step = 0;
  CHECK_THROWS_AS(run(2), std::invalid_argument);
  table[1] = one.on_device();
  table[1].count = -1;
  CHECK_THROWS_AS(run(2), std::invalid_argument);
  CHECK(one.error() == 0);
}
