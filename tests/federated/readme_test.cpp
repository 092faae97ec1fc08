// The federation of the README, line by line, on a task that it must learn. tests/readme.py
// compares the two.
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <utility>
#include <vector>

#include "droppeft/bandit/thompson.hpp"
#include "droppeft/configurator.hpp"
#include "droppeft/core/module.hpp"
#include "droppeft/core/state.hpp"
#include "droppeft/dropout/layer_dropout.hpp"
#include "droppeft/federated/agreement.hpp"
#include "droppeft/federated/fedavg.hpp"
#include "support.hpp"

namespace dp = droppeft;

namespace {

struct Device {
  at::Tensor x, y;
};

}  // namespace

TEST_CASE("the federation of the README learns") {
  torch::manual_seed(5);
  torch::nn::Sequential model;
  const std::size_t layers = 4;
  for (std::size_t layer = 0; layer < layers; ++layer)
    model->push_back(dp::LayerDropout(torch::nn::Linear(6, 6), 0.5));
  model->push_back(torch::nn::Linear(6, 6));
  const at::Tensor truth = torch::randn({6, 6});
  std::vector<Device> devices;
  for (int i = 0; i < 4; ++i) {
    devices.push_back({torch::randn({40, 6}), {}});
    devices.back().y = devices.back().x.mm(truth);
  }
  const std::vector<double> examples(devices.size(), 40);
  const auto loss_on = [&](const Device& device) {
    return at::mse_loss(model->forward(device.x), device.y);
  };
  const auto train = [&](torch::nn::Sequential& trained, const Device& device) {
    torch::optim::SGD optimizer(dp::trainable_parameters(*trained), 0.05);
    for (int step = 0; step < 5; ++step) {
      optimizer.zero_grad();
      loss_on(device).backward();
      optimizer.step();
    }
    return 1.0;
  };
  const auto loss = [&] {
    const torch::NoGradGuard no_grad;
    model->eval();
    const double value = loss_on(devices[0]).item<double>();
    model->train();
    return value;
  };
  const double before = loss();
  const int rounds = 30;
  dp::State global = dp::trainable_state(*model);

  // clang-format off
  dp::SelectorConfigurator chooser(dp::ThompsonSelector(dp::configurations().size()));
  for (int round = 0; round < rounds; ++round) {
    const auto assignments = chooser.assign(devices.size());
    std::vector<dp::State> updates;
    std::vector<double> seconds;
    dp::FedAvg average;
    for (std::size_t i = 0; i < devices.size(); ++i) {
      dp::load_state(*model, global);
      dp::set_drop_rates(*model, assignments[i].configuration.drop_rates(layers));
      seconds.push_back(train(model, devices[i]));  // your own loop; its time over that at full depth
      const auto trained = dp::trainable_state(*model);
      average.add(trained, examples[i]);
      updates.push_back(trained - global);
    }
    const auto gains = dp::agreement(updates, examples);  // what each device added to the others' way
    for (std::size_t i = 0; i < devices.size(); ++i) chooser.report(assignments[i], gains[i], seconds[i]);
    chooser.finish_round();
    global = global.updated(average.value());
  }
  // clang-format on

  dp::load_state(*model, global);
  CHECK(loss() < 0.5 * before);
  std::uint64_t plays = 0;
  for (const dp::Estimate& estimate : chooser.estimates()) plays += estimate.plays;
  CHECK(plays == 30 * devices.size());
}
